"""How a plan of the manager reaches the workers: slots of one sidecar's arena."""

from collections.abc import Sequence

from vllm.v1.kv_offload.base import BlockIDsLoadStoreSpec


class ArenaSlots(BlockIDsLoadStoreSpec):  # type: ignore[misc]
    """Slots (int32, units of SLOT_BYTES) in the arena of `server`, one for each chunk."""

    def __init__(self, slots: Sequence[int], server: bytes) -> None:
        super().__init__(list(slots))
        self.server = server
