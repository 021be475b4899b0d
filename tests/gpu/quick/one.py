"""One step in a process of its own: `python -m tests.gpu.quick.one MODULE FILE`.

`MODULE.run(report)` is the step. What it finds goes into FILE, and last of all how it ended.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
import traceback

from sidecar.engines.cuda.driver import DriverMissing
from tests.gpu.quick.report import Report, Skipped, WrongBytes

_POLL_SECONDS = 0.5


def main() -> None:
    module, path = sys.argv[1:]
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with open(path, "a") as file:
        report = Report(file)
        try:
            importlib.import_module(module).run(report)
        except (DriverMissing, Skipped) as error:
            report.write(end="skipped", why=str(error))
        except WrongBytes as error:
            report.write(end="WRONG BYTES", why=str(error))
        except BaseException as error:
            traceback.print_exc()
            report.write(end="CRASHED", why=f"{type(error).__name__}: {error}")
        else:
            report.write(end="ok", why="")
    # The driver's own clean-up may wait for a GPU that does not answer.
    os._exit(0)


def _end_with(parent: int) -> None:
    """End this process and all that it has started when nobody waits for it any more."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
