"""One child process as the server sees it: orders out, answers in, and its end."""

import itertools
import logging
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection

import msgspec

from sidecar.cache.arena import Arena
from sidecar.engines.cuda import protocol
from sidecar.engines.cuda.driver import Batches
from sidecar.engines.cuda.shares import Share, release

log = logging.getLogger(__name__)

# The driver may take long to start, and NIXL with cuFile. Later no call takes this long on a GPU
# that works.
_START_SECONDS, _SILENT_SECONDS = 60.0, 10.0

OnMapped = Callable[[str | None], None]
OnMoved = Callable[[protocol.Moved], None]


class Gpu:
    """The child process of the GPU `uuid`. All methods on the loop thread; none blocks.

    When it ends, whatever the reason, every callback that is owed is called, `on_mapped` and
    `on_moved` with an error: only then does nobody touch their memory any more. `on_lost`
    comes as soon as it is known that it will not answer, `on_ended` when it is gone.
    """

    def __init__(
        self,
        uuid: str,
        command: Sequence[str],
        arena: Arena,
        nodes: Sequence[int],
        batches: Batches,
        post: Callable[[Callable[[], None]], None],
        on_lost: Callable[["Gpu"], None],
        on_ended: Callable[["Gpu"], None],
    ) -> None:
        """Start the process. `nodes` are those that the arena is on. Raises OSError."""
        self.uuid = uuid
        self.near: int | None = None  # the part of the arena on its NUMA node
        self.pinned_bytes = 0
        self.is_ending = False
        self.is_unusable = False  # there is no driver, or no such GPU, and that stays so
        self.moves_files = False  # from and to its memory, past the arena
        self.opens_files = False  # it has been asked to, and has not answered
        self.reason = "its process has ended"
        self._has_started = False
        self._events: Iterator[bytes] = iter(())
        self._post, self._on_lost, self._on_ended = post, on_lost, on_ended
        self._asked: float | None = time.monotonic()
        self._patience = _START_SECONDS
        self._mapping: dict[int, tuple[OnMapped, Sequence[Share]]] = {}
        self._shares: dict[int, Sequence[Share]] = {}  # of each worker that is mapped
        self._moving: dict[int, tuple[protocol.Move | protocol.MoveFiles, OnMoved]] = {}
        self._process, self._pipe = _start(uuid, command, arena, nodes, batches)
        self._outbox: queue.SimpleQueue[protocol.ToChild | None] = queue.SimpleQueue()
        # A child that hangs does not read either: sending must not stop the loop.
        for work in (self._write, self._read):
            threading.Thread(target=work, name=f"gpu-{uuid}", daemon=True).start()

    @property
    def done_event(self) -> bytes | None:
        """The handle of an event that has happened; None if there is none to be had."""
        return next(self._events, None)

    @property
    def could_not_start(self) -> bool:
        """Whether it ended by itself before it could do anything, for what may pass."""
        killed = self._process.returncode == -signal.SIGKILL
        return not (self._has_started or self.is_unusable or killed)

    def map(self, order: protocol.Map, shares: Sequence[Share], on_mapped: OnMapped) -> None:
        """`shares` are the worker's: its torch is told when they are not mapped any more."""
        self._mapping[order.worker] = on_mapped, shares
        self._outbox.put(order)

    def move(self, order: protocol.Move | protocol.MoveFiles, on_moved: OnMoved) -> None:
        self._moving[order.job] = order, on_moved
        self._outbox.put(order)

    def tell(self, order: protocol.Unmap | protocol.Populated) -> None:
        self._outbox.put(order)

    def open_files(self, order: protocol.OpenFiles) -> None:
        """Let it get ready to move files; `moves_files` tells when it is."""
        self.opens_files = True
        self._outbox.put(order)

    def end(self) -> None:
        """The last worker has left: let the process end, and see to it that it does."""
        self.is_ending = True
        self.reason = "its last worker has left"
        self._asked, self._patience = time.monotonic(), _SILENT_SECONDS
        self._outbox.put(protocol.End())

    def watch(self) -> None:
        """To be called about once a second: replaces a child that does not answer."""
        now = time.monotonic()
        if self._asked is None:
            self._asked = now
            self._outbox.put(protocol.Ping())
            return
        patience = _START_SECONDS if self.opens_files else self._patience
        if now - self._asked > patience:
            self.kill(f"it did not answer for {patience:.0f} s")

    def kill(self, reason: str) -> None:
        """Give it up. What it was asked for is answered when it is gone."""
        self.reason = reason
        self._process.kill()
        self._lost()

    def stop(self) -> None:
        """The server stops: end the process now."""
        self.is_ending = True
        self._process.kill()

    def wait(self, timeout: float) -> None:
        """Wait for the end of a process that was stopped."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            log.error("%s: process %d does not end", self.uuid, self._process.pid)
        else:
            self._release_all()

    def _lost(self) -> None:
        if not self.is_ending:
            self.is_ending = True
            log.error("%s is given up: %s; its workers must register again", self.uuid, self.reason)
        self._on_lost(self)

    def _release_all(self) -> None:
        """The process is gone, and all its mappings with it."""
        for shares in self._shares.values():
            release(shares)
        self._shares.clear()

    def _write(self) -> None:
        while (order := self._outbox.get()) is not None:
            with suppress(OSError):  # it is gone: `_read` notices, too
                protocol.send(self._pipe, order)
        # Closed by who writes last: elsewhere the number may be another file's in mid-write.
        self._pipe.close()

    def _read(self) -> None:
        try:
            while True:
                answer = protocol.receive_answer(self._pipe)
                self._post(partial(self._take, answer))
        except (EOFError, OSError, msgspec.DecodeError):
            pass
        # The driver stops all copies before the process is gone, and not a moment earlier.
        self._process.kill()
        self._process.wait()
        self._post(self._ended)

    def _take(self, answer: protocol.ToServer) -> None:
        match answer:
            case protocol.Near():
                self.near = answer.part
            case protocol.Mapped():
                on_mapped, shares = self._mapping.pop(answer.worker)
                if answer.events:
                    self._events = itertools.cycle(answer.events)
                if answer.error is None:
                    self._shares[answer.worker] = shares
                on_mapped(answer.error)
            case protocol.Unmapped():
                release(self._shares.pop(answer.worker))
            case protocol.Moved():
                _, on_moved = self._moving.pop(answer.job)
                on_moved(answer)
            case protocol.Pong():
                self._has_started, self.pinned_bytes = True, answer.pinned
                if not self.is_ending:
                    self._asked, self._patience = None, _SILENT_SECONDS
            case protocol.FilesOpened():
                self.moves_files, self.opens_files = answer.error is None, False
                if self._asked is not None:  # it could not answer meanwhile
                    self._asked = time.monotonic()
                if answer.error is not None:
                    log.warning("%s: files go through the L1: %s", self.uuid, answer.error)
            case protocol.Unusable():
                self.is_ending, self.is_unusable = True, answer.is_final
                self.reason = answer.reason

    def _ended(self) -> None:
        self._outbox.put(None)
        self._release_all()
        self._lost()
        self._on_ended(self)
        mapping, self._mapping = self._mapping, {}
        for on_mapped, _ in mapping.values():
            on_mapped(self.reason)
        moving, self._moving = self._moving, {}
        for job, (order, on_moved) in moving.items():
            # It may be a file that has cost the process: none of them twice.
            suspect = isinstance(order, protocol.MoveFiles)
            on_moved(protocol.Moved(job, self.reason, 0.0, 0.0, file_failed=suspect))


def _start(
    uuid: str, command: Sequence[str], arena: Arena, nodes: Sequence[int], batches: Batches
) -> tuple["subprocess.Popen[bytes]", Connection]:
    """The process and our end of its pipe. Raises OSError."""
    ours, theirs = socket.socketpair()
    fds = theirs.fileno(), arena.segment.fd
    with theirs:
        process = subprocess.Popen(
            [*command, *map(str, (*fds, arena.size, batches, *nodes))],
            pass_fds=fds,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": uuid},
            stdin=subprocess.DEVNULL,
        )
    return process, Connection(ours.detach())
