"""kv-sidecar whose GPU process reads an illegal address once the file GPU_FAULT exists.

`python -m tests.gpu.faulty serve ...` is the server; it starts this file again as the child.
"""

import os
import sys

from sidecar.cli import main as serve
from sidecar.engines.cuda import gpus, process
from sidecar.engines.cuda.driver import Addresses
from sidecar.engines.cuda.libcuda import LibCuda


class Faulty(LibCuda):
    """The real driver with a kernel of ours that is given a bad table."""

    def copy(
        self, to: Addresses, source: Addresses, sizes: Addresses, stream: int, batched: bool
    ) -> None:
        fault = os.environ["GPU_FAULT"]
        if os.path.exists(fault):
            os.unlink(fault)
            self.copy_runs(0xDEAD0000, 1, stream)
        super().copy(to, source, sizes, stream, batched)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        gpus.COMMAND[:] = [sys.executable, "-m", "tests.gpu.faulty"]
        sys.exit(serve())
    process.main(Faulty(), sys.argv[1:])
