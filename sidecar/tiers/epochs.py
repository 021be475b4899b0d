"""Epochs: what was stored before a clear is out of sight for ever.

The name of every record begins with the tag of an epoch, and the backend itself keeps one
tag, its mark: of the epoch that counts. A clear is a new mark. That is one write, whatever
can be listed or deleted, and it holds for all who use the backend, and for those who come later.
What bears another tag is left over: nobody finds it, and it is removed where that is possible.

Tags sort by age, and a mark that is older than a clear that this process has seen does not count:
a backend may lose its last writes, or answer with what it was told before. Then, and where the
mark is missing, a new epoch begins, empty. Nobody has cleared anything by that: such a mark says
which clear is the last that is known, `<tag>+<tag of the clear>`, and if the one that was missing
comes back, what is stored there is found again.
"""

import calendar
import logging
import secrets
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

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
    """The backend's mark names another epoch than `epoch`, which has been `cleared` or not."""

    def __init__(self, epoch: "Epoch", cleared: bool) -> None:
        super().__init__("replaced", "another epoch counts now")
        self.epoch = epoch
        self.cleared = cleared


class _Mark(NamedTuple):
    """The epoch that counts, and the last clear that is known to whoever began it."""

    tag: str
    clear: str


class Marks:
    """The mark of one backend, as this process has seen it: `cleared` is the newest clear.

    `lock` is held by the one thread that reads or writes the mark.
    """

    def __init__(self, adapter: Adapter, label: str) -> None:
        self.adapter = adapter
        self.lock = threading.Lock()
        self.cleared = ""
        self._own_clear = ""
        self._newest = ""  # of all tags
        self._label = label

    def elsewhere(self) -> "Marks":
        """Where the adapter uses another place now, of which nothing is known.

        What was cleared by this process holds there too: it may have been meant.
        """
        marks = Marks(self.adapter, self._label)
        marks.cleared = marks._own_clear = self._own_clear
        marks._newest = self._newest
        return marks

    def new_tag(self, after: str = "") -> str:
        """One that is newer than all that were seen, and than `after`."""
        return new_tag(max(self._newest, after))

    def read(self) -> str | None:
        """The tag of the epoch that counts; None if there is no mark that may. Raises TierError."""
        mark = self._read()
        if mark is None or mark.clear < self.cleared:
            return None
        self.cleared = mark.clear
        return mark.tag

    def begin(self) -> str:
        """A new epoch where there is no mark; the tag that counts then. Raises TierError."""
        tag = self.new_tag()
        log.info(
            "L2 %s: it has no epoch mark, so it begins empty: nothing that another "
            "version may have stored there is found",
            self._label,
        )
        return self._write(tag, f"{tag}+{self.cleared}")

    def clear(self, tag: str) -> str:
        """Make `tag`, or a newer one, the epoch that counts; its tag. Raises TierError."""
        before = self._read()
        if max(before.tag if before else "", self.cleared) > tag:
            tag = self.new_tag()
        # Whatever becomes of it: what was there before is not to count again.
        self.cleared = self._own_clear = tag
        self._write(tag, tag)
        return tag

    def _write(self, tag: str, mark: str) -> str:
        """The tag that counts then, which may be another's."""
        self._newest = max(self._newest, tag)
        self.adapter.write_mark(mark)
        counts = self.read()
        if counts is None:
            raise TierError("mark", "the backend does not keep what was written last")
        return counts

    def _read(self) -> _Mark | None:
        """The mark, however old."""
        try:
            text = self.adapter.read_mark()
        except Missing:
            return None
        except Corrupt as error:  # which says nothing of a record
            raise TierError("mark", str(error)) from None
        mark = None if text is None else _parsed(text)
        if mark is not None:
            self._newest = max(self._newest, *mark)
        return mark


def _parsed(text: str) -> _Mark | None:
    """None if it is no mark."""
    tag, plus, clear = text.partition("+")
    if not (is_tag(tag) and is_tag(clear)) or (plus and not tag):
        return None
    return _Mark(tag, clear if plus else tag)


class Epoch:
    """The records of one epoch in a backend; names are without its tag.

    Without a `tag` it is the one that the mark names when it is first needed. With one it `is_new`,
    and `publish` makes it the mark. What is asked of it raises Replaced when it does not count
    any more. All methods but `end` block.
    """

    def __init__(self, marks: Marks, tag: str | None = None) -> None:
        self.tag = tag
        self.is_new = tag is not None
        self._clear = ""
        self._marks = marks
        self._check_at = 0.0 if tag is None else float("inf")
        self._ended = False

    def next_tag(self) -> str:
        """For the epoch that is to take its place."""
        return self._marks.new_tag(self.tag or "")

    def end(self) -> None:
        """Another one has taken its place in this process. What is under way ends as its own."""
        self._ended = True

    def publish(self) -> None:
        """Make it the one that counts, for all; it is when this returns. Raises TierError."""
        assert self.is_new and self.tag is not None
        with self._marks.lock:
            # If it is another one now, what was stored in this one meanwhile is given up.
            self.tag = self._marks.clear(self.tag)
            self._clear = self._marks.cleared
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
        return name.in_epoch(self.tag)

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
            self._clear = self._marks.cleared
        elif mark != self.tag:
            raise Replaced(self, cleared=self._marks.cleared > self._clear)
        self._check_at = time.monotonic() + CHECKED_SECONDS
