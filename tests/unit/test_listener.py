"""The path of a Unix socket belongs to who listens there, and to nobody who is gone."""

import errno
import socket
from pathlib import Path

import pytest

from sidecar.wire.listener import Listener


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as peer:
        try:
            peer.connect(str(path))
        except OSError:
            return False
        return True


def test_who_ends_late_leaves_the_path_of_who_took_over(tmp_path: Path) -> None:
    path = tmp_path / "mp"
    first = Listener(f"ipc://{path}", 0o600)
    path.unlink()  # somebody tidied up
    second = Listener(f"ipc://{path}", 0o600)
    first.close()
    assert connects(path)
    second.close()
    assert not path.exists()


def test_an_owner_that_is_stopped_keeps_its_path_and_nobody_waits(tmp_path: Path) -> None:
    """As after SIGSTOP: nobody accepts, and the backlog is full."""
    path = tmp_path / "mp"
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(path))
        stopped.listen(0)
        waiting = []
        while True:
            peer = socket.socket(socket.AF_UNIX)
            peer.setblocking(False)
            waiting.append(peer)
            if peer.connect_ex(str(path)) == errno.EAGAIN:
                break
        with pytest.raises(OSError, match=f"cannot listen on ipc://{path}: Address already in use"):
            Listener(f"ipc://{path}", 0o600)
        assert path.is_socket()
        for peer in waiting:
            peer.close()


def test_what_a_killed_owner_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "mp"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
    listener = Listener(f"ipc://{path}", 0o600)
    assert connects(path) and path.stat().st_mode & 0o777 == 0o600
    listener.close()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_no_socket_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mp"
    path.mkdir() if kind == "directory" else path.write_text("theirs")
    with pytest.raises(OSError, match="Address already in use"):
        Listener(f"ipc://{path}", 0o600)
    assert path.is_dir() or path.read_text() == "theirs"
