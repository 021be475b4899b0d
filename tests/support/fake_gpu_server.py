"""kv-sidecar whose GPU processes use the fake driver."""

import os
import sys

from sidecar.cli import main
from sidecar.engines.cuda import gpu, gpus

if __name__ == "__main__":
    gpus.COMMAND[:] = [sys.executable, "-m", "tests.support.fake_gpu"]
    gpu._SILENT_SECONDS = float(os.environ.get("FAKE_GPU_SECONDS", 0)) or gpu._SILENT_SECONDS
    sys.exit(main())
