"""A configuration for people: ``--print-config`` and ``GET /config``."""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from sidecar.config.options import OPTIONS, Config
from sidecar.config.quotas import written

if TYPE_CHECKING:
    from sidecar.tiers.settings import AdapterSettings

_SECRET = re.compile(
    "secret|password|token|access_key|account_key|connection_string", re.IGNORECASE
)
_LOGIN = re.compile("(?<=://)[^/?#]*@")


def shown(config: Config, name: str) -> Any:
    """The value of one option as it is written in a file, without credentials in URLs."""
    value = getattr(config, name)
    if name == "ipc_mode":
        return f"{value:04o}"
    if name == "otlp_endpoint":
        return _without_credentials(value)
    if name == "client_ports":
        return ",".join(f"{port}={release}" for port, release in value)
    if name == "l2_adapter":
        return [adapter(spec.settings) for spec in value]
    if name == "quotas":
        return written(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def adapter(settings: "AdapterSettings") -> dict[str, Any]:
    """The settings of an L2 adapter that are not the defaults, without secrets."""
    return _without_secrets(msgspec.to_builtins(settings))


def _without_secrets(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _without_secret(key, value) for key, value in values.items()}


def _without_secret(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return _without_secrets(value)
    if _SECRET.search(key) and value:
        return "***"
    return _LOGIN.sub("", value) if isinstance(value, str) else value


def by_group(config: Config) -> dict[str, dict[str, Any]]:
    """Option group to option name to value."""
    groups: dict[str, dict[str, Any]] = {}
    for name, option in OPTIONS.items():
        groups.setdefault(option.group, {})[name] = shown(config, name)
    return groups


def as_yaml(config: Config, sources: Mapping[str, str]) -> str:
    """One ``key: value  # source`` line for each option."""
    keys = {name: name.replace("_", "-") for name in OPTIONS}
    pairs = {name: f"{keys[name]}: {_scalar(shown(config, name))}" for name in OPTIONS}
    width = max(map(len, pairs.values()))
    return "\n".join(f"{pairs[name]:{width}}  # {sources[name]}" for name in OPTIONS)


def _scalar(value: Any) -> str:
    # JSON strings are YAML strings; only those that may mean something else are quoted.
    if isinstance(value, str) and value.replace(".", "").replace("-", "").isalnum():
        return value
    return json.dumps(value)


def _without_credentials(url: str) -> str:
    """User, password and query of a URL may be secrets."""
    if not url:
        return url
    parts = urlsplit(url)
    netloc = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, netloc, parts.path, "", ""))
