"""File system calls where others make and remove files meanwhile."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")


def size_of(file: str) -> int | None:
    """In bytes, None if there is no such file."""
    try:
        return os.stat(file).st_size
    except FileNotFoundError:
        return None


def entries(path: str) -> Iterator[os.DirEntry[str]]:
    """What is in a directory; nothing if it has vanished or is none."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as found:
        yield from found


def in_directory(directory: str, action: Callable[[], _T]) -> _T:
    """Do `action`, making `directory` if that is what it needs."""
    try:
        return action()
    except FileNotFoundError:
        os.makedirs(directory, 0o700, exist_ok=True)
        return action()


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
