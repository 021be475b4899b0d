"""One neighbour in a process of its own: `python -m tests.faults.campaign.neighbour NAME TARGET`.

TARGET is the JSON of a `Target`. It begins when there is a line to read. What the server does to it
is no failure: it goes on, or ends.
"""

from __future__ import annotations

import json
import sys

import zmq

from tests.faults.campaign.table import NEIGHBOURS
from tests.faults.campaign.target import Target
from tests.support.raw import NoReply


def main() -> None:
    name = sys.argv[1]
    sys.stdin.readline()
    target = Target(**json.loads(sys.argv[2]))
    while target.goes_on():
        try:
            NEIGHBOURS[name](target)
        except (OSError, zmq.ZMQError, NoReply):
            continue


if __name__ == "__main__":
    main()
