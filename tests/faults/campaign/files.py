"""Neighbours on the same disk, under the same user: what is in the L2's directory changes."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.campaign.target import Neighbour, Target
from tests.support.disks import files_below


def _to_each(target: Target, change: Callable[[Path], None]) -> None:
    """Do something to one record after the other."""
    while target.goes_on():
        records = [target.l2_path / each for each in files_below(target.l2_path)]
        target.random.shuffle(records)
        for path in records[:50]:
            with contextlib.suppress(OSError, ValueError):  # it may be gone, or empty
                change(path)
        time.sleep(0.05)


def bits_flipped(target: Target) -> None:
    """In headers and in bytes, as a bad disk would."""

    def flip(path: Path) -> None:
        place = target.random.randrange(path.stat().st_size)
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << target.random.randrange(8)]))

    _to_each(target, flip)


def files_cut_short(target: Target) -> None:
    _to_each(target, lambda path: os.truncate(path, target.random.randrange(path.stat().st_size)))


def files_swapped(target: Target) -> None:
    """A record of one prompt under the name of another."""
    last: list[Path] = []

    def swap(path: Path) -> None:
        if last:
            spare = path.with_suffix(".spare")
            shutil.copyfile(last[0], spare)
            spare.rename(path)
        last[:] = [path]

    _to_each(target, swap)


def pipes_for_files(target: Target) -> None:
    """A FIFO, whose opening waits for a writer for ever, under the name of a record."""

    def replace(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    _to_each(target, replace)


ROWS: dict[str, Neighbour] = {
    "bits of records flipped": bits_flipped,
    "records cut short": files_cut_short,
    "records swapped": files_swapped,
    "pipes in place of records": pipes_for_files,
}
