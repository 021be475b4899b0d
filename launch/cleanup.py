"""What a stack leaves when its launcher was killed, found by its record and removed."""

from pathlib import Path

from launch import processes, shared_memory
from launch.errors import StackError
from launch.processes import Process
from launch.run_directory import RunDirectory


def boot_id() -> str:
    """Process numbers of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def sweep(directory: RunDirectory) -> int:
    """End every process of a stack whose lock the caller holds; how many there were.

    Raises StackError where one does not die.
    """
    record = directory.record()
    leaders, memory = _marked(directory), set()
    if record.get("boot") == boot_id():
        leaders.append(Process(*record["leader"]))
        memory |= set(record["shared_memory"])
    found = {process for leader in leaders for process in _all(directory, leader)}
    memory |= shared_memory.mapped(found)
    for leader in leaders:
        end(directory, leader)
    shared_memory.remove(memory)
    directory.clear()
    return len(found)


def end(directory: RunDirectory, leader: Process) -> None:
    """SIGKILL to all of a stack. Raises StackError where one of it does not die."""
    if not processes.kill(lambda: _all(directory, leader)):
        left = ", ".join(str(process.pid) for process in _all(directory, leader))
        raise StackError(f"processes {left} do not end; their ports and memory stay taken")


def _all(directory: RunDirectory, leader: Process) -> list[Process]:
    return processes.session(leader) + _marked(directory)


def _marked(directory: RunDirectory) -> list[Process]:
    """Also those that began a session of their own."""
    return processes.with_variable(f"TMPDIR={directory.temporary}")
