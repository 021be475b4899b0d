"""What the demo prints at its end."""

from pathlib import Path

from .client import counter
from .engine import Engine
from .measure import Measured
from .sidecar import Sidecar


def table(cold: Measured, warm: Measured) -> str:
    slow, fast = cold.completion.first_token_seconds, warm.completion.first_token_seconds
    same = cold.completion.token_ids == warm.completion.token_ids
    rows = [
        ("", "cold", "warm", ""),
        ("time to first token", f"{slow:.2f} s", f"{fast:.2f} s", f"{slow / fast:.1f} x sooner"),
        ("prompt tokens", *both(cold, warm, "vllm_computed", "vllm_retrieved"), ""),
        ("  computed by vLLM", *both(cold, warm, "vllm_computed"), ""),
        ("  retrieved from the sidecar", *both(cold, warm, "vllm_retrieved"), ""),
        ("the sidecar's counters", "", "", ""),
        ("  tokens looked up", *both(cold, warm, "looked_up"), ""),
        ("  tokens found", *both(cold, warm, "hit"), ""),
        ("  chunks stored", *both(cold, warm, "chunks_stored"), ""),
        ("  chunks loaded", *both(cold, warm, "chunks_loaded"), ""),
        ("identical output", "", "yes" if same else "NO", ""),
    ]
    return "\n".join(f"{a:<30}{b:>10}{c:>10}   {d}".rstrip() for a, b, c, d in rows)


def both(cold: Measured, warm: Measured, *names: str) -> tuple[str, str]:
    """The sum of these counts for each of the two, with thousands separators."""
    columns = [sum(vars(m.counts)[name] for name in names) for m in (cold, warm)]
    return f"{columns[0]:,}", f"{columns[1]:,}"


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
