"""vLLM's OffloadingConnector, whose KV events are of all that the sidecar can give this engine.

vLLM loads it by its name and this module's path. As it comes, vLLM tells routers of what this
engine has stored itself. All else is vLLM's.
"""

import connectors.native.supported  # noqa: F401

# isort: split
from collections.abc import Iterable
from typing import Any

from vllm.config import VllmConfig
from vllm.distributed.kv_events import BlockStored, KVCacheEvent
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole, offloading_connector
from vllm.v1.kv_cache_interface import KVCacheConfig

from connectors.native.announcements import Announcements
from connectors.native.manager import SidecarOffloadingManager
from connectors.offloading import DESCRIBING


class OffloadingConnector(offloading_connector.OffloadingConnector):  # type: ignore[misc]
    """Raises ValueError with KV events if vLLM is not to describe them, or for another manager."""

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._announcements: Announcements | None = None
        events = vllm_config.kv_events_config
        if role == KVConnectorRole.SCHEDULER and events and events.enable_kv_cache_events:
            self._announcements = self._begin(vllm_config.kv_transfer_config)

    def take_events(self) -> Iterable[KVCacheEvent]:
        """What routers are to learn after this step."""
        # What vLLM makes of the manager's questions: a description of each, or of what is to go.
        answers = [each for each in super().take_events() if isinstance(each, BlockStored)]
        if self._announcements is None:
            return ()
        self._announcements.describe(answers)
        return self._announcements.events()

    def _begin(self, config: Any) -> Announcements:
        if not config.kv_connector_extra_config.get(DESCRIBING):
            raise ValueError(f"KV events need {DESCRIBING} in kv_connector_extra_config")
        manager = self.connector_scheduler.manager
        if not isinstance(manager, SidecarOffloadingManager):
            raise ValueError(f"this connector is for kv-sidecar, not for {type(manager).__name__}")
        manager.announcements.on = True
        return manager.announcements
