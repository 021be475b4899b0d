"""Every neighbour for a moment. The long campaign: `python -m tests.faults.campaign`."""

from __future__ import annotations

from pathlib import Path

from tests.faults.campaign.campaign import Campaign
from tests.faults.campaign.table import NEIGHBOURS

SECONDS = 0.5  # for each


def test_honest_clients_do_not_notice_their_neighbours(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path)
    campaign.run(list(NEIGHBOURS), SECONDS)
    assert campaign.findings == []
