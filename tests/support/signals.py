"""What a child process does on a signal, whatever this process inherited."""

import signal


def end_on_interrupt() -> None:
    """For `preexec_fn`. A shell starts its background jobs with SIGINT ignored, and children of
    such a job would ignore it too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
