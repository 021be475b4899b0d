"""The pictures of docs/ are of what stands beside them."""

import re

from scripts.benchmark_picture import PICTURE, table


def test_the_picture_of_the_benchmark_is_of_its_table() -> None:
    shown = re.findall(r">([^<>]+)</text>", PICTURE.read_text())
    rows = [row for row in table() if row.figure.target.text()]
    assert len(rows) > 10
    for row in rows:
        assert row.figure.title in shown
        assert f"{row.peer:.3g}" in shown and f"{row.ours:.3g}" in shown, row.figure.title
