#!/usr/bin/env python3
"""Make docs/configuration.md from sidecar/config/options.py and the settings of the L2 adapters.

scripts/configuration_doc.py
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sidecar.config.options import GROUPS, OPTIONS, Config, flag, variable  # noqa: E402
from sidecar.tiers.adapters import nixl_store  # noqa: E402
from sidecar.tiers.settings import AdapterSettings  # noqa: E402
from sidecar.tiers.types import TYPES  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"
HEAD = """\
# Configuration

<!-- Made from sidecar/config/options.py and sidecar/tiers/ by `make generate`. -->

Each option of `kv-sidecar serve` is a flag, a key of the YAML file (`--config FILE`, or the
variable `KV_SIDECAR_CONFIG`) and an environment variable. A flag wins over the environment, the
environment over the file. `kv-sidecar serve --print-config` shows what holds and where it came
from; `GET /config` on the admin port shows what a running server has. A wrong option is one line
and exit code 2; an unknown `KV_SIDECAR_*` variable is a warning. Nothing can be changed while the
server runs: [restart it](operate.md#stop-restart-upgrade).

Names are those of `lmcache server` where it has the option; [migrating](migrating.md#flags) lists
its other flags. [configs/](../configs/sidecar.yaml) has a file with all options, and profiles.
"""
L2_HEAD = """
## L2 adapters

`--l2-adapter` takes a JSON object with a `type` and the keys below; the flag may be repeated, the
nearest first. In a YAML file the value may be a list of mappings. What the backends do, and with
which they were tested: [L2](l2.md#adapters).

### Keys of every adapter

"""
NIXL_TAIL = """
`backend_params` of files (`POSIX`, `GDS`, `GDS_MT`, `HF3FS`): `file_path` (required, the
directory, absolute) and `use_direct_io` (true). Of object stores: `key_prefix` (begins every key).
With `use_aio`, `POSIX` takes libaio and does not try io_uring first. The other keys go to NIXL as
they are:

"""


def page() -> str:
    """The whole text."""
    return "".join([HEAD, *_options(), L2_HEAD, *_adapters()])


def _options() -> Iterator[str]:
    fields = {field.name: field for field in dataclasses.fields(Config)}
    for group, title in GROUPS.items():
        yield f"\n## {title}\n\n| flag | YAML key | variable | default | |\n|---|---|---|---|---|\n"
        for name, option in OPTIONS.items():
            if option.group == group:
                names = f"`{flag(name)}` | `{flag(name)[2:]}` | `{variable(name)}`"
                yield f"| {names} | {_option_default(fields[name])} | {_cell(option.help)} |\n"


def _option_default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "computed"
    if field.default is dataclasses.MISSING:
        return "required"
    return _default(f"{field.default:04o}" if field.name == "ipc_mode" else field.default)


def _adapters() -> Iterator[str]:
    common = {field.name for field in _fields(AdapterSettings)}
    yield from _keys(field for field in _fields(AdapterSettings) if field.name != "type")
    yield _without_effect(AdapterSettings.ignored)
    for settings in dict.fromkeys(TYPES.values()):
        names = ", ".join(f"`{name}`" for name, each in TYPES.items() if each is settings)
        yield f"\n### {names}\n\n{(settings.__doc__ or '').splitlines()[0]}\n\n"
        yield from _keys(field for field in _fields(settings) if field.name not in common)
        if settings is nixl_store.NixlSettings:
            yield NIXL_TAIL
            yield from _nixl_params()
        if settings.ignored is not AdapterSettings.ignored:
            yield _without_effect(settings.ignored)


def _without_effect(keys: Iterable[str]) -> str:
    return f"\nAccepted, with a warning, and without effect: {_listed(keys)}.\n"


def _nixl_params() -> Iterator[str]:
    yield "| backend | keys |\n|---|---|\n"
    for backend, keys in nixl_store.PARAMS.items():
        yield f"| `{backend}` | {_listed(keys)} |\n"
    ignored = _listed(nixl_store.IGNORED_PARAMS)
    yield f"\nWithout effect there: {ignored} (the last may be false alone).\n"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _fields(settings: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(settings)
    assert isinstance(info, inspect.StructType)
    return info.fields


def _keys(fields: Iterable[inspect.Field]) -> Iterator[str]:
    yield "| key | takes | default | |\n|---|---|---|---|\n"
    for field in sorted(fields, key=lambda field: not field.required):
        yield from _rows(field, "")


def _rows(field: inspect.Field, prefix: str) -> Iterator[str]:
    about = field.type
    assert isinstance(about, inspect.Metadata), f"{field.name} has no description"
    text = _cell((about.extra_json_schema or {})["description"])
    if isinstance(about.type, inspect.StructType):
        yield f"| `{prefix}{field.name}` | object | | {text} |\n"
        for inner in about.type.fields:
            yield from _rows(inner, f"{prefix}{field.name}.")
        return
    default = "required" if field.required else _key_default(field)
    yield f"| `{prefix}{field.name}` | {_takes(about.type)} | {default} | {text} |\n"


def _key_default(field: inspect.Field) -> str:
    return _default("" if field.default is msgspec.NODEFAULT else field.default)


def _default(value: Any) -> str:
    if value in ("", None, ()):
        return "none"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _takes(kind: inspect.Type) -> str:
    """What may be written, in words."""
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, inspect.UnionType):
        return " or ".join(_takes(each) for each in kind.types if not _is_none(each))
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return "number" + _bounds(kind)
    names = {
        inspect.BoolType: "true, false",
        inspect.StrType: "text",
        inspect.DictType: "object",
        inspect.ListType: "list",
    }
    return names[type(kind)]


def _is_none(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.NoneType)


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    low = f" > {kind.gt:g}" if kind.gt is not None else ""
    low = f" >= {kind.ge:g}" if kind.ge is not None else low
    high = f" <= {kind.le:g}" if kind.le is not None and kind.le < 1e9 else ""
    return (f"{low}," if low and high else low) + high


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
