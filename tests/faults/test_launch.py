"""Stacks whose programs, launcher or machine fail: real launcher, supervisord and sidecar.

The frontend and the workers are stand-ins, which start in a moment (tests/e2e has the real ones).
"""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.disks import mounted
from tests.support.server import wait_until
from tests.support.signals import inherited
from tests.support.stack import Stack, shared_memory

STAND_IN = Path(__file__).parents[1] / "support" / "stand_in_python.py"
MakeStack = Callable[..., Stack]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path (Unix sockets), a model, and the stand-in interpreter."""
    directory = Path(tempfile.mkdtemp(prefix="kv s"))
    (directory / "model").mkdir()
    (directory / "model" / "config.json").write_text("{}")
    python = directory / "python"
    python.write_text(f"#!{sys.executable}\n{STAND_IN.read_text()}")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def make(place: Path) -> Iterator[MakeStack]:
    """Makes stacks of stand-ins; whatever a test leaves of them is killed."""
    made = []

    def stack(topology: str = "disagg", name: str = "s", **env: str) -> Stack:
        env |= {
            "LAUNCH_WORKER_PYTHON": str(place / "python"),
            "LAUNCH_MODEL": str(place / "model"),
            "LAUNCH_SERVED_MODEL_NAME": "m",
            # It knows nothing of this machine's servers.
            "http_proxy": "http://127.0.0.1:9",
            "STAND_IN_MEMORY": place.name,
        }
        made.append(Stack(topology, place, name, **env))
        return made[-1]

    yield stack
    for one in made:
        for pid in one.processes():
            os.kill(pid, signal.SIGKILL)
    for name in shared_memory():
        if name.startswith(place.name):
            Path("/dev/shm", name).unlink()


@pytest.fixture
def clean_memory(place: Path) -> Iterator[None]:
    """The stacks of the test leave nothing in /dev/shm."""
    yield
    assert not [name for name in shared_memory() if name.startswith(place.name)]


def test_a_stack_serves_shows_its_state_and_ends(make: MakeStack, clean_memory: None) -> None:
    stack = make().start().wait_ready()

    table = stack.script("status", "--name", "s")
    assert table.returncode == 0, table.stdout + table.stderr
    lines = table.stdout.splitlines()
    assert lines[0].startswith("s: m at http://127.0.0.1:")
    assert [line.split()[0] for line in lines[2:6]] == [
        *("sidecar", "frontend", "decode-0", "prefill-0")
    ]
    assert all(" running " in line and " ready " in line for line in lines[2:6])
    assert "nothing was asked for yet" in lines[6]

    stopped = stack.script("stop", "--name", "s")
    assert (stopped.returncode, stack.wait()) == (0, 0)
    assert stack.left() == []
    assert "loading dynamo.vllm" in (stack.run_dir / "s" / "logs" / "decode-0.log").read_text()
    assert stack.script("stop", "--name", "s").stdout == "no stack is running\n"


def test_output_of_all_programs_is_one_stream(make: MakeStack) -> None:
    stack = make(PYTHONIOENCODING="ascii").start().wait_ready()
    for program in ("sidecar  ", "frontend ", "decode-0 ", "prefill-0"):
        stack.wait_for(f"{program} | ")
    stack.wait_for("decode-0  | 100% ?\n")
    assert stack.end() == 0


def test_under_nohup_a_stack_outlives_its_terminal(make: MakeStack) -> None:
    with inherited(signal.SIGHUP, signal.SIG_IGN):
        stack = make("agg").start().wait_ready()
    stack.signal(signal.SIGHUP)
    os.kill(stack.pids()["worker-0"], signal.SIGKILL)
    stack.wait_for("worker-0 was ended by SIGKILL; starting it again")
    assert stack.end() == 0


def test_programs_end_in_order(make: MakeStack) -> None:
    stack = make().start().wait_ready()
    stack.end()
    log = (stack.run_dir / "s" / "logs" / "supervisord.log").read_text()
    ends = [log.index(f"stopped: {name}") for name in ("frontend", "decode-0", "sidecar")]
    assert ends == sorted(ends)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_during_the_start(
    make: MakeStack, number: signal.Signals, code: int, clean_memory: None
) -> None:
    stack = make(STAND_IN_PREFILL="never").start()
    stack.wait_for("decode-0 is ready")
    assert stack.end(number) == code
    assert stack.left() == []


def test_a_second_signal_kills_what_does_not_end(make: MakeStack, clean_memory: None) -> None:
    stack = make(STAND_IN_DECODE="stay").start().wait_ready()
    stack.signal(signal.SIGINT)
    stack.wait_for("Ctrl-C again kills it")
    assert stack.end(signal.SIGINT, timeout=30) == 130
    assert stack.left() == []


def test_what_dies_is_started_again(make: MakeStack, clean_memory: None) -> None:
    stack = make().start().wait_ready()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for program, pid in stack.pids().items():
            before = stack.output().count(f"{program} is ready")
            os.kill(pid, number)
            wait_until(
                lambda: stack.output().count(f"{program} is ready") > before,  # noqa: B023
                f"{program} is back:\n{stack.output()[-2000:]}",
            )
    status = stack.status()
    assert [row["restarts"] for row in status["programs"]] == [2, 2, 2, 2]
    assert "frontend was ended by SIGKILL; starting it again" in stack.output()
    assert "decode-0 ended with exit code 0; starting it again" in stack.output()
    assert stack.end() == 0
    assert stack.left() == []


def test_a_dead_worker_leaves_neither_children_nor_memory(make: MakeStack) -> None:
    stack = make().start().wait_ready()
    pid = stack.pids()["decode-0"]
    memory = f"{stack.env['STAND_IN_MEMORY']}_{pid}"
    wait_until(lambda: memory in " ".join(stack.record()["shared_memory"]), "the inventory")
    (child,) = [p for p in stack.processes() if os.getpgid(p) == pid and p != pid]

    os.kill(pid, signal.SIGKILL)

    stack.wait_for("decode-0 was ended by SIGKILL")
    wait_until(lambda: child not in stack.processes(), "the child ended")
    wait_until(lambda: memory not in shared_memory(), "its memory removed")
    stack.end()


@pytest.mark.parametrize(
    ("program", "fault", "code"),
    [("frontend", "exit:7", 7), ("decode-0", "exit:3", 3), ("prefill-0", "exit:0", 1)],
)
def test_a_start_that_fails_says_which_and_why(
    make: MakeStack, program: str, fault: str, code: int, clean_memory: None
) -> None:
    variable = f"STAND_IN_{program.partition('-')[0].upper()}"
    stack = make(**{variable: fault}).start()
    assert stack.wait() == code
    last = stack.output().splitlines()[-2:]
    assert last[0].endswith("ValueError: told to fail")
    how = f"FAILED: {program} ended with exit code {fault[-1]} while the stack was starting"
    assert how in last[1]
    assert stack.left() == []


def test_a_sidecar_that_cannot_start(make: MakeStack) -> None:
    stack = make().start("--sidecar-args", "--http-host 192.0.2.1")
    assert stack.wait() == 1
    assert "192.0.2.1" in stack.output().splitlines()[-2]
    assert "FAILED: sidecar ended with exit code 1" in stack.output().splitlines()[-1]


def test_a_program_that_never_gets_ready(make: MakeStack) -> None:
    stack = make(STAND_IN_DECODE="never").start("--start-timeout", "15")
    assert stack.wait() == 1
    assert "FAILED: decode-0 is not ready after 1" in stack.output().splitlines()[-1]
    assert stack.left() == []


def test_what_keeps_dying_ends_the_stack(make: MakeStack, clean_memory: None) -> None:
    stack = make("agg", STAND_IN_WORKER="die:9").start()
    assert stack.wait() == 9
    last = stack.output().splitlines()[-2:]
    assert last[0].endswith("RuntimeError: told to die")
    assert "worker-0 ended with exit code 9" in last[1]
    assert stack.left() == []


def test_a_port_that_is_taken(make: MakeStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        stack = make().start("--http-port", str(port))
        assert stack.wait() == 1
    assert stack.output() == (
        f"launch/disagg.sh: port {port} is in use: give another one with --http-port, or 0\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/no/such/model"], "--model /no/such/model: no config.json there"),
        (["--worker-python", "/no/python"], "--worker-python /no/python: no such program"),
        (["--gpu", "0"], "--gpu stands for one worker each: 2 are needed"),
        (["--prefil", "2"], "unrecognized arguments: --prefil 2"),
        (["--", "--connector", "lmcache"], "Dynamo rejects --connector"),
        (["--", "--served-model-name=x"], "--served-model-name is not for the workers"),
        (["--sidecar-args", "--chunk-size 0"], "--chunk-size: 0 is not"),
        (["--sidecar-args", "--port 5"], "--sidecar-args has a port: use --sidecar-port"),
        (["--l2-adapter", "{bad"], "--l2-adapter: not valid JSON"),
    ],
)
def test_wrong_usage_is_one_line(make: MakeStack, arguments: list[str], message: str) -> None:
    stack = make().start(*arguments)
    assert stack.wait() == 2
    (line,) = stack.output().splitlines()
    assert message in line


def test_an_interpreter_without_the_packages(make: MakeStack, place: Path) -> None:
    bare = place / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    stack = make()
    stack.env["LAUNCH_PYTHON"] = str(bare)
    assert stack.start().wait() == 2
    (line,) = stack.output().splitlines()
    assert f"{sys.executable} has no " in line
    assert "make install" in line


def test_a_name_is_taken_while_its_stack_runs(make: MakeStack) -> None:
    first = make().start().wait_ready()
    second = make()
    second.out = first.out.with_name("second.out")
    assert second.start().wait() == 1
    assert f"the stack s runs already (launcher {first.process.pid})" in second.output()
    assert first.end() == 0


def test_two_stacks_beside_each_other(make: MakeStack, clean_memory: None) -> None:
    first, second = make(name="one").start(), make("agg", name="two").start()
    for stack in (first, second):
        stack.wait_ready()
    ambiguous = first.script("stop")
    assert ambiguous.returncode == 2
    assert "several stacks are running (one, two)" in ambiguous.stderr
    assert first.end() == 0
    assert all(row["health"] == "ready" for row in second.status()["programs"])
    assert second.end() == 0
    assert first.left() == second.left() == []


@pytest.mark.parametrize("also_supervisord", [False, True])
def test_the_next_start_cleans_up_after_a_killed_launcher(
    make: MakeStack, also_supervisord: bool, clean_memory: None
) -> None:
    stack = make().start().wait_ready()
    wait_until(lambda: len(stack.record()["shared_memory"]) >= 2, "the inventory")
    stack.end(signal.SIGKILL)
    if also_supervisord:
        os.kill(stack.record()["leader"][0], signal.SIGKILL)
    old = stack.processes()
    assert len(old) >= 4

    stack.out.unlink()
    stack.start().wait_ready()

    assert "of a stack whose launcher was killed" in stack.output()
    assert not set(old) & set(stack.processes())
    assert stack.end() == 0
    assert stack.left() == []


def test_stop_cleans_up_after_a_killed_launcher(make: MakeStack, clean_memory: None) -> None:
    stack = make().start().wait_ready()
    stack.end(signal.SIGKILL)
    status = stack.script("status")
    assert "its launcher was killed" in status.stdout
    assert stack.script("stop").returncode == 0
    assert stack.left() == []


def test_a_killed_supervisord_ends_the_stack(make: MakeStack, clean_memory: None) -> None:
    stack = make().start().wait_ready()
    os.kill(stack.record()["leader"][0], signal.SIGKILL)
    assert stack.wait() == 1
    assert "FAILED: supervisord has ended" in stack.output().splitlines()[-1]
    assert stack.left() == []


def test_a_full_disk_for_logs_ends_nothing(make: MakeStack, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "tmpfs", "-o", "size=1m") as disk:
        (disk / "filler").write_bytes(bytes(1 << 20)[: 1020 << 10])
        stack = make(STAND_IN_PAUSE="0.0005").start("--log-dir", str(disk)).wait_ready()
        stack.wait_for("No space left on device")
        assert all(row["health"] == "ready" for row in stack.status()["programs"])
        assert stack.end() == 0
        assert stack.left() == []


def test_a_full_disk_for_the_run_directory(make: MakeStack, place: Path) -> None:
    with mounted(place / "disk", "tmpfs", "-o", "size=12k") as disk:
        stack = make(LAUNCH_RUN_DIR=str(disk / "run"))
        stack.run_dir = disk / "run"
        assert stack.start().wait() == 1
        assert "No space left on device" in stack.output()
        assert stack.left() == []


def test_a_terminal_that_stands_still_holds_up_nothing(make: MakeStack) -> None:
    stack = make("agg")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"full")
    os.set_blocking(writer, True)
    command = [str(STAND_IN.parents[2] / "launch/agg.sh"), "--name", "s", *ports()]
    stack.process = subprocess.Popen(command, env=stack.env, stdout=writer)
    wait_until(lambda: stack.script("status").returncode == 0, "all ready")
    pid = stack.pids()["worker-0"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: stack.pids()["worker-0"] not in (0, pid), "started again")
    assert stack.script("stop", "--timeout", "60").returncode == 0
    assert stack.wait() == 0
    for end in (reader, writer):
        os.close(end)
    assert stack.left() == []


@pytest.mark.parametrize("output", ["| head -n 3", ">&-"])
def test_a_terminal_that_nobody_reads_ends_nothing(make: MakeStack, output: str) -> None:
    stack = make()
    command = f"launch/disagg.sh --name s {' '.join(ports())} {output}"
    with stack.out.open("wb") as out:
        stack.process = subprocess.Popen(
            ["sh", "-c", command], env=stack.env, stdout=out, cwd=STAND_IN.parents[2]
        )
    wait_until(lambda: "ready" in stack.script("status").stdout, "ready")
    wait_until(lambda: stack.script("status").returncode == 0, "all ready")
    assert stack.script("stop").returncode == 0
    assert stack.left() == []


def test_a_stack_starts_under_low_limits(make: MakeStack) -> None:
    """Supervisor's own are higher, and where it may not raise them it does not start."""
    limits = ["prlimit", "--nofile=512"]
    if (
        os.geteuid() == 0
    ):  # of others the kernel counts all their processes, and root may raise both
        limits += ["--nproc=150", "setpriv", "--bounding-set=-sys_resource"]
    stack = make("agg").start(before=limits).wait_ready()
    assert stack.end() == 0


def ports() -> list[str]:
    return ["--http-port", "0", "--sidecar-port", "0", "--sidecar-http-port", "0"]


def test_a_dry_run_starts_and_writes_nothing(make: MakeStack) -> None:
    stack = make().start("--dry-run", "--", "--max-model-len", "512")
    assert stack.wait() == 0
    assert "[program:prefill-0]" in stack.output()
    assert "--disaggregation-mode decode" in stack.output()
    assert "--max-model-len 512" in stack.output()
    assert not stack.run_dir.exists()
