"""A stack started by the scripts in launch/, as a user would, and what is left of it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any

from tests.support.server import REPO, SHM, wait_until

START_SECONDS = 300.0


class Stack:
    """One run of `launch/TOPOLOGY.sh`, its ports picked, its run directory under `directory`."""

    def __init__(self, topology: str, directory: Path, name: str = "s", **env: str) -> None:
        self.name = name
        self.topology = topology
        self.out = directory / f"{name}.out"
        self.run_dir = directory / "run"
        self.env = {**os.environ, "LAUNCH_RUN_DIR": str(self.run_dir), **env}
        self.env["LAUNCH_PYTHON"] = sys.executable
        self.process: subprocess.Popen[bytes]

    def script(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another script, to its end."""
        return subprocess.run(
            [REPO / "launch" / f"{name}.sh", *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=180,
        )

    def start(self, *arguments: str, before: Sequence[str] = ()) -> "Stack":
        """Begin to start it; picked ports where `arguments` name none. A command that runs it may
        stand `before`."""
        ports = ("--http-port", "--sidecar-port", "--sidecar-http-port")
        picked = [word for flag in ports if flag not in arguments for word in (flag, "0")]
        own = ["--name", self.name, "--l1-size-gb", "0.25"]
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(
                [*before, REPO / "launch" / f"{self.topology}.sh", *own, *picked, *arguments],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return self

    def wait_for(self, text: str, timeout: float = START_SECONDS) -> None:
        """Until the output has `text`; fails at once where the launcher has ended without it."""

        def there() -> bool:
            ended = self.process.poll() is not None
            return text in self.output() or ended

        wait_until(there, f"{text!r} in:\n{self.output()[-4000:]}", timeout)
        assert text in self.output(), self.output()[-6000:]

    def wait_ready(self) -> "Stack":
        self.wait_for("READY after")
        return self

    def output(self) -> str:
        return self.out.read_text(errors="replace")

    def said(self) -> list[str]:
        """The lines of the launcher itself."""
        return [line for line in self.output().splitlines() if re.match(r"launch +\|", line)]

    def status(self) -> Any:
        done = self.script("status", "--name", self.name, "--json")
        assert done.stdout.startswith("{"), done.stdout + done.stderr
        return json.loads(done.stdout)

    def pids(self) -> dict[str, int]:
        return {row["program"]: row["pid"] for row in self.status()["programs"]}

    def record(self) -> Any:
        return json.loads((self.run_dir / self.name / "stack.json").read_text())

    def signal(self, number: Signals) -> None:
        os.kill(self.process.pid, number)

    def end(self, number: Signals = SIGTERM, timeout: float = 120) -> int:
        """Signal the launcher; its exit code."""
        self.signal(number)
        return self.process.wait(timeout)

    def wait(self, timeout: float = START_SECONDS) -> int:
        return self.process.wait(timeout)

    def processes(self) -> list[int]:
        """Everything that runs with this stack's run directory in its environment."""
        marker = f"TMPDIR={self.run_dir / self.name}/".encode()
        return [pid for pid in _pids() if marker in _read(f"/proc/{pid}/environ")]

    def left(self) -> list[str]:
        """What it left behind, less its lock and its logs."""
        processes = [f"process {pid}" for pid in self.processes()]
        directory = self.run_dir / self.name
        files = [str(path) for path in directory.iterdir() if path.name not in ("lock", "logs")]
        return [*processes, *files]


def _pids() -> Iterable[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def shared_memory() -> set[str]:
    """What is in /dev/shm of anyone."""
    return {path.name for path in SHM.iterdir()}
