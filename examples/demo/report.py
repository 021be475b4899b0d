"""What the demo prints at its end."""

from pathlib import Path

from examples.counters import counter

from .engine import Engine
from .measure import Measured
from .sidecar import Sidecar


def table(cold: Measured, warm: Measured) -> str:
    slow, fast = cold.completion.first_token_seconds, warm.completion.first_token_seconds
    same = cold.completion.token_ids == warm.completion.token_ids
    rows = [
        ("", "cold", "warm", ""),
        ("time to first token", f"{slow:.2f} s", f"{fast:.2f} s", f"{slow / fast:.1f} x sooner"),
        row("prompt tokens", cold.vllm.prompt, warm.vllm.prompt),
        row("  computed by vLLM", cold.vllm.computed, warm.vllm.computed),
        row("  retrieved from the sidecar", cold.vllm.transferred, warm.vllm.transferred),
        ("the sidecar's counters", "", "", ""),
        row("  tokens looked up", cold.sidecar.looked_up, warm.sidecar.looked_up),
        row("  tokens found", cold.sidecar.hit, warm.sidecar.hit),
        row("  chunks stored", cold.sidecar.chunks_stored, warm.sidecar.chunks_stored),
        row("  chunks loaded", cold.sidecar.chunks_loaded, warm.sidecar.chunks_loaded),
        ("identical output", "", "yes" if same else "NO", ""),
    ]
    return "\n".join(f"{a:<30}{b:>10}{c:>10}   {d}".rstrip() for a, b, c, d in rows)


def row(what: str, cold: int, warm: int) -> tuple[str, str, str, str]:
    return what, f"{cold:,}", f"{warm:,}", ""


def memory(sidecar: Sidecar) -> str:
    used = counter(sidecar.url, "lmcache_mp_l1_memory_usage_bytes")
    return f"{used / 1e6:,.0f} MB of KV in the sidecar's memory"


def how_to_try(engine: Engine, sidecar: Sidecar, request: Path) -> str:
    return f"""
Both are still running. The same prompt again, and what each counted:

  curl -s {engine.url}/v1/completions -H 'Content-Type: application/json' -d @{request}
  curl -s {engine.url}/metrics | grep '^vllm:external_prefix_cache.*_total'
  curl -s {sidecar.url}/metrics | grep '^lmcache_mp_lookup_hit'
  curl -s {sidecar.url}/status

Stop them with

  kill {engine.process.pid} {sidecar.process.pid} && rm -r {request.parent}"""
