"""The dashboard page in a real browser: empty, under load, with a failing L2, over a restart."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sidecar import shared_libraries
from sidecar.cli import main
from tests.support import native
from tests.support.browser import CHROMIUM, Watched, chromium
from tests.support.client import ENGINE
from tests.support.faulty_adapter import FAULTY
from tests.support.kept import KEEP, Site
from tests.support.l2 import adapter_flags, fs_flags
from tests.support.mock_adapter import MOCK
from tests.support.server import Server
from tests.support.traffic import Traffic

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

LACK = shared_libraries.lack("playwright")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
    pytest.mark.skipif(bool(LACK), reason=LACK),
]

expect.set_options(timeout=60_000)
MODEL = "<img src=x onerror=alert(1)>/of-a-length-that-does-not-fit-on-the-screen-of-a-phone"
PROMPTS, AGAIN = 5, 4
REFUSED = "net::ERR_CONNECTION_REFUSED"
# Texts whose contrast with what is behind them is less than WCAG's AA asks for.
FAINT = Path(__file__).with_name("faint_texts.js").read_text()
# Labels of charts that lie where lines are drawn, or on another label, or are cut off.
CROSSED = Path(__file__).with_name("crossed_texts.js").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """Opens a server's page. At the end it has complained of nothing and asked nobody else."""
    opened: list[tuple[Watched, str]] = []

    def open_(server: Server, **options: Any) -> Watched:
        window = Watched(browser, **options)
        opened.append((window, server.http))
        window.page.goto(server.http)
        return window

    yield open_
    for window, address in opened:
        window.close()
        assert not window.complaints
        assert window.requests
        assert all(url.startswith(f"{address}/") for url in window.requests), window.requests


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a disk that has answered some lookups, and refused something."""
    directory = tmp_path_factory.mktemp("busy")
    server = Server(directory, *fs_flags(directory / "l2", name="disk")).start()
    traffic = Traffic(server, MODEL)
    for prompt in range(PROMPTS):
        assert traffic.ask(prompt) == 0
    for prompt in list(range(PROMPTS)) * (AGAIN - 1):
        assert traffic.ask(prompt) == 3
    traffic.store_badly()
    other = Traffic(server, "other", mode=ENGINE)
    yield server
    other.close()
    traffic.close()
    server.stop()


def figure(page: Page, title: str) -> Any:
    """The large figure of a card."""
    return card(page, title).locator(".figure")


def card(page: Page, title: str) -> Any:
    return page.locator(".card").filter(has=page.get_by_role("heading", name=title, exact=True))


def panel(page: Page, title: str) -> Any:
    return page.get_by_role("region", name=title)


def test_an_empty_server_says_what_to_do(
    own_server: Server,
    open_page: Callable[..., Watched],
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = open_page(own_server).page
    expect(page.locator("#health")).to_have_text("Healthy")
    expect(panel(page, "Workers")).to_contain_text("No worker has registered yet")
    expect(panel(page, "L2 adapters")).to_contain_text("No L2 is configured")
    expect(panel(page, "Refusals")).to_contain_text("Nothing was refused")
    expect(figure(page, "Hit rate")).to_have_text("\N{EN DASH}")
    expect(figure(page, "L1 occupancy")).to_have_text("0 %")
    expect(page.locator(".card")).to_have_count(4)
    # What it says works as it is.
    shown = panel(page, "Workers").locator("pre").inner_text()
    command = re.search(r"\$\(kv-sidecar (.*)\)", shown)
    assert command is not None
    assert main(shlex.split(command[1])) == 0
    extra = json.loads(capsys.readouterr().out)["kv_connector_extra_config"]
    assert extra["lmcache.mp.port"] == own_server.port
    flags = shlex.split(panel(page, "L2 adapters").locator("pre").inner_text())[2:]
    assert main(["serve", *flags, "--print-config"]) == 0


def test_under_load_it_shows_what_the_server_counts(
    busy: Server, open_page: Callable[..., Watched]
) -> None:
    page = open_page(busy).page
    share = 100 * (AGAIN - 1) // AGAIN
    expect(figure(page, "Hit rate")).to_have_text(f"{share} %")
    tokens = PROMPTS * AGAIN * 3 * busy.chunk_size
    expect(card(page, "Hit rate")).to_contain_text(f"of {tokens:,} tokens looked up")
    expect(card(page, "Lookups")).to_contain_text(f"{PROMPTS * AGAIN} lookups in 15 min")
    expect(card(page, "L1 occupancy")).to_contain_text(f"Objects{PROMPTS * 3}")
    expect(card(page, "L2 occupancy")).to_contain_text(f"Objects{PROMPTS * 3}")
    total = busy.metrics().total
    moved = total("lmcache_mp_transfer_bytes_total")
    expect(card(page, "Transfers with workers")).to_contain_text(f"{moved / 1000:.0f} kB in 15")
    written = total("lmcache_mp_l2_transfer_bytes_total", direction="store")
    assert written == total("lmcache_mp_l2_usage_bytes") > 0
    expect(panel(page, "L2 adapters")).to_contain_text(f"{written / 1000:.0f} kB")
    row = panel(page, "Workers").get_by_role("row").nth(1)
    expect(row).to_contain_text(MODEL)
    (instance,) = busy.status()["registered_gpu_ids"]
    expect(row).to_contain_text(f"instance {instance}")
    expect(row).to_contain_text("3 layers, 16 tokens a block, float16")
    expect(row).to_contain_text("Connected")
    other = panel(page, "Workers").get_by_role("row").nth(2)
    expect(other).to_contain_text("Engine-driven")
    expect(other).to_contain_text("3 layers, 16 tokens a block")
    refusal = panel(page, "Refusals").get_by_role("row").nth(1)
    expect(refusal).to_contain_text("bad_payload")
    assert page.locator("#workers img").count() == 0


def test_a_chart_tells_values_to_pointer_and_keyboard(
    busy: Server, open_page: Callable[..., Watched]
) -> None:
    page = open_page(busy).page
    chart = card(page, "L1 occupancy").locator(".chart")
    expect(chart.locator("path.line")).to_have_count(2)
    used = busy.l1()["memory_used_bytes"]
    box = chart.bounding_box()
    chart.hover(position={"x": box["width"] - 2, "y": 50})
    tip = chart.locator(".tip")
    expect(tip).to_contain_text(re.compile(r"\d\d:\d\d:\d\d"))
    expect(tip).to_contain_text(f"{used / 1024:.0f} KiB")
    page.mouse.move(0, 0)
    expect(tip).to_be_hidden()
    chart.focus()
    page.keyboard.press("Home")
    expect(tip).to_contain_text("0 B")  # as it was when the server started
    expect(card(page, "L1 occupancy").locator("output")).to_contain_text("Used 0 B")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_readable(
    busy: Server, open_page: Callable[..., Watched], scheme: str, width: int
) -> None:
    page = open_page(busy, width=width, color_scheme=scheme).page
    expect(panel(page, "Workers").get_by_role("cell").first).to_contain_text(MODEL)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(FAINT) == []
    expect(page.locator(".chart text").first).to_be_visible()
    assert page.evaluate(CROSSED) == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", ground)) / 3
    assert (brightness > 128) == (scheme == "light")


def test_a_failing_l2_and_its_recovery(
    tmp_path: Path, new_server: Callable[..., Server], open_page: Callable[..., Watched]
) -> None:
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps({"errors": {"store": "EIO"}}))
    inner = {"type": MOCK}
    flags = adapter_flags(
        type=FAULTY,
        name="bucket",
        inner=inner,
        control_path=str(faults),
    )
    server = new_server(*flags).start()
    traffic = Traffic(server, "m")
    page = open_page(server).page
    for prompt in range(3):
        traffic.ask(prompt)
    concerns = page.locator("#concerns")
    expect(concerns).to_contain_text("L2 adapter bucket: stores are cut off after failures (EIO)")
    expect(concerns).to_contain_text("not written to L2")
    expect(page.locator("#health")).to_have_text("Healthy")  # whoever restarts it loses the L1
    stores = panel(page, "L2 adapters").get_by_role("cell").last
    expect(stores).to_contain_text(re.compile("(Cut off|On trial)EIO"))
    faults.unlink()
    prompt = 100
    while "Working" not in stores.inner_text():
        assert prompt < 400, "the adapter was never tried again"
        traffic.ask(prompt, chunks=1)
        page.wait_for_timeout(200)
        prompt += 1
    expect(stores).to_contain_text("earlier: EIO")
    expect(concerns).not_to_contain_text("cut off")
    traffic.close()


def test_tenants_with_a_quota_are_shown(
    new_server: Callable[..., Server], open_page: Callable[..., Watched]
) -> None:
    server = new_server("--eviction-policy", "IsolatedLRU").start()
    page = open_page(server).page
    expect(page.locator("#workers .empty")).to_be_visible()
    expect(page.locator("#tenants-panel")).to_be_hidden()
    assert server.request("/quota/%3Cb%3Eteam", {"limit_gb": 0.125}, "PUT")[0] == 200
    rows = page.locator("#tenants tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("<b>team")
    expect(rows).to_contain_text("128 MiB")
    assert server.request("/quota/%3Cb%3Eteam", None, "DELETE")[0] == 200
    expect(page.locator("#tenants-panel")).to_be_hidden()


def test_what_is_kept_and_protected_and_who_is_at_the_native_door_is_shown(
    new_server: Callable[..., Server], open_page: Callable[..., Watched]
) -> None:
    server = new_server(*KEEP).start()
    site, page = Site(server), open_page(server).page
    l1 = card(page, "L1 occupancy")
    expect(l1).to_contain_text("Kept after a stop10 min 0 s")
    expect(l1).not_to_contain_text("Protected")
    site.store(1)
    site.check(1)
    assert server.request("/cache/protections", {"request_id": "r1", "ttl_seconds": 600})[0] == 201
    expect(l1).to_contain_text(re.compile(r"Protected[\d.]+ KiB of "))

    expect(page.locator("#engines-panel")).to_be_hidden()
    engine = native.Engine(server.url).start()
    row = panel(page, "Engines").get_by_role("row").nth(1)
    expect(row).to_contain_text("native-model")
    expect(row).to_contain_text("Ready")

    def fail(route: Route) -> None:
        """As a server says it that cannot write its index any more."""
        state = route.fetch().json()
        state["kept"]["failed"] = "No space left on device"
        route.fulfill(json=state)

    expect(card(page, "Lookups")).not_to_contain_text("Readers of KV events")
    subscription = site.client.frames("subscribe_kv_events", 7, "kept", 0, 8)
    site.client.exchange(subscription)
    expect(card(page, "Lookups")).to_contain_text("Readers of KV events1")
    page.route("**/page/state*", fail)
    expect(l1).to_contain_text("Kept after a stopno")
    notice = "The next server will not find this L1: No space left on device."
    expect(page.locator("#concerns")).to_contain_text(notice)
    page.unroute("**/page/state*")
    engine.end_processes()
    site.close()


def test_it_outlives_a_restart_of_the_server(
    own_server: Server, open_page: Callable[..., Watched]
) -> None:
    window = open_page(own_server)
    page, traffic = window.page, Traffic(own_server, "before")
    traffic.ask(1)
    expect(panel(page, "Workers")).to_contain_text("before")
    expect(card(page, "Lookups")).to_contain_text("1 lookup in 15 min")
    own_server.kill()
    offline = page.get_by_role("alert")
    expect(offline).to_contain_text("The server does not answer")
    expect(page).to_have_title("No answer: kv-sidecar")
    expect(panel(page, "Workers")).to_contain_text("before")  # what was known stays to be read
    own_server.start()
    expect(offline).to_be_hidden()
    expect(page).to_have_title("kv-sidecar")
    expect(panel(page, "Workers")).to_contain_text("No worker has registered yet")
    expect(card(page, "Lookups")).to_contain_text("0 lookups in 15 min")
    again = Traffic(own_server, "after")
    expect(panel(page, "Workers")).to_contain_text("after")
    # The browser itself says so, whatever the page does.
    assert all(REFUSED in text for text in window.complaints), window.complaints
    window.complaints.clear()
    again.close()
    traffic.close()
