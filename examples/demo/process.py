"""Child processes: own process group, output in a file, stopped for sure."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path


class ProcessFailed(Exception):
    """A child ended early or did not get ready; the message holds the end of its log."""


class Process:
    """A running child with all the processes that it starts."""

    def __init__(self, name: str, command: list[str], log: Path, env: dict[str, str]) -> None:
        self.name = name
        self.log = log
        with open(log, "ab") as output:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def wait_ready(self, url: str, seconds: float, tick: Callable[[], None] = lambda: None) -> None:
        """Return once `url` answers 200; `tick` is called every two seconds until then.

        Raises ProcessFailed where the child ends or `seconds` pass first.
        """
        started = ticked = time.monotonic()
        while not answers(url):
            now = time.monotonic()
            if self._popen.poll() is not None:
                raise self._failed(f"ended with code {self._popen.returncode}")
            if now - started > seconds:
                raise self._failed(f"was not ready after {seconds:.0f} s")
            if now - ticked >= 2:
                tick()
                ticked = now
            time.sleep(0.1)

    def stop(self, seconds: float = 30) -> None:
        """SIGTERM, and SIGKILL for whatever is left after `seconds`."""
        deadline = time.monotonic() + seconds
        self._popen.terminate()
        while self.pids() and time.monotonic() < deadline:
            self._popen.poll()
            time.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the child and to all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def pids(self) -> list[int]:
        """The child and its descendants, as far as they run."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._has(pid)]

    def _has(self, pid: int) -> bool:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        state, _parent, group = stat.rpartition(")")[2].split()[:3]
        return int(group) == self.pid and state != "Z"

    def _failed(self, what: str) -> ProcessFailed:
        lines = self.log.read_text(errors="replace").splitlines()[-25:]
        return ProcessFailed("\n".join([f"{self.name} {what}; {self.log} ends:", *lines]))


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    """A port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
