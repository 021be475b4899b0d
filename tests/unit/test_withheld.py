"""What must not be told a client yet is told when its pings have made it give up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sidecar.handlers.withheld import Withheld

CLIENT, OTHER = b"client", b"other"


class Request:
    """As far as `Withheld` knows one."""

    def __init__(self, client: bytes, site: Site) -> None:
        self.client, self._site = client, site
        self.refused: str | None = None

    def is_connected(self) -> bool:
        return self.client in self._site.connected

    def send_negative(self, reason: str) -> None:
        self.refused = reason


class Site:
    """A clock, two connections, and a worker of the model `m` on each."""

    def __init__(self) -> None:
        self.now = 0.0
        self.connected = {CLIENT, OTHER}
        self.registered = {CLIENT, OTHER}
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self.withheld = Withheld(lambda: self.now, self._later, self._forget)

    def hold(self, client: bytes = CLIENT) -> Request:
        request = Request(client, self)
        self.withheld.hold(request, "because")  # type: ignore[arg-type]
        return request

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self._timers if timer[0] <= self.now]
        self._timers = [timer for timer in self._timers if timer not in due]
        for _, callback in due:
            callback()
        self.withheld.tick(self.connected.__contains__, self.registered.__contains__)

    def _later(self, seconds: float, callback: Callable[[], None]) -> None:
        self._timers.append((self.now + seconds, callback))

    def _forget(self, client: bytes) -> set[str]:
        had = client in self.registered
        self.registered.discard(client)
        return {"m"} if had else set()


@pytest.fixture
def site() -> Site:
    return Site()


def test_nobody_else_hears_of_it(site: Site) -> None:
    site.hold()
    assert not site.withheld.must_hear_no(OTHER)
    assert OTHER in site.registered and CLIENT not in site.registered


def test_the_no_comes_after_the_ping_and_not_before(site: Site) -> None:
    request = site.hold()
    site.pass_time(9)
    assert request.refused is None
    assert site.withheld.must_hear_no(CLIENT)
    assert request.refused is None
    site.pass_time(1)
    assert request.refused == "because"


def test_it_is_told_so_until_a_long_step_has_ended(site: Site) -> None:
    site.hold()
    for _ in range(3):
        assert site.withheld.must_hear_no(CLIENT)
        site.pass_time(10)
    assert not site.withheld.must_hear_no(CLIENT)


def test_lookups_of_the_model_find_nothing_until_it_has_registered_again(site: Site) -> None:
    site.hold()
    assert site.withheld.silences("m") and not site.withheld.silences("n")
    site.withheld.must_hear_no(CLIENT)
    site.pass_time(31)
    assert site.withheld.silences("m")
    site.registered.add(CLIENT)
    site.pass_time(1)
    assert not site.withheld.silences("m")


def test_what_comes_while_it_gives_up_is_answered_too(site: Site) -> None:
    site.hold()
    site.withheld.must_hear_no(CLIENT)
    site.pass_time(5)
    late = site.hold()
    assert late.refused is None
    site.pass_time(1)
    assert late.refused == "because"


def test_one_that_is_gone_leaves_nothing(site: Site) -> None:
    request = site.hold()
    site.connected.discard(CLIENT)
    site.pass_time(1)
    assert request.refused == "because"
    assert not site.withheld.silences("m")
    assert site.hold().refused == "because"
    site.pass_time(1)
    assert not site.withheld.must_hear_no(CLIENT)
