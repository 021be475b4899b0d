"""Finding out in the background what a backend has from before."""

from collections.abc import Callable
from functools import partial

from sidecar.tiers.base import Adapter, Found, TierError
from sidecar.tiers.epochs import Epoch
from sidecar.tiers.names import ObjectName
from sidecar.tiers.threads import Threads

_ORDERED_A_TURN = 512


class Scanner:
    """One scan at a time, on a thread of its own. Loop thread only.

    `on_found(batch)` is called for all that there is, `on_order(names)` then with the names of
    all epochs, the last used first, and `on_end(epoch, error)` at the end.
    """

    def __init__(
        self, label: str, adapter: Adapter, post: Callable[[Callable[[], None]], None],
        on_found: Callable[[list[Found]], None], on_order: Callable[[list[ObjectName]], None],
        on_end: Callable[[Epoch, TierError | None], None],
    ) -> None:  # fmt: skip
        self.running = False
        self._label = label
        self._adapter = adapter
        self._post = post
        self._on_found = on_found
        self._on_order = on_order
        self._on_end = on_end
        self._thread: Threads | None = None

    def start(self, epoch: Epoch) -> None:
        """Begin, unless one is running. `epoch` is the one that counts now."""
        if self.running:
            return
        self.running = True
        self._thread = Threads(f"l2-{self._label}-scan", 1, self._post)
        self._thread.submit(partial(self._scan, epoch), partial(self._ended, epoch))
        self._thread.stop()

    def alive(self) -> bool:
        """Whether its thread is still at work."""
        return self._thread is not None and self._thread.alive()

    def _scan(self, epoch: Epoch) -> None:
        newest_first: list[tuple[float, ObjectName]] = []
        epoch.check()  # so that its tag is known
        for batch in self._adapter.scan():
            self._post(partial(self._on_found, batch))
            newest_first += [(found.used_at, found.name) for found in batch]
        newest_first.sort(key=lambda item: item[0], reverse=True)
        for at in range(0, len(newest_first), _ORDERED_A_TURN):
            names = [name for _, name in newest_first[at : at + _ORDERED_A_TURN]]
            self._post(partial(self._on_order, names))

    def _ended(self, epoch: Epoch, _: None, error: TierError | None) -> None:
        self.running = False
        self._on_end(epoch, error)
