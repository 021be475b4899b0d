"""The JSON of s3, resp, mooncake_store, mock and fault_inject; and what fault_inject does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sidecar.tiers.adapters import mooncake
from sidecar.tiers.adapters.mooncake import MooncakeSettings
from sidecar.tiers.adapters.resp import RespSettings
from sidecar.tiers.adapters.s3 import Place, S3Settings
from sidecar.tiers.base import Adapter, AdapterUnusable, Missing, NoSpace, TierError
from sidecar.tiers.names import ObjectName
from sidecar.tiers.types import parse
from tests.support.faulty_adapter import FAULTY
from tests.support.mock_adapter import MOCK

AT_MINIO = {"type": "s3", "bucket": "kv-cache", "endpoint_url": "http://minio:9000"}
MOONCAKE = {"type": "mooncake_store", "local_hostname": "n1", "master_server_address": "m:50051"}
RECORD = 8192


def settings(spec: dict[str, Any]) -> Any:
    return parse(spec)[0]


def name(number: int) -> ObjectName:
    return ObjectName("m@1.0@" + "0" * 32, number.to_bytes(32, "big"))


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"s3_endpoint": "s3://kv-cache"}, Place("kv-cache")),
        ({"s3_endpoint": "kv-cache"}, Place("kv-cache")),
        (
            {"s3_endpoint": "s3://kv-cache.s3.us-west-2.amazonaws.com"},
            Place("kv-cache", "https://kv-cache.s3.us-west-2.amazonaws.com", in_host=True),
        ),
        (
            {"s3_endpoint": "kv-cache.store:8080", "disable_tls": True},
            Place("kv-cache", "http://kv-cache.store:8080", in_host=True),
        ),
        ({"bucket": "kv-cache"}, Place("kv-cache")),
        # Dots: in the path, never a part of the host, where no certificate would cover it.
        ({"bucket": "kv.cache.prod"}, Place("kv.cache.prod")),
        (
            {"bucket": "kv.cache.prod", "endpoint_url": "https://minio:9000"},
            Place("kv.cache.prod", "https://minio:9000"),
        ),
        (
            {"s3_endpoint": "s3://kv.cache.prod.s3.us-west-2.amazonaws.com"},
            Place("kv.cache.prod", "https://s3.us-west-2.amazonaws.com"),
        ),
        (
            {"bucket": "kv-cache", "endpoint_url": "http://minio:9000/"},
            Place("kv-cache", "http://minio:9000"),
        ),
    ],
)
def test_where_a_bucket_is(keys: dict[str, Any], place: Place) -> None:
    given = settings({"type": "s3", **keys})
    assert isinstance(given, S3Settings) and given.place() == place


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"type": "s3"}, "either s3_endpoint"),
        ({**AT_MINIO, "s3_endpoint": "s3://b"}, "either s3_endpoint"),
        ({**AT_MINIO, "endpoint_url": "minio:9000"}, "http"),
        ({**AT_MINIO, "endpoint_url": "https://minio:9000", "disable_tls": True}, "contradicts"),
        ({**AT_MINIO, "bucket": "a b"}, "no bucket's name"),
        ({"type": "s3", "endpoint_url": "http://minio:9000"}, "no bucket's name"),
        ({"type": "s3", "s3_endpoint": "s3://kv-cache/folder"}, "s3_endpoint is"),
        ({"type": "s3", "s3_endpoint": "s3://kv-cache", "disable_tls": True}, "needs the host"),
        ({**AT_MINIO, "aws_access_key_id": "a"}, "go together"),
        ({**AT_MINIO, "max_capacity_gb": 1}, "lifecycle"),
        ({**AT_MINIO, "prefix": "a/../b"}, "prefix"),
        ({**AT_MINIO, "s3_enable_s3express": True}, "s3_enable_s3express"),
        ({"type": "valkey", "startup_nodes": "a:1,b:2"}, "one host:port"),
        ({"type": "valkey", "startup_nodes": "a"}, "one host:port"),
        ({"type": "valkey", "startup_nodes": "::1:6379"}, "without brackets"),
        ({"type": "valkey", "startup_nodes": "a:1", "cluster_mode": True}, "not implemented"),
        ({"type": "resp", "host": "a", "max_capacity_gb": 1}, "maxmemory"),
        ({"type": "resp", "host": "a", "ttl_seconds": 0}, "ttl_seconds"),
        ({"type": "mooncake_store", "local_hostname": "a"}, "host:port"),
        ({**MOONCAKE, "master_server_address": "etcd://m:2379"}, "host:port"),
        ({**MOONCAKE, "global_segment_size": "4 parsecs"}, "no size"),
        ({**MOONCAKE, "protocol": "efa"}, "efa"),
        ({**MOONCAKE, "max_capacity_gb": 1}, "master evicts"),
        ({"type": FAULTY}, "inner"),
        (
            {"type": FAULTY, "inner": {"type": "moc"}},
            "unknown",
        ),
        (
            {
                "type": FAULTY,
                "inner": {"type": MOCK, "max_capacity_gb": 1},
            },
            "beside inner",
        ),
        (
            {
                "type": FAULTY,
                "inner": {"type": MOCK},
                "errors": {"load": "EVIL"},
            },
            "EVIL",
        ),
        (
            {
                "type": FAULTY,
                "inner": {"type": MOCK},
                "hang": ["lode"],
            },
            "lode",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(spec)


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ({**AT_MINIO, "s3_num_io_threads": 64}, "s3_num_io_threads"),
        ({**AT_MINIO, "s3_prefer_http2": True}, "s3_prefer_http2"),
        (
            {
                "type": FAULTY,
                "inner": {"type": MOCK},
                "gap_indices": [1],
            },
            "gap_indices",
        ),
        ({**MOONCAKE, "per_op_workers": {"store": 2}}, "per_op_workers"),
    ],
)
def test_keys_of_lmcache_that_change_nothing(spec: dict[str, Any], key: str) -> None:
    [warning] = parse(spec)[1]
    assert key in warning


def test_a_private_prefix_may_have_a_capacity() -> None:
    assert settings({**AT_MINIO, "shared": False, "max_capacity_gb": 2}).capacity_bytes == 2 << 30


def test_where_a_redis_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON counts, then the environment."""
    given = settings({"type": "valkey", "startup_nodes": "valkey:7000"})
    assert isinstance(given, RespSettings) and given.address() == ("valkey", 7000)
    for spec in ({"startup_nodes": "[::1]:6379"}, {"host": "[::1]"}, {"host": "::1"}):
        assert settings({"type": "valkey", **spec}).address() == ("::1", 6379)
    bare = settings({"type": "resp"})
    with pytest.raises(AdapterUnusable, match="LMCACHE_RESP_HOST"):
        bare.build()
    monkeypatch.setenv("LMCACHE_RESP_HOST", "from-env")
    assert bare.address() == ("from-env", 6379)
    monkeypatch.setenv("LMCACHE_RESP_PORT", "7001")
    assert bare.address() == ("from-env", 7001)
    assert settings({"type": "resp", "host": "a", "port": 1}).address() == ("a", 1)


def test_what_mooncake_is_told() -> None:
    given = settings({**MOONCAKE, "global_segment_size": "4GB", "device_name": "mlx5_0"})
    assert isinstance(given, MooncakeSettings)
    told = given.setup()
    assert told["global_segment_size"] == str(4 << 30)
    assert told["master_server_addr"] == "m:50051" and told["rdma_devices"] == "mlx5_0"


def test_a_mark_that_is_there_and_cannot_be_read_is_not_lost() -> None:
    """Of Mooncake's: the node that has it may answer again. Its `get` does not say what failed."""
    adapter, exists = mooncake._Mooncake(settings(MOONCAKE), None), [1]
    adapter._store = SimpleNamespace(batch_is_exist=lambda keys: exists, get=lambda key: b"")
    with pytest.raises(TierError, match="mark: it is there and cannot be read"):
        adapter.read_mark()
    exists[0] = 0
    assert adapter.read_mark() is None


@pytest.mark.parametrize(
    ("spec", "module", "extra"),
    [
        (AT_MINIO, "obstore", "s3"),
        ({"type": "resp", "host": "a"}, "redis", "resp"),
        (MOONCAKE, "mooncake", "mooncake"),
    ],
)
def test_a_missing_library_says_what_to_install(
    spec: dict[str, Any], module: str, extra: str
) -> None:
    """In a process of its own: the settings are read without it."""
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from sidecar.tiers.types import parse; from sidecar.tiers.base import AdapterUnusable\n"
        f"settings = parse({spec!r})[0]\n"
        "try: settings.build()\n"
        "except AdapterUnusable as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f": install kv-sidecar[{extra}]\n" in done.stdout, done.stderr


# --- fault_inject ---


def injected(**faults: Any) -> Adapter:
    """An adapter with these faults, over 200 records that are stored already."""
    spec = {
        "type": FAULTY,
        "inner": {"type": MOCK},
        **faults,
    }
    adapter: Adapter = settings(spec).build()
    inner: Adapter = adapter._inner  # type: ignore[attr-defined]
    for number in range(200):
        inner.store(name(number), np.full(RECORD, number, np.uint8))
    return adapter


def lost(adapter: Adapter) -> set[int]:
    """Which of the 200 are not loaded as they were stored."""
    record, numbers = np.empty(RECORD, np.uint8), set()
    for number in range(200):
        try:
            adapter.load(name(number), record)
        except Missing:
            numbers.add(number)
        else:
            changed = int(np.bitwise_count(record ^ np.uint8(number)).sum())
            assert changed <= 1
            if changed:
                numbers.add(number)
    return numbers


@pytest.mark.parametrize("key", ["rate", "corrupt_rate"])
def test_a_share_of_the_names_is_hit(key: str) -> None:
    """The same names every time, others with another seed."""
    hit = lost(injected(**{key: 0.3}))
    assert 30 < len(hit) < 90
    assert lost(injected(**{key: 0.3})) == hit
    assert lost(injected(**{key: 0.3}, seed=1)) != hit
    assert lost(injected(**{key: 0.0})) == set()
    assert len(lost(injected(**{key: 1.0}))) == 200


@pytest.mark.parametrize(
    ("error", "kind"), [("EIO", TierError), ("ENOSPC", NoSpace), ("ENOENT", Missing)]
)
def test_errors_by_their_name(error: str, kind: type[TierError]) -> None:
    adapter = injected(errors=dict.fromkeys(("load", "find", "delete", "scan", "store"), error))
    record = np.empty(RECORD, np.uint8)
    for call in (
        lambda: adapter.load(name(0), record),
        lambda: adapter.store(name(0), record),
        lambda: adapter.find([name(0)]),
        lambda: adapter.delete([name(0)]),
        lambda: list(adapter.scan()),
    ):
        with pytest.raises(TierError) as raised:
            call()
        assert type(raised.value) is kind
    assert adapter.set_aside(name(0), "header")


def test_some_calls_of_each_operation() -> None:
    """Two pass, the next three are hit, the rest pass."""
    adapter = injected(errors={"find": "EIO"}, after=2, first=3)
    outcomes = []
    for _ in range(8):
        try:
            adapter.find([name(0)])
            outcomes.append(True)
        except TierError:
            outcomes.append(False)
    assert outcomes == [True, True, False, False, False, True, True, True]


def test_a_hang_ends_with_the_adapter() -> None:
    adapter = injected(hang=["load"])
    ended: list[BaseException] = []

    def load() -> None:
        try:
            adapter.load(name(0), np.empty(RECORD, np.uint8))
        except TierError as error:
            ended.append(error)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    assert adapter.find([name(0)]) == [RECORD]
    assert thread.is_alive() and not ended
    adapter.close()
    thread.join(30)
    assert len(ended) == 1


def test_a_delay_is_at_least_that_long() -> None:
    adapter, started = injected(delay_seconds={"find": 0.2}), time.monotonic()
    adapter.find([name(0)])
    assert time.monotonic() - started >= 0.2


def test_a_file_switches_faults_on_and_off(tmp_path: Path) -> None:
    """It replaces the given ones while it is there; what cannot be read changes nothing."""
    control = tmp_path / "faults.json"
    adapter = injected(rate=1.0, control_path=str(control))

    def say(text: str) -> None:
        temporary = tmp_path / "new"
        temporary.write_text(text)
        os.replace(temporary, control)

    assert len(lost(adapter)) == 200
    say("{}")
    assert lost(adapter) == set()
    say(json.dumps({"errors": {"find": "EIO"}}))
    with pytest.raises(TierError, match="EIO"):
        adapter.find([name(0)])
    say("{ not JSON")
    with pytest.raises(TierError, match="EIO"):
        adapter.find([name(0)])
    control.unlink()
    assert adapter.find([name(0)]) == [RECORD]
    assert len(lost(adapter)) == 200
