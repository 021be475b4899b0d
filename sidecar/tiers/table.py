"""Every adapter type by the name that `--l2-adapter` gives it. A new one is one line here."""

from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.tiers.adapters.fault_inject import FaultInjectSettings
from sidecar.tiers.adapters.files import FilesSettings
from sidecar.tiers.adapters.mock import MockSettings
from sidecar.tiers.adapters.mooncake import MooncakeSettings
from sidecar.tiers.adapters.nixl import NixlSettings
from sidecar.tiers.adapters.resp import RespSettings
from sidecar.tiers.adapters.s3 import S3Settings
from sidecar.tiers.settings import AdapterSettings

TYPES: dict[str, type[AdapterSettings]] = {
    "fs": FilesSettings,
    "fs_native": FilesSettings,
    "nixl_store": NixlSettings,
    "nixl_store_dynamic": NixlSettings,
    "nixl_native": NixlSettings,
    "s3": S3Settings,
    "mooncake_store": MooncakeSettings,
    "resp": RespSettings,
    "valkey": RespSettings,
    "mock": MockSettings,
    "fault_inject": FaultInjectSettings,
}
# Types of `lmcache server` that are not built here.
_NOT_HERE = (
    "aerospike", "bigtable", "dax", "hf3fs", "hfbucket", "native_plugin", "p2p", "plugin",
    "raw_block", "sagemaker-hyperpod", "wqs_store",
)  # fmt: skip


def parse(spec: Mapping[str, Any]) -> tuple[AdapterSettings, list[str]]:
    """The settings that one JSON object of `--l2-adapter` means, and lines to warn with.

    Raises ValueError with one line for a wrong type, key or value.
    """
    type_name = spec.get("type")
    settings_type = TYPES.get(type_name) if isinstance(type_name, str) else None
    if settings_type is None:
        if type_name in _NOT_HERE:
            raise ValueError(f"type {type_name!r} is not implemented; there are: {_known()}")
        raise ValueError(f"type {type_name!r} is unknown; there are: {_known()}")
    reasons = AdapterSettings.ignored | settings_type.ignored
    ignored = [key for key in spec if key in reasons]
    wanted = {key: value for key, value in spec.items() if key not in ignored}
    try:
        # Not strict: LMCache's users write "true" and "10" in backend_params.
        settings = msgspec.convert(wanted, settings_type, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{type_name}: {error}") from None
    return settings, [f"{type_name}: {k} changes nothing: {reasons[k]}" for k in ignored]


def _known() -> str:
    return ", ".join(TYPES)
