"""File system calls where others make and remove files meanwhile."""

import errno
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from stat import S_ISREG
from typing import Any, TypeVar

from sidecar.tiers.base import Corrupt

_T = TypeVar("_T")
_U = TypeVar("_U")
_TRIES = 10
_SMALL = 256  # bytes


def size_of(file: str) -> int | None:
    """In bytes, None if there is no such regular file."""
    try:
        status = os.lstat(file)
    except FileNotFoundError:
        return None
    return status.st_size if S_ISREG(status.st_mode) else None


def open_regular(file: str, flags: int) -> int:
    """A descriptor of a regular file that is there. Raises Corrupt for anything else.

    Opening a FIFO would wait for its other end, and opening a device do whatever that does.
    """
    try:
        fd = os.open(file, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENOENT and not S_ISREG(os.lstat(file).st_mode):
            raise Corrupt("type", "it is no regular file") from None
        raise
    if not S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Corrupt("type", "it is no regular file")
    # Else io_uring gives up a read that would wait for the disk.
    os.set_blocking(fd, True)
    return fd


def entries(path: str) -> Iterator[os.DirEntry[str]]:
    """What is in a directory; nothing if it has vanished or is none."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as found:
        yield from found


def in_directory(directory: str, action: Callable[[], _T]) -> _T:
    """Do `action`, making `directory` if that is what it needs.

    More than once: an empty one may be removed again before there is something in it.
    """
    for _ in range(_TRIES):
        try:
            return action()
        except FileNotFoundError:
            with suppress(FileNotFoundError):
                os.makedirs(directory, 0o700, exist_ok=True)
    return action()


def read_text(file: str) -> str | None:
    """What a small regular file holds, None if there is no such file."""
    try:
        fd = open_regular(file, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as opened:
        return opened.read(_SMALL).decode("ascii", "replace").strip()


def write_text(file: str, text: str) -> None:
    """A new file that holds `text`, durable when this returns."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as opened:
        opened.write(text.encode("ascii") + b"\n")
        opened.flush()
        os.fsync(fd)


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def in_threads(call: Callable[[_T], _U], items: Iterable[_T], threads: int) -> Iterator[_U]:
    """What `call` returns for each item, as it comes; raises the first that it raises.

    Not concurrent.futures: the interpreter would wait at its end for a call that is stuck.
    """
    todo: queue.SimpleQueue[_T | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[Callable[[], _U]] = queue.SimpleQueue()

    def work() -> None:
        while (item := todo.get()) is not None:
            try:
                result = call(item)
                done.put(lambda result=result: result)  # type: ignore[misc]
            except Exception as error:
                done.put(partial(_raise, error))

    count = 0
    for item in items:
        todo.put(item)
        count += 1
    for _ in range(threads):
        todo.put(None)
        threading.Thread(target=work, daemon=True).start()
    for _ in range(count):
        yield done.get()()


def _raise(error: Exception) -> Any:
    raise error
