"""Step 7. The stock client on tensors: the tests of transfers, by pytest."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.gpu.quick.report import Report, Skipped, WrongBytes

_TESTS = "tests/gpu/test_transfers.py"


def run(report: Report) -> None:
    import torch

    if not torch.cuda.is_available():
        raise Skipped("no CUDA build of torch")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfEs", _TESTS]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(result.stdout)  # into the log of the step
    failed = re.findall(rf"^(?:FAILED|ERROR) {_TESTS}(?:::)?(\S*)", result.stdout, re.M)
    summary = result.stdout.strip().splitlines()[-1]
    if "bytes differ" in result.stdout:
        raise WrongBytes(", ".join(failed))
    report.check("all of them pass", not failed and result.returncode == 0, summary)
    for name in failed:
        report.check(name, False)
