"""Offline inference: LLM(...) with the connector. Run it twice.

    kv-sidecar serve --l1-size-gb 2
    python -m examples.offline --model Qwen/Qwen3-0.6B
    python -m examples.offline --model Qwen/Qwen3-0.6B

The first run computes its prompt and stores the KV, the second takes it from the sidecar and says
the same: nothing else outlives the first. Without a GPU, `python -m launch.tiny_model DIR` makes
a model that is small enough; with `--dtype float32` its output is equal to the last bit.
"""

import os
import sys
import time

from connectors import roles
from connectors.errors import ConnectorError
from connectors.lmcache_mp import CacheServer
from examples.counters import SidecarCounts, chunk_size, sidecar_counts, wait_stored
from examples.usage import Parser

PROMPT = "".join(f"The square of {i} is {i * i}. " for i in range(200))[:3500]
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "LMCACHE_LOG_LEVEL": "ERROR",
    "LMCACHE_DISABLE_BANNER": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, on a CPU only
}


def generate(model: str, dtype: str, sidecar: CacheServer, sidecar_url: str) -> None:
    """Ask one LLM the prompt, and print where the prompt's KV came from."""
    from vllm import LLM, SamplingParams  # takes seconds; wrong usage should not

    llm = LLM(
        model,
        dtype=dtype,
        max_model_len=4096,
        enforce_eager=True,
        kv_transfer_config=roles.aggregated(sidecar),
    )
    before = sidecar_counts(sidecar_url)
    started = time.monotonic()
    [output] = llm.generate([PROMPT], SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)
    seconds = time.monotonic() - started
    prompt, loaded = len(output.prompt_token_ids), output.num_cached_tokens
    print(f"prompt   {prompt:6,} tokens; answered after {seconds:.2f} s")
    print(f"loaded   {loaded:6,} tokens from the sidecar")
    print(f"computed {prompt - loaded:6,} tokens")
    print(f"stored   {wait_rest_stored(sidecar_url, before):6,} chunks in the sidecar")
    print(f"output   {output.outputs[0].text!r}")


def wait_rest_stored(url: str, before: SidecarCounts) -> int:
    """Wait until the sidecar has the chunks that it was asked for in vain; how many it took.

    vLLM answers before the last ones are stored; if it ended here, they would be lost.
    """
    asked = sidecar_counts(url) - before
    wait_stored(url, before.chunks_stored + (asked.looked_up - asked.hit) // chunk_size(url))
    return (sidecar_counts(url) - before).chunks_stored


def main() -> int:
    parser = Parser(__doc__)
    parser.add_sidecar_url()
    parser.add_argument("--model", required=True, help="name or directory")
    parser.add_argument("--dtype", default="auto", help="as vLLM's (default %(default)s)")
    parser.add_argument("--host", default="tcp://127.0.0.1", help="the sidecar's (%(default)s)")
    parser.add_argument("--port", type=int, default=5555, help="the sidecar's (%(default)s)")
    given = parser.parse_args()
    try:
        sidecar = CacheServer(host=given.host, port=given.port)
    except ConnectorError as error:
        parser.error(str(error))
    parser.check(sidecar_counts, given.sidecar_url)
    os.environ.update(ENVIRONMENT | os.environ)
    generate(given.model, given.dtype, sidecar, given.sidecar_url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
