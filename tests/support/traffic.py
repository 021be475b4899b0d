"""Prompts as a vLLM sends them, by the stock client: looked up, loaded, what is missing stored."""

from __future__ import annotations

from tests.support.client import HANDLE, Scheduler, Worker, tokens_of
from tests.support.layouts import FUSED, KVCache, one_group
from tests.support.server import Server


class Traffic:
    """A registered worker and its scheduler. The tokens of a prompt are those of its number."""

    def __init__(
        self, server: Server, model: str, cache: KVCache | None = None, mode: str = HANDLE
    ) -> None:
        self._chunk = server.chunk_size
        self._worker = Worker(
            server.url, model, cache or one_group(FUSED), mode, chunk=server.chunk_size
        )
        self._scheduler = Scheduler(server.url, model)
        self._worker.register()

    def ask(self, prompt: int, chunks: int = 3) -> int:
        """One request of `chunks` chunks; how many of them were found."""
        tokens = tokens_of(prompt, chunks * self._chunk)
        hits = self._scheduler.lookup(tokens)
        middle = hits * self._chunk
        if hits:
            assert self._worker.retrieve(tokens, self._blocks(0, middle), end=middle)
        if hits < chunks:
            assert self._worker.store(tokens, self._blocks(middle, len(tokens)), start=middle)
        self._scheduler.end()
        return hits

    def _blocks(self, start: int, end: int) -> list[list[int]]:
        """The blocks of [start, end) of every prompt; block 0 is the null block."""
        size = self._worker.cache.groups[0].tokens_per_block
        return [list(range(1 + start // size, 1 + end // size))]

    def store_badly(self) -> None:
        """A store that has to be refused."""
        tokens = tokens_of(-1, self._chunk)
        assert not self._worker.store(tokens, [[-1] * (self._chunk // 16)])

    def close(self) -> None:
        self._worker.close()
        self._scheduler.close()
