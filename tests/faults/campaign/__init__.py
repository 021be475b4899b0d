"""Honest clients beside a bad neighbour: `python -m tests.faults.campaign --minutes 20`.

`honest` stores, loads and compares every byte, in both transfer modes; `neighbour` runs one row of
the `table` in a process of its own; `campaign` says what came of it.
"""
