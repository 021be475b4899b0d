"""LMCacheMPConnector, the stock client of the sidecar that runs inside a vLLM worker."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from connectors.errors import ConnectorError
from connectors.versions import meets

TransferMode = Literal["auto", "engine_driven", "lmcache_driven"]
NAME = "LMCacheMPConnector"
TRANSFER_MODE = "lmcache.mp.mp_transfer_mode"
SERVER_URLS = "lmcache.mp.server_urls"
# What lmcache 0.4.7 calls the modes; it ends over another name.
MODES_OF_0_4_7 = {"auto": "auto", "engine_driven": "data", "lmcache_driven": "handle"}
_TRANSPORTS = ("tcp://", "ipc://")


@dataclass(frozen=True, kw_only=True)
class CacheServer:
    """Where the worker finds its sidecar, and how long it waits for it.

    `host` is what the client prepends to `:port`: `tcp://NAME`, or `ipc:///PATH` for the Unix
    socket `/PATH:port`; an IPv6 address may stand without its brackets. `urls`, where given, are
    complete (`tcp://NAME:PORT`) and take their place: one sidecar each for an equal share of the
    worker's ranks, all with one chunk size.

    `engine_driven` has the worker copy its KV, `lmcache_driven` the sidecar; `auto` leaves it to
    the worker's device. `client` is the worker's release of lmcache, which decides what it reads;
    empty for a current one. A worker notices a dead sidecar, and its return, within
    `heartbeat_seconds`; the sidecar forgets it after `--worker-reap-timeout-seconds` of silence.

    What waits for an answer when the sidecar dies stands still until a new sidecar answers or
    `timeout_seconds` have passed. Then the client goes on without the cache, but for the store of
    an engine-driven worker: there it raises, and vLLM ends. vLLM also ends when a step takes
    300 s, the client's own default, and one step may meet the timeout twice.

    Raises ConnectorError where a value cannot work.
    """

    host: str = "tcp://127.0.0.1"
    port: int = 5555
    urls: tuple[str, ...] = ()
    transfer_mode: TransferMode = "auto"
    heartbeat_seconds: float = 10.0
    timeout_seconds: float = 60.0
    client: str = ""

    def __post_init__(self) -> None:
        for address in (self.host, *self.urls):
            if not address.startswith(_TRANSPORTS):
                raise ConnectorError(
                    f"a sidecar's address begins with tcp:// or ipc://, not {address!r}"
                )
            if address.startswith("tcp://*"):
                raise ConnectorError(f"{address} is where a sidecar listens: give one address")
        for url in self.urls:
            if lacks_brackets(url):
                raise ConnectorError(f"an IPv6 address stands in brackets, not {url}")
        if not 0 < self.port < 65536:
            raise ConnectorError(f"{self.port} is not a port")
        if self.transfer_mode not in get_args(TransferMode):
            raise ConnectorError(f"{self.transfer_mode!r} is no transfer mode")
        if not (self.heartbeat_seconds > 0 and self.timeout_seconds > 0):
            raise ConnectorError("the heartbeat and the timeout must be more than 0 seconds")

    @property
    def ipv6_addresses(self) -> list[str]:
        """Those that lmcache's client never reaches: its sockets are IPv4 ones (`mq.py` does not
        set ZMQ_IPV6, 0.4.5 to 0.5.6), and it waits.
        """
        addresses = self.urls or (bracketed(self.host),)
        return [address for address in addresses if address.startswith("tcp://[")]


def lacks_brackets(address: str) -> bool:
    """Whether it is `tcp://` and an IPv6 address as it is, where a port may follow."""
    return address.startswith("tcp://") and "[" not in address and address.count(":") > 2


def bracketed(host: str) -> str:
    """`tcp://::1` -> `tcp://[::1]`, as `:port` follows."""
    return f"tcp://[{host.removeprefix('tcp://')}]" if lacks_brackets(host) else host


def kv_transfer_config(server: CacheServer) -> dict[str, Any]:
    """The config of a worker that both stores its KV in the sidecar and loads it from there.

    The keys are those that the client reads: the addresses in `lmcache_mp_connector.py`, the
    others in `ExtraConfigDefault` of `vllm_multi_process_adapter.py`. What the user asks for is
    there in any case, and `worker.needs` tells what can be done with it.
    """
    return {
        "kv_connector": NAME,
        "kv_role": "kv_both",
        # vLLM's default fails the request whose KV did not arrive.
        "kv_load_failure_policy": "recompute",
        # Without it vLLM falls back, silently, to a connector of its own that does not fit
        # lmcache 0.5, where LMCache's cannot be imported.
        "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
        "kv_connector_extra_config": {
            **_addresses(server),
            **_transfer_mode(server),
            "lmcache.mp.heartbeat_interval": server.heartbeat_seconds,
            "lmcache.mp.mq_timeout": server.timeout_seconds,
        },
    }


def _addresses(server: CacheServer) -> dict[str, Any]:
    if server.urls:
        return {SERVER_URLS: list(server.urls)}
    return {"lmcache.mp.host": bracketed(server.host), "lmcache.mp.port": server.port}


def _transfer_mode(server: CacheServer) -> dict[str, str]:
    mode: str = server.transfer_mode
    if server.client and not meets(server.client, "0.5.0"):
        if mode == "auto" and not meets(server.client, "0.4.7"):
            return {}
        mode = MODES_OF_0_4_7[mode]
    return {TRANSFER_MODE: mode}
