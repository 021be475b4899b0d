"""S3 with rights that are missing, with an authority of its own, and behind a proxy."""

from __future__ import annotations

import logging
import mmap
import re
import ssl
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from sidecar.tiers.base import Adapter, AdapterUnusable, Bytes, Missing, TierError
from tests.conformance.adapter_cases import PAGE, Spec, build, names, opened, s3
from tests.support import storage
from tests.support.certificates import Certificates, certificates
from tests.support.s3_front import S3Front, s3_front
from tests.support.server import free_port

MARK = "g20261130T101500-0123456789ab"


@pytest.fixture(scope="module")
def arena() -> Bytes:
    return np.frombuffer(mmap.mmap(-1, 16 * PAGE), np.uint8)


@pytest.fixture(scope="module")
def front() -> Iterator[S3Front]:
    """Before a moto that lasts for all tests."""
    with storage.moto() as server, s3_front(server.port) as made:
        yield made


def prefix_of(request: pytest.FixtureRequest) -> str:
    """One that no other test has."""
    return re.sub(r"[^a-z_]", "-", request.node.name)


@pytest.fixture
def adapter(front: S3Front, arena: Bytes, request: pytest.FixtureRequest) -> Iterator[Adapter]:
    """Under a prefix of the test's own, with a mark, as a backend has it before anything else."""
    front.refused.clear()
    with opened(s3(front.port, prefix_of(request)), arena) as made:
        made.write_mark(MARK)
        assert made.read_mark() == MARK
        front.requests.clear()
        yield made


def test_without_bulk_deletion_objects_go_one_by_one(
    front: S3Front, adapter: Adapter, arena: Bytes
) -> None:
    some = names("bulk", 5)
    for name in some:
        adapter.store(name, arena[:PAGE])
    front.refused = {"bulk"}
    adapter.delete(some[:3])
    adapter.delete(some[3:4])
    adapter.delete(some[:1])  # which is gone already
    assert [size is None for size in adapter.find(some)] == [True] * 4 + [False]
    # It is tried once only. (A refusal that a server may get over is tried again by obstore.)
    first_delete = front.requests.index("DELETE")
    assert "BULK" in front.requests[:first_delete]
    assert "BULK" not in front.requests[first_delete:]


@pytest.mark.parametrize("bulk", [set(), {"bulk"}], ids=["in bulk", "one by one"])
def test_without_the_right_to_delete_empty_objects_take_their_place(
    front: S3Front, adapter: Adapter, arena: Bytes, bulk: set[str]
) -> None:
    """They are no records, also for others and after a restart, and can be stored again."""
    gone, kept = names("delete", 2)
    for name in (gone, kept):
        adapter.store(name, arena[:PAGE])
    front.refused = {"delete"} | bulk
    adapter.delete([gone])
    assert adapter.find([gone, kept]) == [None, PAGE]
    with pytest.raises(Missing):
        adapter.load(gone, arena[:PAGE])
    assert [found.name for found in chain(*adapter.scan())] == [kept]
    adapter.store(gone, arena[:PAGE])
    assert adapter.find([gone]) == [PAGE]


def test_without_the_right_to_list_absent_objects_are_misses(
    front: S3Front, adapter: Adapter, arena: Bytes, caplog: pytest.LogCaptureFixture
) -> None:
    there, absent = names("list", 2)
    front.refused = {"list"}
    adapter.store(there, arena[:PAGE])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert adapter.find([there, absent]) == [PAGE, None]
            with pytest.raises(Missing):
                adapter.load(absent, arena[:PAGE])
    assert [record.message.rpartition(": ")[0] for record in caplog.records] == [
        "s3: the permission s3:ListBucket is missing"
    ]
    with pytest.raises(TierError, match="s3:ListBucket"):
        list(adapter.scan())


def test_a_bucket_that_may_not_be_listed_begins_without_a_mark(
    front: S3Front, arena: Bytes, request: pytest.FixtureRequest
) -> None:
    """Whose absence looks forbidden, too."""
    front.refused = {"list"}
    with opened(s3(front.port, prefix_of(request)), arena) as adapter:
        assert adapter.read_mark() is None
        adapter.write_mark(MARK)
        assert adapter.read_mark() == MARK


def test_rights_that_are_needed_are_named(
    front: S3Front, arena: Bytes, request: pytest.FixtureRequest
) -> None:
    [name] = names("needed", 1)
    front.refused = {"read", "write"}
    with opened(s3(front.port, prefix_of(request)), arena) as adapter:
        with pytest.raises(TierError, match=r"http_403: is the permission s3:PutObject missing\?"):
            adapter.store(name, arena[:PAGE])
        with pytest.raises(TierError, match=r"http_403: is the permission s3:GetObject missing\?"):
            adapter.load(name, arena[:PAGE])
        front.refused = {"read"}
        adapter.write_mark(MARK)
        with pytest.raises(TierError, match="s3:GetObject"):
            adapter.read_mark()


# --- Certificates and proxies ---


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def with_tls(files: Certificates) -> Iterator[Spec]:
    """The JSON of an adapter over a server whose authority nobody knows."""
    pytest.importorskip("moto", reason="moto is not installed")
    port = free_port()
    server = storage.Storage(
        port, sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port),
        "-s", "-c", files.server, "-k", files.key,
    )  # fmt: skip
    with server.running():
        yield {**s3(port, "tls"), "endpoint_url": f"https://127.0.0.1:{port}"}


def test_an_authority_that_is_not_known_is_named(with_tls: Spec, arena: Bytes) -> None:
    with (
        opened(with_tls, arena) as adapter,
        pytest.raises(TierError, match="certificate: UnknownIssuer"),
    ):
        adapter.read_mark()


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_private_authority_is_named_by_a_variable(
    with_tls: Spec, arena: Bytes, files: Certificates, monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, str(files.authority))
    assert ssl.create_default_context(cafile=files.authority).get_ca_certs()
    # The server answers: it has no such bucket.
    with opened(with_tls, arena) as adapter, pytest.raises(TierError, match="no_bucket"):
        adapter.read_mark()


def test_certificates_that_cannot_be_read_are_no_start(
    with_tls: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(AdapterUnusable, match=r"AWS_CA_BUNDLE=.*none.pem: No such file"):
        build(with_tls)
    (tmp_path / "none.pem").write_text("no certificate\n")
    with pytest.raises(AdapterUnusable, match=r"AWS_CA_BUNDLE=.*none.pem: .*No certificates"):
        build(with_tls)


def test_nobody_listens(arena: Bytes) -> None:
    """The cause stands before what obstore says of the request."""
    port = free_port()
    with opened(s3(port, "none"), arena) as adapter, pytest.raises(TierError) as raised:
        adapter.read_mark()
    assert str(raised.value).startswith(f"connection: 127.0.0.1:{port}: Connection refused: ")


def test_a_proxy_is_used_but_for_what_no_proxy_names(
    front: S3Front, arena: Bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The front is a proxy as well."""
    front.refused.clear()
    spec = {**s3(front.behind, "proxy"), "endpoint_url": f"http://127.0.0.1:{front.behind}"}
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{front.port}")
    for excluded, asked in (("", True), ("127.0.0.1", False)):
        monkeypatch.setenv("NO_PROXY", excluded)
        front.requests.clear()
        with opened(spec, arena) as adapter:
            adapter.write_mark(MARK)
        assert bool(front.requests) is asked
