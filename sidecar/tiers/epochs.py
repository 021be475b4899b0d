"""Epochs: what was stored before a clear is out of sight for ever.

The name of every record begins with the tag of an epoch, and the backend itself keeps one
tag, its mark: of the epoch that counts. A clear is a new mark. That is one write, whatever
can be listed or deleted, and it holds for all who use the backend, and for those who come later.
What bears another tag is left over: nobody finds it, and it is removed where that is possible.

Tags sort by age, and a mark that is older than one that this process has seen does not count: a
backend may lose its last writes, or answer with what it was told before. Then, and where the
mark is missing, a new epoch begins, empty.
"""

import calendar
import logging
import secrets
import threading
import time
from collections.abc import Sequence

from sidecar.tiers.base import Adapter, Bytes, Corrupt, Missing, TierError
from sidecar.tiers.names import ObjectName, is_tag

log = logging.getLogger(__name__)

# For how long a mark that was read is believed: a clear reaches all others in this time.
CHECKED_SECONDS = 6.0
_STAMP = "g%Y%m%dT%H%M%S"


def new_tag(after: str = "") -> str:
    """One that nobody has used, made now; newer than `after`, whatever clocks say."""
    stamp = time.strftime(_STAMP, time.gmtime())
    if after and stamp <= after[: len(stamp)]:
        seconds = calendar.timegm(time.strptime(after[: len(stamp)], _STAMP)) + 1
        stamp = time.strftime(_STAMP, time.gmtime(seconds))
    return f"{stamp}-{secrets.token_hex(6)}"


class Replaced(TierError):
    """The backend's mark names another epoch than `epoch`."""

    def __init__(self, epoch: "Epoch") -> None:
        super().__init__("replaced", "the backend has been cleared")
        self.epoch = epoch


class Marks:
    """The mark of one backend, as this process has seen it: `newest` is the last that counted.

    `lock` is held by the one thread that reads or writes the mark.
    """

    def __init__(self, adapter: Adapter, label: str) -> None:
        self.adapter = adapter
        self.lock = threading.Lock()
        self.newest = ""
        self._label = label

    def read(self) -> str | None:
        """The mark; None if there is none that may count. Raises TierError."""
        mark = self.read_any()
        if mark is None or mark < self.newest:
            return None
        self.newest = mark
        return mark

    def read_any(self) -> str | None:
        """The mark, however old. Raises TierError."""
        try:
            mark = self.adapter.read_mark()
        except Missing:
            return None
        except Corrupt as error:  # which says nothing of a record
            raise TierError("mark", str(error)) from None
        return mark if mark is not None and is_tag(mark) else None

    def write(self, tag: str) -> str:
        """Make `tag` the mark; the mark then, which may be another's. Raises TierError."""
        self.newest = tag  # whatever becomes of it: what was there before is not to count again
        self.adapter.write_mark(tag)
        mark = self.read()
        if mark is None:
            raise TierError("mark", "the backend does not keep what was written last")
        return mark

    def begin(self) -> str:
        """A new epoch where there is no mark; the mark then. Raises TierError."""
        mark = self.write(new_tag(self.newest))
        log.info(
            "L2 %s: it has no epoch mark, so it begins empty: nothing that another "
            "version may have stored there is found",
            self._label,
        )
        return mark


class Epoch:
    """The records of one epoch in a backend; names are without its tag.

    Without a `tag` it is the one that the mark names when it is first needed. With one it `is_new`,
    and `publish` makes it the mark. What is asked of it raises Replaced when it does not count
    any more. All methods but `end` block.
    """

    def __init__(self, marks: Marks, tag: str | None = None) -> None:
        self.tag = tag
        self.is_new = tag is not None
        self._marks = marks
        self._check_at = 0.0 if tag is None else float("inf")
        self._ended = False

    def next_tag(self) -> str:
        """For the epoch that is to take its place."""
        return new_tag(max(self._marks.newest, self.tag or ""))

    def end(self) -> None:
        """Another one has taken its place in this process. What is under way ends as its own."""
        self._ended = True

    def publish(self) -> None:
        """Make it the one that counts, for all; it is when this returns. Raises TierError."""
        assert self.is_new and self.tag is not None
        with self._marks.lock:
            before = self._marks.read_any() or ""
            if before > self.tag:  # what was stored in this one meanwhile is given up
                self.tag = new_tag(before)
            self._marks.write(self.tag)
            self._check_at = 0.0

    def check(self) -> None:
        """Raises Replaced if it is not the one that counts."""
        with self._marks.lock:
            self._check()

    def tagged(self, name: ObjectName) -> ObjectName:
        """The name of its record. Raises TierError."""
        if time.monotonic() >= self._check_at:
            with self._marks.lock:
                if time.monotonic() >= self._check_at:
                    self._check()
        assert self.tag is not None
        return name._replace(epoch=self.tag)

    def store(self, name: ObjectName, record: Bytes) -> None:
        self._marks.adapter.store(self.tagged(name), record)

    def load(self, name: ObjectName, record: Bytes) -> None:
        self._marks.adapter.load(self.tagged(name), record)

    def find(self, names: Sequence[ObjectName]) -> list[int | None]:
        return self._marks.adapter.find([self.tagged(name) for name in names])

    def delete(self, names: Sequence[ObjectName]) -> None:
        self._marks.adapter.delete([self.tagged(name) for name in names])

    def set_aside(self, name: ObjectName, reason: str) -> bool:
        return self._marks.adapter.set_aside(self.tagged(name), reason)

    def _check(self) -> None:
        if self._ended:
            # What was stored in it is told by its tag; without one there is nothing.
            if self.tag is None:
                raise Missing
            self._check_at = float("inf")
            return
        if self._check_at == float("inf"):
            return
        mark = self._marks.read()
        if self.tag is None:
            self.tag = self._marks.begin() if mark is None else mark
        elif mark != self.tag:
            raise Replaced(self)
        self._check_at = time.monotonic() + CHECKED_SECONDS
