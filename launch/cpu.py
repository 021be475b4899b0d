"""The same topology on a CPU: a model made on the spot, and settings for a few cores."""

import importlib.util
import os
from pathlib import Path

# No connection to a model hub is needed, nor tried.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
# Dynamo compiles parts of its worker, which on a CPU takes longer than they do.
_NO_COMPILER = {"TORCHDYNAMO_DISABLE": "1"}
# What a small machine has to spare for each worker's KV.
_KV_GIB = "1"
ARGUMENTS = ("--dtype", "float32", "--max-model-len", "4096", "--enforce-eager")


def no_small_model() -> str:
    """Why `small_model` cannot make one; empty where it can."""
    missing = [n for n in ("safetensors", "tokenizers") if importlib.util.find_spec(n) is None]
    if not missing:
        return ""
    return f"no model can be made without {' and '.join(missing)}: name one with --model"


def small_model(directory: Path) -> None:
    """Make a 6 MB model in `directory`, as every stack does anew."""
    # numpy and safetensors: only where a model is made.
    from launch.tiny_model import make_model

    make_model(directory, hidden=256, layers=4)


def environment(index: int, workers: int, own_model: bool) -> dict[str, str]:
    """Variables of worker `index`: an equal share of the cores, or all workers fight for all."""
    found = {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", _KV_GIB)}
    found |= _NO_COMPILER
    if own_model:
        found |= _OFFLINE
    if workers > 1 and "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
        found["VLLM_CPU_OMP_THREADS_BIND"] = cores(index, workers)
    return found


def cores(index: int, workers: int) -> str:
    """The cores of worker `index` as vLLM takes them: `0,1`."""
    all_cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(all_cores) // workers)
    first = index * share % len(all_cores)
    return ",".join(map(str, all_cores[first : first + share]))
