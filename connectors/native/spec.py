"""What vLLM loads by name: `spec_name` SidecarOffloadingSpec, `spec_module_path` this module."""

import connectors.native.supported  # noqa: F401

# isort: split
import functools
import os
from collections.abc import Callable

import vllm
import zmq
from vllm.platforms import current_platform
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    OffloadingManager,
    OffloadingSpec,
    OffloadingWorker,
)
from vllm.v1.kv_offload.config import OffloadingConfig

from connectors.native import wire
from connectors.native.arena import Arena, Arenas
from connectors.native.connection import Dealer
from connectors.native.cpu_worker import CpuWorker
from connectors.native.geometry import Geometry
from connectors.native.gpu_worker import GpuWorker
from connectors.native.identity import block_format, engine_identity, rank_layout
from connectors.native.manager import SidecarOffloadingManager
from connectors.native.membership import Membership
from connectors.native.pinning import pin, registrar
from connectors.native.settings import Settings


class SidecarOffloadingSpec(OffloadingSpec):  # type: ignore[misc]
    """Made in the scheduler's process and in each worker's.

    Raises ValueError for what is not served: settings that cannot work, a layout of host memory
    that vLLM may be asked for.
    """

    def __init__(self, config: OffloadingConfig) -> None:
        if config.canonical_layout:
            raise ValueError("kv-sidecar keeps blocks as they are: canonical_layout is not served")
        super().__init__(config)
        self.replicated_layout = config.replicated_layout
        self._settings = Settings.read(config.extra_config)
        self._geometry = Geometry.of(config, config.parallel.rank)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._connect = functools.partial(Dealer, context, self._settings.url)
        self._incarnation = os.urandom(16)
        self._manager: SidecarOffloadingManager | None = None
        self._worker: OffloadingWorker | None = None

    def get_manager(self) -> OffloadingManager:
        if self._manager is None:
            self._manager = SidecarOffloadingManager(
                self._introduction,
                self._connect,
                self._geometry.object_bytes,
                self._settings.budget_ms / 1000,
            )
        return self._manager

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """The worker, and the thread that maps the arena for it. Does not wait for the sidecar."""
        if self._worker is None:
            self._worker = self._make_worker(kv_caches)
        return self._worker

    def _introduction(self) -> wire.Attach:
        config, manager = self.config, self._manager
        return wire.Attach(
            engine=config.engine_id,
            incarnation=self._incarnation,
            model=config.model.name,
            ranks=config.parallel.world_size,
            groups=1 + max(group.group_id for group in config.groups),
            object_bytes=self._geometry.object_bytes,
            chunk_tokens=config.groups[0].tokens_per_block * config.cache.blocks_per_chunk,
            # vLLM sets it after it has made the manager, and before the first request.
            identity=engine_identity(
                config, vllm.__version__, current_platform.device_type, kv_cache_utils.NONE_HASH
            ),
            events=manager is not None and manager.announcements.on,
        )

    def _make_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        config, geometry, arenas = self.config, self._geometry, Arenas()
        device = kv_caches.tensors[0].tensor.device
        join = wire.Join(
            engine=config.engine_id,
            incarnation=self._incarnation,
            rank=config.parallel.rank,
            ranks=config.parallel.world_size,
            object_bytes=geometry.object_bytes,
            layout=rank_layout(kv_caches, geometry.offset, block_format(device.type)),
        )

        def prepare(arena: Arena, check: Callable[[], None]) -> None:
            if device.type != "cpu":
                pin(arena, device, *registrar(), check)

        membership = Membership(join, arenas, self._connect, prepare)
        kind = CpuWorker if device.type == "cpu" else GpuWorker
        worker = kind(kv_caches, geometry, arenas, membership)
        membership.start()
        return worker
