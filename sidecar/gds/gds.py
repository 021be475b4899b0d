"""The parts of this package, and what the rest of the server tells and asks them."""

from collections.abc import Callable

from sidecar.engines.cuda.gpus import GpuFiles
from sidecar.engines.cuda.protocol import OpenFiles
from sidecar.engines.registry import Instance, Registry
from sidecar.flow import Flows
from sidecar.gds.file_memory import FileMemory, moves_files
from sidecar.gds.file_reads import FileReads
from sidecar.gds.file_stores import FileStores
from sidecar.gds.store_handler import StoresToFiles
from sidecar.handlers.core import Core
from sidecar.handlers.eviction import Eviction
from sidecar.handlers.stores import Stores
from sidecar.telemetry import Telemetry
from sidecar.tiers.adapters.moved_files import MovedFiles
from sidecar.tiers.backend import Backend
from sidecar.tiers.bypass import Source
from sidecar.tiers.names import ObjectName
from sidecar.tiers.tiers import Tiers


class Gds:
    """`Bypass` of the tiers and `PastL1` of the handlers. Loop thread only.

    `stores` is None where all objects are stored through the L1.
    """

    def __init__(self, tiers: Tiers, telemetry: Telemetry, flows: Flows) -> None:
        files = {
            backend: backend.adapter
            for backend in tiers.backends
            if isinstance(backend.adapter, MovedFiles)
        }
        self.reads = FileReads(files, telemetry, flows)
        self.stores: FileStores | None = None
        # GPUs write past the L1 where no other adapter wants the objects, the L1 is not to keep
        # them, and nobody else writes to the files.
        backend = tiers.backends[0]
        if tiers.skip_l1 and len(tiers.backends) == len(files) == 1 and not backend.adapter.shared:
            self.stores = FileStores(backend, files[backend], self.reads, telemetry, flows)
        self._tiers = tiers
        tiers.bypass = self

    @property
    def gpu_files(self) -> GpuFiles:
        """For the processes of GPUs: the first adapter's way counts."""
        movers = [backend.settings.gpu_mover for backend in self._tiers.backends]
        mover = next(mover for mover in movers if mover is not None)
        return GpuFiles(OpenFiles(*mover), FileMemory)

    # --- For the handlers ---

    def source(self, worker: Instance, registry: Registry) -> Source | None:
        """Where a lookup finds objects past the L1, if all workers of this layout can read them."""
        of_layout = worker.model_name, worker.world_size, worker.fingerprint
        able = all(
            moves_files(other.memory)
            for other in registry.instances.values()
            if (other.model_name, other.world_size, other.fingerprint) == of_layout
        )
        return self.reads if able else None

    def moves_files(self, worker: Instance) -> bool:
        return moves_files(worker.memory)

    def store_handler(
        self, core: Core, eviction: Eviction, lost: Callable[[Instance], None]
    ) -> Stores:
        if self.stores is None:
            return Stores(core, eviction, lost)
        return StoresToFiles(self.stores, core, eviction, lost)

    # --- For the tiers ---

    def writing(self, backend: Backend) -> int:
        return len(self.stores) if self.stores is not None else 0

    def busy(self, backend: Backend) -> set[ObjectName]:
        return self.reads.busy(backend)

    def kept(self, backend: Backend, name: ObjectName) -> None:
        self.reads.kept(backend, name)

    def loaded(self, name: ObjectName) -> None:
        self.reads.loaded(name)

    def forget_all(self) -> None:
        self.reads.forget_all()
