"""Where a stack keeps what it needs while it runs, and the lock that says that it does."""

import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from launch import processes
from launch.errors import StackError

# What stays when a stack has ended: the logs, and the lock, which cannot be removed while another
# launcher may be about to take it.
_KEPT = ("lock", "logs")


def parent() -> Path:
    """The directory of this user's stacks. Short: a Unix socket's path has at most 107 bytes."""
    return Path(os.environ.get("LAUNCH_RUN_DIR") or f"/tmp/kv-sidecar-{os.getuid()}").absolute()


def known() -> list["RunDirectory"]:
    """Of this user's stacks those that run, or that were killed and left something.

    Raises StackError where others could have written what is there.
    """
    if not parent().exists():
        return []
    _check_private(parent())
    paths = sorted(parent().iterdir())
    found = [RunDirectory(path) for path in paths if (path / "lock").exists()]
    return [directory for directory in found if directory.record() or directory.is_locked()]


class RunDirectory:
    """`parent()/NAME`."""

    def __init__(self, path: Path, logs: str = "") -> None:
        self.path = path
        self.name = path.name
        self.logs = Path(logs).absolute() if logs else path / "logs"
        self.lock = path / "lock"
        self.socket = path / "supervisor.sock"
        self.configuration = path / "supervisord.conf"
        self.temporary = path / "tmp"

    def script(self, program: str) -> Path:
        return self.path / "bin" / program

    def log(self, program: str) -> Path:
        return self.logs / f"{program}.log"

    def record(self) -> dict[str, Any]:
        """What the launcher wrote about the stack; empty when it has ended in order."""
        try:
            found: dict[str, Any] = json.loads((self.path / "stack.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def write_record(self, record: dict[str, Any]) -> None:
        """Replace the record as a whole: others read it at any time."""
        new = self.path / "stack.json.new"
        new.write_text(json.dumps(record, indent=1))
        new.rename(self.path / "stack.json")

    def launcher(self) -> int | None:
        """The process that holds the lock, if one does."""
        if not self.is_locked():
            return None
        # Read before it is written anew, it names a launcher of the past.
        pid, _, started = self.lock.read_text().partition(" ")
        found = processes.read(int(pid)) if pid.isdecimal() else None
        return found.pid if found and str(found.started) == started else None

    def is_locked(self) -> bool:
        try:
            with open(self.lock) as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock. Raises StackError where another launcher has it.

        The kernel lets go of it when this process ends, however it ends.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(self.path.parent)
        self.path.mkdir(mode=0o700, exist_ok=True)
        with open(self.lock, "a+") as lock:
            if not _lock(lock):
                raise StackError(_in_use(self))
            lock.truncate(0)
            own = processes.read(os.getpid())
            assert own
            lock.write(f"{own.pid} {own.started}")
            lock.flush()
            yield

    def clear(self) -> None:
        """Remove everything but the logs."""
        for path in self.path.iterdir():
            if path.name in _KEPT:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _lock(file: TextIO) -> bool:
    """Several tries: `is_locked` of a status or stop command holds it for a moment."""
    for _ in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1)
    return False


def _in_use(directory: RunDirectory) -> str:
    return (
        f"the stack {directory.name} runs already (launcher {directory.launcher()}): end it with "
        f"launch/stop.sh --name {directory.name}, or give this one another --name"
    )


def _check_private(path: Path) -> None:
    """/tmp is everyone's: what others could write to is not trusted with scripts to run, nor to
    say which process to signal."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise StackError(
            f"{path} is not a directory that only this user can write to: see LAUNCH_RUN_DIR"
        )
