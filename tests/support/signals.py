"""Whether child processes ignore a signal, whatever this process has inherited."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def inherited(number: signal.Signals, action: signal.Handlers) -> Iterator[None]:
    """Children that are started meanwhile begin with SIG_DFL or SIG_IGN.

    A shell starts its background jobs with SIGINT ignored, nohup what it runs with SIGHUP.
    """
    before = signal.signal(number, action)
    try:
        yield
    finally:
        signal.signal(number, before)
