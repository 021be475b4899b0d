"""Parsers of option values: text in, a typed value out, ``ValueError`` with a reason if wrong.

Flags, environment and YAML all deliver text, so that one value means the same everywhere.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

from sidecar.addresses import is_ipv6, unbracketed

if TYPE_CHECKING:
    from sidecar.tiers.settings import AdapterSettings

T = TypeVar("T")
Switch = Literal["auto", "true", "false"]
SHM_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
# sockaddr_un.sun_path holds 108 bytes, the last of them NUL.
UNIX_PATH_LIMIT = 107
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True}
_BOOLEANS |= {"false": False, "no": False, "off": False, "0": False}


class ConfigError(Exception):
    """A wrong flag, key or value. Its text is the one line shown to the operator."""


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """One L2 adapter's settings, and lines to warn with about keys that change nothing."""

    settings: "AdapterSettings"
    warnings: tuple[str, ...]


def l2_adapters(text: str) -> tuple[AdapterSpec, ...]:
    """One JSON object with a ``type``, or an array of them."""
    # Here, not above: it imports numpy, and most commands have no use for that.
    from sidecar.tiers.types import parse

    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from None
    specs = given if isinstance(given, list) else [given]
    for spec in specs:
        if not isinstance(spec, dict):
            # A list is not shown: it may hold a password.
            what = "a list" if isinstance(spec, list) else json.dumps(spec)
            raise ValueError(f'{what} is not an object such as {{"type": "fs", ...}}')
    return tuple(AdapterSpec(settings, tuple(warnings)) for settings, warnings in map(parse, specs))


def integer(low: int, high: int) -> Callable[[str], int]:
    """Whole numbers in ``[low, high]``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise ValueError(f"{value} is not between {low} and {high}")
        return value

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """Finite numbers in ``[low, high]``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a number") from None
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"{text} is not between {low:g} and {high:g}")
        return value

    return parse


def list_of(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Values with commas between them."""
    return lambda text: [parse(part) for part in text.split(",")]


def size_gib(text: str) -> float:
    """A size in GiB, more than 0 and at most 65536 (64 TiB)."""
    value = number(0, 65536)(text)
    if value == 0:
        raise ValueError("must be more than 0 (GiB)")
    return value


def boolean(text: str) -> bool:
    """true/false, yes/no, on/off or 1/0, in any case."""
    value = _BOOLEANS.get(text.lower())
    if value is None:
        raise ValueError(f"{text!r} is not true or false")
    return value


def switch(text: str) -> Switch:
    """``auto``, or what ``boolean`` takes."""
    if text.lower() == "auto":
        return "auto"
    return "true" if boolean(text) else "false"


def choice(*allowed: str, refused: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """One of ``allowed``; ``refused`` maps values that LMCache knows to why we do not."""

    def parse(text: str) -> str:
        if text in allowed:
            return text
        if refused and text in refused:
            raise ValueError(f"{text} is not supported: {refused[text]}")
        raise ValueError(f"{text!r} is not one of {', '.join(allowed)}")

    return parse


def ports_of(releases: Sequence[str]) -> Callable[[str], tuple[tuple[int, str], ...]]:
    """Ports and one of ``releases`` each: ``5556=0.5.2,5557=0.4.7``."""

    def parse(text: str) -> tuple[tuple[int, str], ...]:
        ports: dict[int, str] = {}
        for part in filter(None, text.split(",")):
            port, _, release = part.partition("=")
            ports[integer(1, 65535)(port)] = choice(*releases)(release)
        return tuple(ports.items())

    return parse


def octal_mode(text: str) -> int:
    """A file mode in octal digits, as for chmod: ``0600``."""
    if not re.fullmatch(r"0?o?[0-7]{3}", text):
        raise ValueError(f"{text!r} is not an octal file mode such as 0600")
    return int(text.removeprefix("0").removeprefix("o"), 8)


def host(text: str) -> str:
    """A host name or IP address, without scheme, port or brackets; ``*`` is all addresses."""
    name = unbracketed(text)
    if not name or any(c in "/[]" or c.isspace() for c in name):
        raise ValueError(f"{text!r} is not a host name or address")
    if ":" in name and not is_ipv6(name):
        raise ValueError(f"{text!r} is not a host name or address; the port is another option")
    return name


def wire_host(text: str) -> str:
    """A host name or address, or ``ipc://`` and an absolute path."""
    if not text.startswith("ipc://"):
        return host(text)
    path = text.removeprefix("ipc://")
    if not path.startswith("/") or path.endswith("/"):
        raise ValueError(f"{text!r} is not ipc:// followed by an absolute path")
    return text


def shm_name(text: str) -> str:
    """A name safe inside /dev/shm; empty asks for a unique one."""
    if text and not SHM_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    return text


def file_path(text: str) -> str:
    """The path of a file; empty means none."""
    if "\0" in text or text.endswith("/"):
        raise ValueError(f"{text!r} is not the path of a file")
    return text


def identifier(text: str) -> str:
    """1 to 128 printable characters."""
    if not (0 < len(text) <= 128 and text.isprintable()):
        raise ValueError("must be 1 to 128 printable characters")
    return text


def socket_url(text: str) -> str:
    """``tcp://HOST:PORT`` or ``ipc:///path`` to listen on; empty means none."""
    is_tcp = re.fullmatch(r"tcp://(\*|\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):\d{1,5}", text)
    if text and not is_tcp and not re.fullmatch(r"ipc:///[^\0]*[^/\0]", text):
        raise ValueError("is neither tcp://HOST:PORT nor ipc:///PATH")
    return text


def endpoint(text: str) -> str:
    """An http(s) URL with a host; empty means none."""
    if not text:
        return text
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is not a URL such as http://localhost:4317")
    return text
