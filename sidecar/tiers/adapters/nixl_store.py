"""Settings of the adapter types `nixl_store`, `nixl_store_dynamic` and `nixl_native`."""

import logging
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from sidecar.tiers.adapters.directory import Files
from sidecar.tiers.adapters.fs import DirectorySettings, check_absolute
from sidecar.tiers.adapters.moved_files import MovedFiles
from sidecar.tiers.adapters.nixl_files import Choice, NixlIO
from sidecar.tiers.adapters.nixl_objects import NixlObjects
from sidecar.tiers.base import Adapter
from sidecar.tiers.settings import GpuMover, NotNegative, adapter

log = logging.getLogger(__name__)

# What each backend reads. NIXL itself takes any key and says nothing.
PARAMS = {
    "POSIX": ("use_uring", "use_aio"),
    "GDS": ("batch_pool_size", "batch_limit", "max_request_size"),
    "GDS_MT": ("thread_count",),
    "HF3FS": ("mem_config", "mount_point"),
    "OBJ": (
        "bucket", "access_key", "secret_key", "session_token", "endpoint_override", "scheme",
        "region", "use_virtual_addressing", "req_checksum", "resp_checksum", "ca_bundle",
        "num_threads", "crtMinLimit", "throughput_target_gbps", "accelerated", "type",
    ),
    "AZURE_BLOB": (
        "account_url", "container_name", "connection_string", "ca_bundle", "num_threads",
    ),
}  # fmt: skip
# Read here, not by NIXL.
FILE_PARAMS = ("file_path", "use_direct_io")
OBJECT_PARAMS = ("key_prefix",)
# What LMCache's users write, and why it does nothing.
IGNORED_PARAMS = {
    "file_size": "a file is as long as its record",
    "shard_dirs": "files always lie in one folder per first byte of the hash",
    "ios_pool_size": "a queue serves one request at a time",
    "kernel_queue_size": "a queue serves one request at a time",
    "use_posix_aio": "it is off",
}
OBJECT_STORES = ("OBJ", "AZURE_BLOB")
# A queue of NIXL's serves one request at a time here; its default takes 11 MB.
_SMALL_QUEUE = {"ios_pool_size": "64", "kernel_queue_size": "16"}
_HF3FS_NEEDS = 'a NIXL built with 3FS; "fallback": true takes POSIX on the mounted directory'
_GPU_MOVERS = ("GDS", "GDS_MT")
_BOOL = {"true": True, "1": True, "false": False, "0": False}


@adapter("nixl_store", "nixl_store_dynamic", "nixl_native")
class NixlSettings(DirectorySettings, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Files or objects through NIXL.

    `fallback` is False for HF3FS: who asks for that has a 3FS cluster, and the server would run
    many times slower on it without a visible error.

    GDS is for the processes of GPUs, which read into their memory and write from it. The server
    itself, which moves host memory and uses no GPU, takes POSIX then.
    """

    backend: Annotated[
        Literal["POSIX", "GDS", "GDS_MT", "HF3FS", "OBJ", "AZURE_BLOB"],
        Meta(description="NIXL's plugin"),
    ]
    backend_params: Annotated[dict[str, Any], Meta(description="see below")] = msgspec.field(
        default_factory=dict
    )
    fallback: Annotated[
        bool | None,
        Meta(
            description="where the backend does not work: true takes POSIX instead of HF3FS, "
            "and libaio instead of io_uring; false refuses to start. Without it true, but for "
            "HF3FS"
        ),
    ] = None

    ignored: ClassVar[dict[str, str]] = {
        "pool_size": "files are opened as they are needed",
        "file_size": "a file is as long as its record",
    }

    def __post_init__(self) -> None:
        self._take_params()
        super().__post_init__()
        self._check_keys()
        if self.backend in OBJECT_STORES:
            if self.max_capacity_gb:
                raise ValueError(
                    f"max_capacity_gb does not go with {self.backend}: NIXL cannot delete "
                    "objects; use a lifecycle rule of the bucket, or the type s3"
                )
            return
        if self.backend in _GPU_MOVERS and self.fallback is False:
            raise ValueError(
                f"fallback false does not go with {self.backend}: whether a GPU can move files is "
                "known when its first worker registers, and the log says it then"
            )
        check_absolute("backend_params.file_path", self.backend_params.get("file_path", ""))
        for key in ("use_direct_io", "use_uring", "use_aio"):
            self._flag(key)
        if self.backend_params.get("mem_config", "auto") not in ("dram", "dram_zc", "auto"):
            raise ValueError("backend_params.mem_config is none of dram, dram_zc, auto")

    def build(self) -> Adapter:
        for key in self.backend_params.keys() & IGNORED_PARAMS.keys():
            log.warning("backend_params.%s changes nothing: %s", key, IGNORED_PARAMS[key])
        if self.backend in OBJECT_STORES:
            prefix = self.backend_params.get("key_prefix", "")
            return NixlObjects(self.backend, self._params, prefix)
        kind = Files if self.gpu_mover is None else MovedFiles
        return kind(
            self.directory,
            NixlIO(self._choices()),
            direct=self.direct,
            sync=self.sync,
            floor=self.floor_bytes,
            shared=self.shared,
        )

    @property
    def gpu_mover(self) -> GpuMover | None:
        return GpuMover(self.backend, self._params) if self.backend in _GPU_MOVERS else None

    @property
    def directory(self) -> str:
        return str(self.backend_params.get("file_path", ""))

    @property
    def direct(self) -> bool:
        return self._flag("use_direct_io", True)

    @property
    def wants_uring(self) -> bool:
        """Whether io_uring is tried first."""
        return self.backend in ("POSIX", *_GPU_MOVERS) and not self._flag("use_aio")

    @property
    def may_fall_back(self) -> bool:
        return self.backend != "HF3FS" if self.fallback is None else self.fallback

    @property
    def _params(self) -> dict[str, str]:
        """What NIXL's plugin is told."""
        known = PARAMS[self.backend]
        return {k: v for k, v in self.backend_params.items() if k in known}

    def _choices(self) -> list[Choice]:
        uring = _posix("io_uring", "use_uring", "a kernel and a seccomp profile that allow it")
        aio = _posix("libaio", "use_aio", "room below fs.aio-max-nr")
        posix = [aio] if self._flag("use_aio") else [uring, aio]
        fallback = self.may_fall_back
        if self.backend != "HF3FS":
            return posix if fallback else posix[:1]
        wanted = Choice(self.backend, self.backend, self._params, _HF3FS_NEEDS)
        return [wanted, *posix] if fallback else [wanted]

    def _take_params(self) -> None:
        """Values as NIXL takes them, which is as text; max_capacity_gb is ours."""
        params = {key: _as_text(key, value) for key, value in self.backend_params.items()}
        text = params.pop("max_capacity_gb", None)
        msgspec.structs.force_setattr(self, "backend_params", params)
        if text is None:
            return
        if self.max_capacity_gb:
            raise ValueError("max_capacity_gb is given in backend_params and outside of it")
        try:
            capacity = msgspec.convert(text, NotNegative, strict=False)
        except msgspec.ValidationError:
            raise ValueError(f"backend_params.max_capacity_gb {text!r} is no size in GiB") from None
        msgspec.structs.force_setattr(self, "max_capacity_gb", capacity)

    def _check_keys(self) -> None:
        if self._flag("use_posix_aio"):
            raise ValueError(
                "backend_params.use_posix_aio is refused: after one error of the disk it fails "
                "for good, and it reports errors while bytes still arrive; leave it out"
            )
        own = OBJECT_PARAMS if self.backend in OBJECT_STORES else FILE_PARAMS
        known = (*own, *PARAMS[self.backend])
        for key in self.backend_params:
            if key not in (*known, *IGNORED_PARAMS):
                raise ValueError(
                    f"backend_params.{key} is unknown to {self.backend}; there are: "
                    + ", ".join(known)
                )

    def _flag(self, key: str, default: bool = False) -> bool:
        text = self.backend_params.get(key)
        if text is None:
            return default
        if text.lower() not in _BOOL:
            raise ValueError(f"backend_params.{key} {text!r} is not true or false")
        return _BOOL[text.lower()]


def _as_text(key: str, value: Any) -> str:
    """YAML and JSON have types where LMCache's users write "true" and "10"."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise ValueError(f"backend_params.{key} is neither text nor a number")
    return str(value)


def _posix(queue: str, flag: str, needs: str) -> Choice:
    return Choice(f"POSIX with {queue}", "POSIX", {flag: "true", **_SMALL_QUEUE}, needs)
