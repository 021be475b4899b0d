"""The listening socket: an address of the machine, or a path that is ours for as long as we run."""

import errno
import os
import socket
import stat
from pathlib import Path

_BACKLOG = 512


class Listener:
    """Bound to a URL, `tcp://host:port` or `ipc:///path`. Does not block."""

    def __init__(self, url: str, ipc_mode: int) -> None:
        """Raises OSError, whose text names the URL, if it cannot be had.

        `ipc_mode` is the permission of a Unix socket; it is narrow from its first moment.
        """
        self._path: Path | None = None  # of the Unix socket, if it is one
        try:
            if url.startswith("ipc://"):
                self.socket = self._listen_unix(Path(url.removeprefix("ipc://")), ipc_mode)
            else:
                self.socket = _listen_tcp(url.removeprefix("tcp://"))
        except OSError as error:
            raise OSError(f"cannot listen on {url}: {_reason(error)}") from None
        self.socket.setblocking(False)

    def close(self) -> None:
        """Stop listening. A path that somebody else has taken over meanwhile stays theirs."""
        if self._path is not None and _file_id(self._path) == self._file_id:
            self._path.unlink(missing_ok=True)
        self.socket.close()

    def _listen_unix(self, path: Path, mode: int) -> socket.socket:
        _remove_dead_socket(path)
        listening = socket.socket(socket.AF_UNIX)
        old_mask = os.umask(0o777 & ~mode)
        try:
            listening.bind(str(path))
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        finally:
            os.umask(old_mask)
        self._path, self._file_id = path, _file_id(path)
        return listening


def _listen_tcp(address: str) -> socket.socket:
    """IPv4 where the name has it, as libzmq does it."""
    host, _, port = address.rpartition(":")
    host = "0.0.0.0" if host == "*" else host.strip("[]")
    found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    family, *_, place = min(found, key=lambda each: each[0] != socket.AF_INET)
    return socket.create_server((str(place[0]), int(place[1])), family=family, backlog=_BACKLOG)


def _remove_dead_socket(path: Path) -> None:
    """Raises OSError if somebody listens there. A stopped one, whose backlog is full, does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            if stat.S_ISSOCK(path.stat().st_mode):
                path.unlink()
            return
        except BlockingIOError:
            pass
        except OSError:
            return  # nothing there, or nothing that binding to it would not tell
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or not error.errno:
        return str(error.strerror)
    return os.strerror(error.errno)
