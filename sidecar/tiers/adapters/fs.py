"""Settings of the adapter types `fs` and `fs_native`: a directory (`directory.Files`)."""

from abc import abstractmethod
from pathlib import PurePosixPath
from typing import Annotated, ClassVar

from msgspec import Meta

from sidecar.tiers.adapters.directory import Files, Sync
from sidecar.tiers.adapters.file_io import DirectIO
from sidecar.tiers.settings import AdapterSettings, NotNegative, adapter


class DirectorySettings(AdapterSettings, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What everything that keeps files has in common."""

    sync: Annotated[
        Sync,
        Meta(
            description="what a power failure may cost: `none` syncs nothing, `data` each file, "
            "`full` its folder too"
        ),
    ] = "none"
    min_free_gb: Annotated[
        NotNegative, Meta(description="GiB of the file system that stay free")
    ] = 1.0
    shared: Annotated[
        bool,
        Meta(
            description="other servers use the directory at the same time, so nothing in it is "
            "counted or evicted"
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.shared and self.max_capacity_gb:
            raise ValueError(
                "max_capacity_gb does not go with shared: no server knows how much the others "
                "have written; min_free_gb limits them all"
            )

    @property
    def floor_bytes(self) -> int:
        return int(self.min_free_gb * 2**30)

    @property
    @abstractmethod
    def directory(self) -> str:
        """Where the files are; empty if there are none."""

    @property
    @abstractmethod
    def direct(self) -> bool:
        """Whether they are opened with O_DIRECT."""


@adapter("fs", "fs_native")
class FilesSettings(DirectorySettings, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Plain files."""

    base_path: Annotated[str, Meta(description="the directory, absolute")]
    relative_tmp_dir: Annotated[
        str,
        Meta(
            description="folder in `base_path` for files that are not complete, on the same file "
            "system; without it `.tmp`"
        ),
    ] = ""
    use_odirect: Annotated[bool, Meta(description="past the page cache, where that works")] = True

    ignored: ClassVar[dict[str, str]] = {
        "read_ahead_size": "a record is read whole",
        "read_io_depth": "num_workers says how many are read at once",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_absolute("base_path", self.base_path)
        temp = PurePosixPath(self.relative_tmp_dir)
        if temp.is_absolute() or ".." in temp.parts or temp.parts[:1] in _TAKEN:
            raise ValueError(f"relative_tmp_dir {self.relative_tmp_dir!r} is no folder of its own")

    @property
    def directory(self) -> str:
        return self.base_path

    @property
    def direct(self) -> bool:
        return self.use_odirect

    def build(self) -> Files:
        return Files(
            self.directory,
            DirectIO(),
            temp=self.relative_tmp_dir or ".tmp",
            direct=self.direct,
            sync=self.sync,
            floor=self.floor_bytes,
            shared=self.shared,
        )


_TAKEN = (("objects",), ("quarantine",))


def check_absolute(key: str, path: str) -> None:
    """Raises ValueError for a path that would depend on where the server was started."""
    if not path.startswith("/"):
        raise ValueError(f"{key} {path!r} is not absolute")
