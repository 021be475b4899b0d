"""The dashboard's files and state as a browser gets them, without one."""

import ast
import re
from pathlib import Path

import pytest

from sidecar import __version__
from tests.support.admin_site import ADAPTER, ENGINE_DRIVEN, HANDLE, REFUSAL, Site

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "sidecar" / "admin" / "page"
FILES = sorted(path.name for path in PAGE.iterdir() if path.name != "index.html")

# Which argument is the reason, by the end of the name of what is called.
REASON_IS = {
    "_on_dropped": 0, "Refused": 0, "Unreadable": 0, "refuse": 0, "on_refused": 1, "refusals.add": 1
}  # fmt: skip


def policy(site: Site, path: str) -> dict[str, str]:
    """The content security policy of an answer."""
    text = site.http.get(path).headers["content-security-policy"]
    return dict(part.strip().split(" ", 1) for part in text.split(";"))


def test_the_page_is_html_that_names_only_files_of_its_own(site: Site) -> None:
    reply = site.http.get("/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["x-content-type-options"] == "nosniff"
    links = re.findall(r'(?:src|href)="([^"]*)"', reply.text)
    assert "page/main.js" in links
    for link in links:
        assert site.http.get(link).status_code == 200, link


@pytest.mark.parametrize("name", FILES)
def test_each_file_has_its_type_and_is_as_it_lies_there(site: Site, name: str) -> None:
    reply = site.http.get(f"/page/{name}")
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    assert reply.headers["content-type"].split(";")[0] == types[Path(name).suffix]
    assert reply.content == (PAGE / name).read_bytes()


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/page/state"])
def test_nothing_may_run_or_load_but_what_the_server_serves(site: Site, path: str) -> None:
    rules = policy(site, path)
    assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert "unsafe" not in str(rules)


@pytest.mark.parametrize("path", ["/", "/page/page.css", "/page/state"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_it_is_only_read(site: Site, path: str, method: str) -> None:
    assert site.http.request(method, path).status_code == 405


@pytest.mark.parametrize("name", ["nothing.js", "../dashboard.py", "%2e%2e%2fdashboard.py", ""])
def test_no_other_file_is_served(site: Site, name: str) -> None:
    assert site.http.get(f"/page/{name}").status_code == 404


def test_the_state(site: Site) -> None:
    site.service.l2 = [ADAPTER]
    state = site.http.get("/page/state").json()
    assert (state["version"], state["unhealthy_reason"]) == (__version__, None)
    assert state["listens_on"] == {"host": "localhost", "port": 5555}
    assert (state["adapters"], state["refusals"]) == ([ADAPTER], [REFUSAL])
    assert state["workers"][0] == {**HANDLE, "instance_id": "7"}
    assert (state["l1"]["used_bytes"], state["queue_depth"]) == (256, 1)
    assert state["history"]["rows"] == [[0.0], [3.0], [6.0]]


def test_an_instance_id_keeps_its_63_bits(site: Site) -> None:
    """JavaScript would round a number of that size."""
    workers = site.http.get("/page/state").json()["workers"]
    assert workers[1]["instance_id"] == str(ENGINE_DRIVEN["instance_id"])


def test_only_rows_that_are_new(site: Site) -> None:
    assert site.http.get("/page/state?after=2").json()["history"]["rows"] == [[6.0]]
    assert site.http.get("/page/state?after=3").json()["history"]["rows"] == []
    for wrong in ("-1", "x"):
        assert site.http.get(f"/page/state?after={wrong}").status_code == 400


def test_a_name_that_is_no_unicode_does_not_hide_the_rest(site: Site) -> None:
    site.service.workers = [{**HANDLE, "model_name": "bad \ud800 name"}]
    reply = site.http.get("/page/state")
    assert reply.status_code == 200
    assert "bad \\ud800 name" in reply.text


def test_the_state_of_a_server_that_is_not_well(site: Site) -> None:
    site.service.reason = "a copy thread has died"
    assert site.http.get("/page/state").json()["unhealthy_reason"] == "a copy thread has died"
    site.service.reason = None
    site.loop.hung = True
    reply = site.http.get("/page/state")
    assert reply.status_code == 503
    assert "the wire loop has not answered" in reply.json()["error"]


def reasons(path: Path) -> set[str]:
    """The reasons of refusals that a file names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        place = next((p for end, p in REASON_IS.items() if f".{name}".endswith(f".{end}")), None)
        if isinstance(node, ast.Call) and place is not None and len(node.args) > place:
            inside = ast.walk(node.args[place])
            found |= {str(each.value) for each in inside if isinstance(each, ast.Constant)}
    return found


def test_every_reason_of_a_refusal_is_explained() -> None:
    used = set().union(*(reasons(path) for path in (ROOT / "sidecar").rglob("*.py")))
    explained = re.findall(r"^  (\w+):", (PAGE / "reasons.js").read_text(), re.MULTILINE)
    assert {"bad_registration", "copy_failed", "unknown_operation"} <= used
    assert set(explained) == used
