"""What a clear has put out of sight, on its way out of the backend.

Nobody finds it, so nothing waits for it: a few go at a time, and what cannot be removed is
counted, and tried again.
"""

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

from sidecar.tiers.base import Adapter, Relocated, TierError
from sidecar.tiers.names import ObjectName
from sidecar.tiers.removal import Run
from sidecar.tiers.use_order import UseOrder

_DELETED_A_CALL = 256

Sizes = dict[ObjectName, int] | UseOrder


class Leftovers:
    """Those of one backend. Loop thread only.

    `run(call, done)` runs a call that removes on a thread, if `allowed()`. `deleted` counts since
    it was set to 0; `on_stuck(bytes)` is told how much cannot be removed.
    """

    def __init__(
        self, adapter: Adapter, run: Run, allowed: Callable[[], bool],
        on_stuck: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.deleted = 0
        self._adapter = adapter
        self._run = run
        self._allowed = allowed
        self._on_stuck = on_stuck
        # An epoch, and names without its tag; or None, and names with theirs.
        self._waiting: deque[tuple[str | None, Sizes]] = deque()
        self._stuck: dict[ObjectName, int] = {}
        self._removing = 0

    @property
    def waiting(self) -> int:
        """How many are known and are still to be tried."""
        return self._removing + sum(len(sizes) for _, sizes in self._waiting)

    @property
    def stuck(self) -> int:
        """How many could not be removed so far."""
        return len(self._stuck)

    def add(self, epoch: str | None, sizes: Sizes) -> None:
        """These are left over, with their sizes, which are used up.

        Names are without the tag of the `epoch`, or with it if that is None.
        """
        if sizes:
            self._waiting.append((epoch, sizes))
            self.pump()

    def forget(self) -> None:
        """They are out of reach."""
        self._waiting.clear()
        self._stuck.clear()
        self._on_stuck(0)

    def retry(self) -> None:
        """Once in a while: try again what could not be removed."""
        if self._stuck and not self.waiting and self._allowed():
            self.add(None, dict(self._stuck))
        self.pump()

    def pump(self) -> None:
        """Begin to remove what waits for it."""
        while self._waiting and not self._removing and self._allowed():
            batch = self._next_batch()
            self._removing = len(batch)
            self._run(partial(self._adapter.delete, list(batch)), partial(self._ended, batch))

    def _next_batch(self) -> dict[ObjectName, int]:
        batch: dict[ObjectName, int] = {}
        while self._waiting and len(batch) < _DELETED_A_CALL:
            epoch, sizes = self._waiting[0]
            name, size = sizes.popitem()
            batch[name if epoch is None else name.in_epoch(epoch)] = size
            if not sizes:
                self._waiting.popleft()
        return batch

    def _ended(self, batch: Mapping[ObjectName, int], _: None, error: TierError | None) -> None:
        self._removing = 0
        if isinstance(error, Relocated):
            return  # they are out of reach
        if error is None:
            self.deleted += len(batch)
            for name in batch:
                self._stuck.pop(name, None)
        else:
            self._stuck.update(batch)
        self._on_stuck(sum(self._stuck.values()))
        self.pump()
