"""kv-sidecar whose GPU processes use the fake driver.

While all files are `unmade` (see fake_files) none is made for a GPU to write.
"""

import os
import sys
import time
from functools import partial
from pathlib import Path

from sidecar import app
from sidecar.cli import main
from sidecar.engines.cuda import gpu, gpus, numa
from sidecar.tiers.adapters.moved_files import MovedFiles
from tests.support.fake_files import all_files

_new_file = MovedFiles.new_file


def new_file(files: MovedFiles, size: int) -> str:
    while "unmade" in all_files():
        time.sleep(0.01)
    return _new_file(files, size)


if __name__ == "__main__":
    gpus.COMMAND[:] = [sys.executable, "-m", "tests.support.fake_gpu"]
    gpu._SILENT_SECONDS = float(os.environ.get("FAKE_GPU_SECONDS", 0)) or gpu._SILENT_SECONDS
    pci = Path(os.environ.get("FAKE_GPU_PCI", "/none"))
    MovedFiles.new_file = new_file  # type: ignore[method-assign]
    app.gpu_nodes = partial(numa.gpu_nodes, pci)
    sys.exit(main())
