"""All connections: accepted, served in turn, each bounded and all together.

The peer whose requests have cost least is served first, one piece of its work at a time, and a
turn ends after a bounded time whatever is left. So a heavy peer waits for itself.
"""

import errno
import itertools
import logging
import select
import socket
import time
from collections.abc import Callable, Sequence

from sidecar.limits import descriptor_limit
from sidecar.wire.listener import Listener
from sidecar.wire.peer import Gone, Peer
from sidecar.wire.zmtp import Decoder, Message, ProtocolError

log = logging.getLogger(__name__)

_TURN_SECONDS = 0.05
_PIECE_SECONDS = 0.005
# How far a peer that was idle is ahead of those that were not: a few light requests.
_HEAD_START_SECONDS = 0.05
_ACCEPTED_A_TURN = 16
_MAX_PEERS = 4096
# Left for the files of the L2 and for HTTP, where there are so many.
_OTHER_DESCRIPTORS = 1024
_GREETING_SECONDS = 30.0
# All peers together may hold this many of the largest messages.
_LARGEST_MESSAGES = 4
_DESCRIPTORS_SPENT = (errno.EMFILE, errno.ENFILE)


class Router:
    """Peers by their identity. Loop thread only.

    `on_connected(identity, listener)` is told of a new peer, `on_gone(identity)` of its end;
    `on_message(identity, message)` serves a message; `on_dropped(reason, detail)` is told of
    peers that had to go. `post` runs a callback in the loop's next turn.
    """

    def __init__(
        self,
        max_message_bytes: int,
        max_frames: int,
        on_connected: Callable[[bytes, Listener], None],
        on_gone: Callable[[bytes], None],
        on_message: Callable[[bytes, Message], None],
        on_dropped: Callable[[str, str], None],
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._max_frames = max_frames
        self._on_connected = on_connected
        self._on_gone = on_gone
        self._on_message = on_message
        self._on_dropped = on_dropped
        self._post = post
        self._epoll = select.epoll()
        self._listeners: list[Listener] = []
        # By descriptor, while connections are accepted.
        self._listening: dict[int, tuple[socket.socket, Listener]] = {}
        self._peers: dict[bytes, Peer] = {}
        self._by_fd: dict[int, Peer] = {}
        self._nameless: dict[Peer, float] = {}  # not greeted yet, since when
        self._runnable: dict[Peer, None] = {}
        self._identities = itertools.count(1)
        self.held = 0  # bytes, of all peers
        self._max_held = _LARGEST_MESSAGES * max_message_bytes
        self._goes_on = False  # the next turn is asked for
        self._floor = 0.0  # what the cheapest of those that are served has cost

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)
        self._listen_on(listener)

    def fileno(self) -> int:
        """Readable when `on_readable` has something to do."""
        return self._epoll.fileno()

    def on_readable(self) -> None:
        """One turn: see who has something for us, and serve some of it."""
        for fd, events in self._epoll.poll(0):
            peer = self._by_fd.get(fd)
            if peer is None:
                self._accept(fd)
            else:
                if events & ~select.EPOLLIN:
                    self._flush(peer)
                self._wants_to_run(peer)
        self._serve()

    def send(self, identity: bytes, frames: Sequence[bytes]) -> bool:
        """Send to a peer; False if it is gone."""
        peer = self._peers.get(identity)
        if peer is None:
            return False
        peer.send(frames)
        self._watch(peer)
        return not peer.is_deaf

    def is_connected(self, identity: bytes) -> bool:
        """Whether it has not closed its end. What it said before may still be to be served."""
        peer = self._peers.get(identity)
        return peer is not None and peer.is_open

    def tick(self) -> None:
        """Once a second: who does not greet goes, and there may be descriptors again."""
        limit = time.monotonic() - _GREETING_SECONDS
        for peer in [peer for peer, since in self._nameless.items() if since < limit]:
            self._drop(peer)
        if not self._listening:
            for listener in self._listeners:
                self._listen_on(listener)

    def close(self, seconds: float) -> None:
        """Stop listening; answers on their way get `seconds` to leave."""
        for listener in self._listeners:
            listener.close()
        deadline = time.monotonic() + seconds
        for peer in list(self._peers.values()):
            peer.socket.settimeout(max(0.001, deadline - time.monotonic()))
            if peer.has_unsent:
                self._flush(peer)
            self._drop(peer)
        self._epoll.close()

    def _listen_on(self, listener: Listener) -> None:
        for each in listener.sockets:
            self._listening[each.fileno()] = each, listener
            self._epoll.register(each, select.EPOLLIN)

    def _pause_listening(self) -> None:
        for fd in self._listening:
            self._epoll.unregister(fd)
        self._listening = {}

    def _accept(self, fd: int) -> None:
        if fd not in self._listening:
            return  # of a peer that has gone, or of a socket that is paused, in this turn
        listening, listener = self._listening[fd]
        for _ in range(_ACCEPTED_A_TURN):
            try:
                connection, _ = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _DESCRIPTORS_SPENT:
                    self._on_dropped("no_descriptors", "connections wait until there are some")
                    self._pause_listening()
                    return
                continue  # it has gone already
            if len(self._peers) >= _most_peers():
                connection.close()
                self._on_dropped("too_many_connections", f"{len(self._peers)} are open")
            else:
                self._admit(connection, listener)

    def _admit(self, connection: socket.socket, listener: Listener) -> None:
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            _tune(connection)
        identity = next(self._identities).to_bytes(8, "big")
        peer = Peer(connection, identity, Decoder(self._max_message_bytes, self._max_frames))
        self._peers[identity] = self._by_fd[connection.fileno()] = peer
        self._nameless[peer] = time.monotonic()
        self._epoll.register(connection, peer.events)
        self._on_connected(identity, listener)
        self._flush(peer)

    def _wants_to_run(self, peer: Peer) -> None:
        if peer not in self._runnable:
            peer.spent = max(peer.spent, self._floor - _HEAD_START_SECONDS)
            self._runnable[peer] = None

    def _serve(self) -> None:
        """A piece of the work of each that has some, the cheapest first, for as long as a turn."""
        began = time.monotonic()
        queue = sorted(self._runnable, key=lambda peer: peer.spent)
        if queue:
            self._floor = max(self._floor, queue[0].spent)
        for peer in queue:
            if peer not in self._runnable:
                continue  # dropped meanwhile
            at = time.monotonic()
            if at - began > _TURN_SECONDS:
                break
            try:
                has_more = self._serve_peer(peer, at + _PIECE_SECONDS)
            finally:
                peer.spent += time.monotonic() - at
            if not has_more:
                self._runnable.pop(peer, None)
        if self._runnable and not self._goes_on:
            self._goes_on = True
            self._post(self._go_on)

    def _go_on(self) -> None:
        self._goes_on = False
        self.on_readable()

    def _serve_peer(self, peer: Peer, until: float) -> bool:
        """Some of what a peer asks; whether there is more of it in memory."""
        has_read = is_late = False
        try:
            while peer.may_ask and not is_late:
                message = peer.decoder.next_message()
                if message is not None:
                    self._on_message(peer.identity, message)
                    if peer.identity not in self._peers:
                        raise Gone
                    is_late = time.monotonic() > until
                elif has_read or not peer.read():
                    break
                else:
                    has_read = True
        except (Gone, ProtocolError) as error:
            if isinstance(error, ProtocolError):
                self._on_dropped("protocol", str(error))
            self._drop(peer)
            return False
        if peer.decoder.ready:
            self._nameless.pop(peer, None)
        self._flush(peer)
        return is_late

    def _flush(self, peer: Peer) -> None:
        peer.flush()
        self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        """Wait for what this peer may do next, and count what it holds."""
        events = (select.EPOLLIN if peer.may_ask else 0) | (
            select.EPOLLOUT if peer.has_unsent else 0
        )
        if events != peer.events:
            peer.events = events
            self._epoll.modify(peer.socket, events)
        held = peer.held
        if held and not peer.accounted:
            peer.since = time.monotonic()
        self.held += held - peer.accounted
        peer.accounted = held
        if self.held > self._max_held:
            self._make_room()

    def _make_room(self) -> None:
        """Drop who holds much for long. A message of an honest peer takes milliseconds."""
        now = time.monotonic()
        by_cost = sorted(self._peers.values(), key=lambda p: p.accounted * (p.since - now))
        for peer in by_cost:
            if self.held <= self._max_held:
                break
            self._on_dropped("memory", f"{peer.accounted} bytes of a message or of answers")
            self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        if self._peers.pop(peer.identity, None) is None:
            return
        self._on_gone(peer.identity)
        del self._by_fd[peer.socket.fileno()]
        self._epoll.unregister(peer.socket)
        peer.socket.close()
        self._runnable.pop(peer, None)
        self._nameless.pop(peer, None)
        self.held -= peer.accounted


def _most_peers() -> int:
    descriptors = descriptor_limit()
    return min(_MAX_PEERS, max(descriptors // 2, descriptors - _OTHER_DESCRIPTORS))


def _tune(connection: socket.socket) -> None:
    """Answers leave at once, and a machine that is gone is noticed within a minute."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
