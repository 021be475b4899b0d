"""supervisord as a child of the launcher."""

import os
import re
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections import deque
from signal import Signals

from launch import processes
from launch.errors import StackError
from launch.processes import Process
from launch.run_directory import RunDirectory
from sidecar.commands.supervisor import Supervisor

_START_SECONDS = 20.0
_MOST_COMPLAINTS = 20
_SIGNALLED = re.compile(r"exited: (\S+) \(terminated by (SIG\w+)")


class Daemon:
    """A supervisord that runs the programs of one stack, in a session of its own.

    In the launcher's session a Ctrl-C of the terminal would reach all programs at once.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        command = [sys.executable, "-P", "-m", "supervisor.supervisord", "-n"]
        self._child = subprocess.Popen(
            [*command, "-c", str(directory.configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            env=os.environ | {"TMPDIR": str(directory.temporary)},
        )
        # Read, or supervisord would stand still where it complains a lot (a full disk).
        self._complaints: deque[str] = deque(maxlen=15)
        self._reported: set[str] = set()
        self._drainer = threading.Thread(target=self._drain, daemon=True)
        self._drainer.start()
        leader = processes.read(self._child.pid)
        # Not reaped by anyone else, so it is there, if only as a zombie.
        self.leader = leader or Process(self._child.pid, 0, self._child.pid, 0)
        self.supervisor = Supervisor(str(directory.socket))

    def wait_started(self) -> None:
        """Until it answers. Raises StackError with its own words where it does not."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.supervisor.programs()
                return
            except (OSError, xmlrpc.client.Error):
                if self.ended() or time.monotonic() > deadline:
                    raise StackError(f"supervisord did not start: {self.complaints()}") from None
                time.sleep(0.05)

    def ended(self) -> bool:
        return self._child.poll() is not None

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()

    def complaints(self) -> str:
        if self.ended():
            self._drainer.join(1.0)
        return " ".join(self._complaints) or "it printed nothing"

    def new_complaints(self) -> list[str]:
        """The errors that it has met and that were not asked for before (a full disk, mostly)."""
        errors = {line for line in tuple(self._complaints) if "Error" in line}
        new = sorted(errors - self._reported)
        # Of many different ones the first few say enough.
        self._reported |= errors if len(self._reported) < _MOST_COMPLAINTS else set()
        return new if len(self._reported) < _MOST_COMPLAINTS else []

    def signal_of(self, program: str) -> Signals | None:
        """The signal that ended `program` last: only supervisord's log has it."""
        try:
            log = (self._directory.logs / "supervisord.log").read_text(errors="replace")
            names = [name for who, name in _SIGNALLED.findall(log) if who == program]
            return Signals[names[-1]]
        except (OSError, IndexError, KeyError):
            return None

    def _drain(self) -> None:
        assert self._child.stderr
        for line in self._child.stderr:
            self._complaints.append(line.strip())
