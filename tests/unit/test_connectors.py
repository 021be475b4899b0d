import json
import subprocess
import sys

import pytest

from connectors.lmcache_mp import kv_transfer_config


def test_aggregated_worker() -> None:
    config = kv_transfer_config(5555, transfer_mode="lmcache_driven", timeout_seconds=5)

    assert json.loads(json.dumps(config)) == {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
        "kv_connector_extra_config": {
            "lmcache.mp.host": "tcp://127.0.0.1",
            "lmcache.mp.port": 5555,
            "lmcache.mp.mp_transfer_mode": "lmcache_driven",
            "lmcache.mp.heartbeat_interval": 10,
            "lmcache.mp.mq_timeout": 5,
        },
    }


def test_unix_socket_host_is_passed_on() -> None:
    extra = kv_transfer_config(5555, host="ipc:///run/kv")["kv_connector_extra_config"]

    assert f"{extra['lmcache.mp.host']}:{extra['lmcache.mp.port']}" == "ipc:///run/kv:5555"


def test_host_without_a_transport_is_refused() -> None:
    with pytest.raises(ValueError, match="localhost"):
        kv_transfer_config(5555, host="localhost")


def test_imports_nothing_outside_the_standard_library() -> None:
    program = (
        "import sys, connectors.lmcache_mp as m;"
        "known = sys.stdlib_module_names | {'connectors'};"
        "print([n for n in sys.modules if n.split('.')[0] not in known])"
    )
    isolated = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True
    )

    assert isolated.stdout.strip() == "['__main__']"
