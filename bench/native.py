"""The native door: how long a scheduler's lookup takes, by the connector's own manager.

In vLLM's order: each key of a prompt up to the first miss, then the end of the step; again in the
step after the answer. Three times of each lookup: until the scheduler knows; CPU time of the
scheduler's thread in the manager; CPU time of the server's process. The steps' other work is not in
it.
"""

from __future__ import annotations

import os
import time
from typing import Any

from vllm.v1.kv_offload.base import LookupResult, ReqContext, make_offload_key

from bench import idle
from bench.cases import LOOKUPS
from bench.common import LIMIT, BenchError
from bench.figures import NATIVE_CHUNKS, Samples
from bench.native_engine import NOTHING, Engine, running
from connectors.native import wire

# The smallest objects there are: only their number counts here.
OBJECT_BYTES = wire.SLOT_BYTES
# After an answer, until the server's threads rest: the kernel counts a thread's time when it does.
_REST_SECONDS = 0.005


def lookups(url: str, pid: int, repeats: int) -> Samples:
    """Prompts that are new, and such as hit but for their last chunk, as `cases.lookup`'s."""
    samples: Samples = {}
    for chunk_tokens in NATIVE_CHUNKS:
        with running(url, chunk_tokens, OBJECT_BYTES) as engine:
            for name, tokens in LOOKUPS.items():
                known = _keys(tokens // chunk_tokens - 1)
                _store(engine, known)
                figure = f"native{chunk_tokens}"
                for _ in range(4 * repeats):
                    new = _keys(len(known) + 1)
                    _measure(samples, f"{figure}_new_{name}", engine, pid, new, 0)
                    keys = [*known, *_keys(1)]
                    _measure(samples, f"{figure}_{name}", engine, pid, keys, len(known))
            engine.manager.reset_cache()
    return samples


def _measure(
    samples: Samples, figure: str, engine: Engine, pid: int, keys: list[Any], hits: int
) -> None:
    """Milliseconds of one lookup, added to `samples`."""
    manager, context = engine.manager, engine.request(keys)
    engine.until(lambda: not manager._session._asked)
    server = idle.run_seconds(idle.tree(pid))
    begun, cpu = time.perf_counter(), time.thread_time()
    manager.on_new_request(context)
    _hits(engine, context, keys)
    manager.on_schedule_end(NOTHING)
    _take_answer(engine)
    found = _hits(engine, context, keys)
    cpu, seconds = time.thread_time() - cpu, time.perf_counter() - begun
    time.sleep(_REST_SECONDS)
    server = idle.run_seconds(idle.tree(pid)) - server
    if found != hits:
        raise BenchError(f"a native lookup found {found} objects of {hits}")
    manager.on_request_finished(context)
    manager.on_schedule_end(NOTHING)
    for name, value in (("", seconds), ("_engine", cpu), ("_server", server)):
        samples.setdefault(figure + name, []).append(1e3 * value)


def _hits(engine: Engine, context: ReqContext, keys: list[Any]) -> int:
    """One pass of vLLM over the keys of a prompt."""
    hits = 0
    for key in keys:
        result = engine.manager.lookup(key, context)
        if result is LookupResult.MISS:
            break
        hits += result is LookupResult.HIT
    return hits


def _take_answer(engine: Engine) -> None:
    """As soon as it is there; a ping may be under way, too."""
    session, end = engine.manager._session, time.monotonic() + LIMIT
    while any(question.operation == wire.LOOKUP for question in session._asked.values()):
        if session._connection is None or time.monotonic() > end:
            raise BenchError("the native door does not answer a lookup")
        session._connection.wait(int(1e3 * LIMIT))
        engine.manager._poll()


def _store(engine: Engine, keys: list[Any]) -> None:
    """All of `keys`, as fast as there are slots. What their bytes are is nobody's concern here."""
    manager, context = engine.manager, engine.request(keys)
    manager.on_new_request(context)
    left = dict.fromkeys(keys)

    def stored() -> bool:
        output = manager.prepare_store(list(left), context)
        if output is not None and output.keys_to_store:
            manager.complete_store(output.keys_to_store, context)
            for key in output.keys_to_store:
                del left[key]
        return not left

    engine.until(stored)
    manager.on_request_finished(context)


def _keys(count: int) -> list[Any]:
    """Of new chunks."""
    return [make_offload_key(os.urandom(32), 0) for _ in range(count)]
