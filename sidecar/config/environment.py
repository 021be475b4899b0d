"""``KV_SIDECAR_<NAME>`` variables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.config.options import OPTIONS, variable
from sidecar.config.suggest import suggestion

CONFIG_FILE = "KV_SIDECAR_CONFIG"
# Kubernetes sets these in every pod beside a Service named kv-sidecar. KV_SIDECAR_PORT, which
# is also ours, then holds "tcp://10.0.0.1:5555".
_SERVICE_LINK = re.compile(r"KV_SIDECAR_(SERVICE_(HOST|PORT).*|PORT_\d+_(TCP|UDP|SCTP).*)")
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://.*")


@dataclass
class Found:
    """Per option the variable and its text; lines to show as warnings."""

    values: dict[str, tuple[str, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read(environ: Mapping[str, str]) -> Found:
    """The options that the environment sets; a name that is none is only warned about."""
    found = Found()
    names = {variable(name): name for name in OPTIONS}
    for key in sorted(environ):
        if not key.startswith("KV_SIDECAR_") or key == CONFIG_FILE or _SERVICE_LINK.fullmatch(key):
            continue
        if key not in names:
            found.warnings.append(f"{key} is no option{suggestion(key, names)}")
        elif key == variable("port") and _LINK_VALUE.fullmatch(environ[key]):
            found.warnings.append(
                f"{key}={environ[key]} ignored: a Kubernetes service link, not a port"
            )
        else:
            found.values[names[key]] = (key, environ[key])
    return found
