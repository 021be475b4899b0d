"""A worker and a scheduler of an older lmcache, in a process of their own.

`python old_client.py`, with the release first on PYTHONPATH, reads commands from stdin, one JSON
list `[name, argument...]` a line, and answers each with one line of JSON. The classes that talk to
the server are the release's own adapters, those that its vLLM connector uses.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
import time
from typing import Any

import torch
import zmq
from lmcache.integration.vllm import vllm_multi_process_adapter as adapter

LAYERS, BLOCKS, HEADS, SLOTS, SIZE = 3, 48, 2, 16, 8
SECONDS = 60.0


class Event:
    """What a worker without a GPU gives for its event."""

    def ipc_handle(self) -> bytes:
        return b"stub_ipc_handle"

    def wait(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class Client:
    """One worker and one scheduler of one model, and the worker's KV cache."""

    def start(self, url: str, model: str, mode: str, seed: int, heartbeat: float) -> int:
        """Connect both and register the worker; the chunk size."""
        generator = torch.Generator().manual_seed(seed)
        shape = (BLOCKS, HEADS, SLOTS, 2 * SIZE)
        self.tensors = {
            f"layer.{i}": torch.randn(shape, generator=generator).to(torch.float16)
            for i in range(LAYERS)
        }
        adapter.vllm_layout_hints = lambda: {"kv_layout": "HND"}
        os.environ["LMCACHE_MP_TRANSFER_MODE"] = mode
        seconds = {"mq_timeout": SECONDS, "heartbeat_interval": heartbeat}
        takes = inspect.signature(adapter.LMCacheMPSchedulerAdapter.__init__).parameters
        if "extra_config" in takes:
            seconds = {"extra_config": {f"lmcache.mp.{k}": v for k, v in seconds.items()}}
        context = zmq.Context()
        common = (context, model, SLOTS, _strategy())
        urls = [url] if "server_urls" in takes else url
        self.scheduler = adapter.LMCacheMPSchedulerAdapter(urls, *common, **seconds)
        self.worker = adapter.LMCacheMPWorkerAdapter(url, *common, **seconds)
        self.worker.register_kv_caches(self.tensors)
        return int(self.worker.lmcache_tokens_per_chunk)

    def lookup(self, tokens: list[int], request: str) -> int:
        """Hits in chunks."""
        self.scheduler.maybe_submit_lookup_request(request, token_ids=tokens)
        return self._wait(lambda: self.scheduler.check_lookup_result(request)) // self._chunk

    def store(self, tokens: list[int], blocks: list[int], request: str) -> bool:
        """Store all of the tokens from `blocks`; whether it has ended."""
        self.worker.submit_store_request(request, self._op(tokens, blocks), Event())
        self._wait(lambda: request in (self.worker.get_finished({request})[0] or ()) or None)
        return True

    def retrieve(self, tokens: list[int], blocks: list[int], request: str) -> list[int]:
        """Load into `blocks`; those of which vLLM is told that they were not loaded."""
        self.worker.submit_retrieve_request(request, self._op(tokens, blocks), Event())
        self._wait(lambda: request in (self.worker.get_finished(set())[1] or ()) or None)
        return sorted(self.worker.get_block_ids_with_load_errors())

    def end(self, tokens: list[int], request: str) -> None:
        self.scheduler.cleanup_lookup_result(request)
        self.scheduler.end_session(request)

    def free(self, tokens: list[int], request: str) -> None:
        self.scheduler.free_lookup_locks(tokens, 0, len(tokens), request)

    def digest(self, blocks: list[int]) -> str:
        """Of the bytes in these blocks, in their order."""
        digest = hashlib.sha256()
        for tensor in self.tensors.values():
            digest.update(tensor[blocks].contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def wipe(self, blocks: list[int]) -> None:
        for tensor in self.tensors.values():
            tensor[blocks] = 0

    def healthy(self) -> bool:
        return bool(self.worker.is_healthy and self.scheduler.is_healthy)

    def chunk_size(self) -> int:
        return self._chunk

    def instance(self) -> int:
        return int(self.worker.instance_id)

    def shutdown(self) -> None:
        self.worker.shutdown()

    @property
    def _chunk(self) -> int:
        return int(self.worker.lmcache_tokens_per_chunk)

    def _op(self, tokens: list[int], blocks: list[int]) -> Any:
        return adapter.LoadStoreOp(tokens, [blocks], start=0, end=len(tokens))

    def _wait(self, poll: Any) -> Any:
        end = time.monotonic() + SECONDS
        while (found := poll()) is None:
            assert time.monotonic() < end, "no answer"
            time.sleep(0.01)
        return found


def _strategy() -> Any:
    """Of one worker: no MLA, number 0 of 1 of whatever is counted."""
    fields = inspect.signature(adapter.ParallelStrategy).parameters
    values = {name: 0 if name.endswith("_id") else 1 for name in fields}
    return adapter.ParallelStrategy(**values | {n: False for n in fields if "mla" in n})


def serve(client: Any) -> None:
    """Answer the commands on stdin with what the client's methods return."""
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = {"value": getattr(client, name)(*arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(Client())
