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
    leaders = processes.with_argument(str(directory.configuration))
    if record.get("boot") == boot_id():
        leaders.append(Process(*record["leader"]))
    count, memory = 0, set(record.get("shared_memory", ()))
    for leader in leaders:
        found = processes.session(leader)
        count += len(found)
        memory |= shared_memory.mapped(found)
        end(leader)
    shared_memory.remove(memory)
    directory.clear()
    return count


def end(leader: Process) -> None:
    """SIGKILL to a whole session. Raises StackError where one of it does not die."""
    if not processes.kill(lambda: processes.session(leader)):
        left = ", ".join(str(process.pid) for process in processes.session(leader))
        raise StackError(f"processes {left} do not die; their ports and memory stay taken")
