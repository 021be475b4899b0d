"""`python -m tests.faults.campaign --minutes 20`: every neighbour in turn, for equal times."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.campaign.campaign import Campaign
from tests.faults.campaign.table import NEIGHBOURS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(NEIGHBOURS), help="this neighbour")
    options = parser.parse_args()
    names = options.only or list(NEIGHBOURS)
    with tempfile.TemporaryDirectory() as directory:
        campaign = Campaign(Path(directory), options.seed)
        campaign.run(names, 60 * options.minutes / len(names))
    for finding in campaign.findings:
        print(finding)
    print(f"{len(campaign.findings)} findings")
    return 1 if campaign.findings else 0


if __name__ == "__main__":
    sys.exit(main())
