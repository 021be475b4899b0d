"""Every adapter type by the name that `--l2-adapter` gives it.

Those of this package register themselves. Others are named by module and class.
"""

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import msgspec

from sidecar.tiers import adapters
from sidecar.tiers.settings import REGISTERED, AdapterSettings

for _module in pkgutil.iter_modules(adapters.__path__, f"{adapters.__name__}."):
    import_module(_module.name)
TYPES = dict(sorted(REGISTERED.items()))  # whatever was imported before
# Types of `lmcache server` that are not built here.
_NOT_HERE = (
    "aerospike", "bigtable", "dax", "fault_inject", "hf3fs", "hfbucket", "mock", "native_plugin",
    "p2p", "plugin", "raw_block", "sagemaker-hyperpod", "wqs_store",
)  # fmt: skip


def parse(spec: Mapping[str, Any]) -> tuple[AdapterSettings, list[str]]:
    """The settings that one JSON object of `--l2-adapter` means, and lines to warn with.

    Raises ValueError with one line for a wrong type, key or value.
    """
    type_name = spec.get("type")
    settings_type = _settings_type(type_name)
    reasons = AdapterSettings.ignored | settings_type.ignored
    ignored = [key for key in spec if key in reasons]
    wanted = {key: value for key, value in spec.items() if key not in ignored}
    try:
        # Not strict: LMCache's users write "true" and "10" in backend_params.
        settings = msgspec.convert(wanted, settings_type, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{type_name}: {error}") from None
    return settings, [f"{type_name}: {k} changes nothing: {reasons[k]}" for k in ignored]


def _settings_type(name: object) -> type[AdapterSettings]:
    if isinstance(name, str) and ":" in name:
        return _brought(name)
    if isinstance(name, str) and name in TYPES:
        return TYPES[name]
    known = f"{', '.join(TYPES)}, and module:Class"
    if name in _NOT_HERE:
        raise ValueError(f"type {name!r} is not implemented; there are: {known}")
    raise ValueError(f"type {name!r} is unknown; there are: {known}")


def _brought(name: str) -> type[AdapterSettings]:
    """The class `module:Class`, of a package that somebody has installed beside the server."""
    module, _, class_name = name.partition(":")
    try:
        found = getattr(import_module(module), class_name)
    except Exception as error:  # whatever the module does when it is imported
        raise ValueError(f"type {name!r} cannot be loaded: {error!r}") from None
    if not (isinstance(found, type) and issubclass(found, AdapterSettings)):
        raise ValueError(f"type {name!r} is no subclass of sidecar.tiers.settings.AdapterSettings")
    return found
