"""The listening sockets: addresses of the machine, or a path that is ours for as long as we run."""

import errno
import os
import socket
import stat
from pathlib import Path

from sidecar import listeners
from sidecar.addresses import unbracketed

_BACKLOG = 512


class Listener:
    """Bound to a URL, `tcp://host:port` or `ipc:///path`. Does not block."""

    def __init__(self, url: str, ipc_mode: int) -> None:
        """Raises OSError, whose text names the URL, if it cannot be had.

        `ipc_mode` is the permission of a Unix socket; it is narrow from its first moment.
        """
        self._path: Path | None = None  # of the Unix socket, if it is one
        if url.startswith("ipc://"):
            self.sockets = [self._listen_unix(Path(url.removeprefix("ipc://")), ipc_mode)]
        else:
            host, _, port = url.removeprefix("tcp://").rpartition(":")
            self.sockets = listeners.listen(unbracketed(host), int(port), _BACKLOG)
        for each in self.sockets:
            each.setblocking(False)

    def close(self) -> None:
        """Stop listening. A path that somebody else has taken over meanwhile stays theirs."""
        if self._path is not None and _file_id(self._path) == self._file_id:
            self._path.unlink(missing_ok=True)
        listeners.close(self.sockets)

    def _listen_unix(self, path: Path, mode: int) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX)
        old_mask = os.umask(0o777 & ~mode)
        try:
            _remove_dead_socket(path)
            listening.bind(str(path))
            listening.listen(_BACKLOG)
        except OSError as error:
            listening.close()
            raise OSError(f"cannot listen on ipc://{path}: {error.strerror}") from None
        finally:
            os.umask(old_mask)
        self._path, self._file_id = path, _file_id(path)
        return listening


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
