"""NixlConnector, which moves KV from a prefill worker's memory to a decode worker's."""

from dataclasses import dataclass
from typing import Any, Literal

BufferDevice = Literal["cpu", "cuda", "xpu"]
NAME = "NixlConnector"


@dataclass(frozen=True, kw_only=True)
class Nixl:
    """The transfer between the two sides; both must have the same.

    `buffer_device` is the memory that NIXL registers: None is the worker's own device, `cpu` on
    a GPU a detour through host memory. `backends` are NIXL's plugins; none is vLLM's default,
    UCX. `ucx_tls` and `ucx_net_devices` go to UCX as they are (`rc,cuda_copy`, `mlx5_0:1`);
    empty lets UCX choose.
    """

    buffer_device: BufferDevice | None = None
    backends: tuple[str, ...] = ()
    ucx_tls: str = ""
    ucx_net_devices: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What UCX reads from the worker's environment."""
        settings = {"UCX_TLS": self.ucx_tls, "UCX_NET_DEVICES": self.ucx_net_devices}
        return {name: value for name, value in settings.items() if value}


def kv_transfer_config(
    kv_role: Literal["kv_producer", "kv_consumer"], nixl: Nixl
) -> dict[str, Any]:
    """One side of the transfer. vLLM deprecates `kv_both` here since 0.23."""
    config: dict[str, Any] = {
        "kv_connector": NAME,
        "kv_role": kv_role,
        # A decode worker that cannot fetch the KV computes it.
        "kv_load_failure_policy": "recompute",
    }
    if nixl.buffer_device:
        config["kv_buffer_device"] = nixl.buffer_device
    if nixl.backends:
        config["kv_connector_extra_config"] = {"backends": list(nixl.backends)}
    return config
