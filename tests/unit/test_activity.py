"""What a process has done, also where the system tells only half of it."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from sidecar.activity import Activity, activity
from tests.support.descriptors import no_free_descriptor


def test_activity_is_what_threads_do_and_not_the_time_that_passes() -> None:
    """Of any of them: one that holds the interpreter keeps the loop waiting."""
    before = activity()
    threading.Event().wait(0.2)
    idle = activity().since(before)
    before = activity()
    worker = threading.Thread(target=lambda: sum(range(30_000_000)))
    worker.start()
    while worker.is_alive() and activity().since(before) < idle + 0.1:
        pass
    assert activity().since(before) > idle
    worker.join()
    assert activity().since(before) > idle, "of one that has ended, too"


def test_without_a_free_descriptor_work_still_counts() -> None:
    """Only what threads waited is unknown then."""
    with no_free_descriptor():
        before = activity()
        sum(range(3_000_000))
        after = activity()
    assert before.waited is after.waited is None
    assert after.since(before) == after.worked - before.worked > 0
    assert activity().waited is not None


_SECONDS = st.floats(0, 1000)
_READINGS = st.builds(Activity, _SECONDS, st.none() | _SECONDS)


@given(_READINGS, _READINGS)
def test_what_is_not_known_is_no_activity(earlier: Activity, later: Activity) -> None:
    """Neither at one end nor at the other: a process that stood still is not to be missed."""
    worked, known = later.worked - earlier.worked, None not in (earlier.waited, later.waited)
    assert later.since(earlier) >= worked
    assert known or later.since(earlier) == worked
