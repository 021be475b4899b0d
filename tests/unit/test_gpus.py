"""The processes of GPUs that do not start, from the server's side."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar.cache.arena import Arena
from sidecar.cache.segment import Segment
from sidecar.engines.copier import CopyPool
from sidecar.engines.cuda import gpus as gpus_module
from sidecar.engines.cuda.gpus import Gpus, MapRefused
from sidecar.engines.groups import WorkerLayout

UUID, OTHER = "GPU-1", "GPU-2"
DIES = "import os, sys; open(sys.argv[1], 'a').write(os.environ['CUDA_VISIBLE_DEVICES'] + ' ')"


class Starts:
    """GPUs whose processes die at once, and how many were started."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._log = folder / "starts"
        monkeypatch.setattr(gpus_module, "COMMAND", [sys.executable, "-c", DIES, str(self._log)])
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._segment = Segment(f"starts_{folder.name}", 1 << 20)
        post = self._posted.put
        self.pool = CopyPool(1, post)
        arena = Arena(self._segment, False)
        self.gpus = Gpus(arena, [], self.pool, post, lambda *_: None, batches="auto", files=None)

    def refused(self, uuid: str) -> MapRefused:
        """What a worker on this GPU is told."""
        answers: list[object] = []
        self.gpus.map(uuid, 1, WorkerLayout((), 0, b""), [], answers.append, lambda memory: None)
        while not answers:
            self._posted.get(timeout=30)()
        (answer,) = answers
        assert isinstance(answer, MapRefused)
        return answer

    def started(self) -> list[str]:
        return self._log.read_text().split()

    def close(self) -> None:
        self.pool.stop(5)
        self.gpus.close()
        self._segment.remove()


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starts]:
    made = Starts(tmp_path, monkeypatch)
    yield made
    made.close()


def test_a_gpu_whose_process_does_not_start_is_left_in_peace_for_a_while(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often its workers register; other GPUs have their own chance."""
    first = starts.refused(UUID)
    assert first == MapRefused("its process has ended", is_final=False)
    assert all(starts.refused(UUID) == first for _ in range(3))
    starts.gpus.watch()
    assert starts.refused(UUID) == first
    starts.refused(OTHER)
    assert starts.started() == [UUID, OTHER]
    monkeypatch.setattr(gpus_module, "_AGAIN_SECONDS", 0)
    starts.gpus.watch()
    assert starts.refused(UUID) == first
    assert starts.started() == [UUID, OTHER, UUID]
