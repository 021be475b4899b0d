"""A worker on a GPU with an older lmcache, as far as its messages go; started like old_client.py.

The release's own message queue, keys, wrappers and serialisation make the messages. Only what they
would ask a GPU for, the handles of tensors and events, is given by the test.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import zmq
from lmcache.utils import EngineType
from lmcache.v1.multiprocess import custom_types, mq
from lmcache.v1.multiprocess.protocol import RequestType, get_response_class
from old_client import serve

SECONDS = 60.0


class Client:
    """One connection, of a worker and a scheduler at once."""

    def start(self, url: str, model: str, instance: int, tensors: list[dict[str, Any]]) -> None:
        """Register memory; `tensors` are descriptors in the form of 0.5.6, bytes in hexadecimal."""
        self.queue = mq.MessageQueueClient(url, zmq.Context())
        self.model, self.instance = model, instance
        self.chunk = self._ask("GET_CHUNK_SIZE")
        groups = [[]] if self._payloads("REGISTER_KV_CACHE") == 7 else []
        wrappers = [_wrapper(tensor) for tensor in tensors]
        hints = {"kv_layout": "HND"}
        self._ask(
            "REGISTER_KV_CACHE", instance, wrappers, model, 1, EngineType.VLLM, hints, *groups
        )

    def store(self, tokens: list[int], blocks: list[int], event: str) -> list[Any]:
        """The event that is answered, in hexadecimal, and whether it is stored."""
        event_bytes, stored = self._transfer("STORE", tokens, blocks, event)
        return [event_bytes.hex(), stored]

    def retrieve(self, tokens: list[int], blocks: list[int], event: str) -> list[Any]:
        event_bytes, loaded = self._transfer("RETRIEVE", tokens, blocks, event, 0)
        return [event_bytes.hex(), loaded]

    def lookup(self, tokens: list[int]) -> int:
        self._ask("LOOKUP", self._key(tokens, None), 1)
        found = None
        while found is None:
            found = self._ask("QUERY_PREFETCH_STATUS", "r")
        return int(found)

    def end(self) -> None:
        self._ask("END_SESSION", "r")
        self._ask("UNREGISTER_KV_CACHE", self.instance)

    def _transfer(
        self, name: str, tokens: list[int], blocks: list[int], event: str, *more: int
    ) -> Any:
        ids = [blocks] if self._payloads("REGISTER_KV_CACHE") == 7 else blocks
        key = self._key(tokens, 0)
        return self._ask(name, key, self.instance, ids, bytes.fromhex(event), *more)

    def _key(self, tokens: list[int], worker: int | None) -> Any:
        names = ("IPCCacheServerKey", "IPCCacheEngineKey")
        (of, *_) = (getattr(custom_types, n) for n in names if hasattr(custom_types, n))
        more = {"num_kv_readers": 1} if "num_kv_readers" in of.__dataclass_fields__ else {}
        return of(
            model_name=self.model, world_size=1, worker_id=worker, token_ids=tuple(tokens),
            start=0, end=len(tokens), request_id="r", **more,
        )  # fmt: skip

    def _ask(self, name: str, *payloads: Any) -> Any:
        request = RequestType[name]
        future = self.queue.submit_request(request, list(payloads), get_response_class(request))
        return future.result(timeout=SECONDS)

    @staticmethod
    def _payloads(name: str) -> int:
        protocol = importlib.import_module("lmcache.v1.multiprocess.protocol")
        return len(protocol.get_payload_classes(RequestType[name]))


def _wrapper(tensor: dict[str, Any]) -> Any:
    """The release's wrapper of a tensor, with this state in place of a GPU's."""
    try:
        module = importlib.import_module("lmcache.v1.platform.cuda.ipc_wrapper")
    except ModuleNotFoundError:
        module = custom_types
    wrapper = object.__new__(module.CudaIPCWrapper)
    metadata = tensor["metadata"]
    wrapper.handle = tuple(
        bytes.fromhex(part) if isinstance(part, str) else part for part in tensor["handle"]
    )
    wrapper.dtype = getattr(torch, metadata["dtype"])
    wrapper.shape, wrapper.stride = tuple(metadata["shape"]), tuple(metadata["stride"])
    wrapper.storage_offset = metadata["storage_offset"]
    wrapper.device_uuid = metadata["device_uuid"]
    return wrapper


if __name__ == "__main__":
    serve(Client())
