"""kv-sidecar whose GPU processes use the fake driver."""

import os
import sys
from functools import partial
from pathlib import Path

from sidecar import app
from sidecar.cli import main
from sidecar.engines.cuda import gpu, gpus, numa

if __name__ == "__main__":
    gpus.COMMAND[:] = [sys.executable, "-m", "tests.support.fake_gpu"]
    gpu._SILENT_SECONDS = float(os.environ.get("FAKE_GPU_SECONDS", 0)) or gpu._SILENT_SECONDS
    pci = Path(os.environ.get("FAKE_GPU_PCI", "/none"))
    app.gpu_nodes = partial(numa.gpu_nodes, pci)
    sys.exit(main())
