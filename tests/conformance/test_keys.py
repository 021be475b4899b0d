"""What the stock client takes into its keys, and what vLLM's own prefix cache tells apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from connectors import hazards

pytest.importorskip("vllm")
pytest.importorskip("lmcache.integration.vllm.lmcache_mp_metadata")
import torch
from lmcache.integration.vllm.lmcache_mp_metadata import LMCacheMPRequestTracker
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.renderers.base import BaseRenderer
from vllm.sampling_params import SamplingParams
from vllm.v1.core import kv_cache_utils
from vllm.v1.request import Request

TOKENS = 16


def request(**differences: Any) -> Request:
    given = {"prompt_token_ids": [7] * TOKENS, **differences}
    return Request("r", sampling_params=SamplingParams(), pooling_params=None, **given)


def lora(number: int) -> Request:
    return request(lora_request=LoRARequest(f"adapter-{number}", number, f"/{number}"))


def embeddings(number: int) -> Request:
    made = torch.full((TOKENS, 2), float(number))
    return request(prompt_token_ids=None, prompt_embeds=made)


def image(number: int) -> Request:
    place = PlaceholderRange(offset=2, length=4)
    feature = MultiModalFeatureSpec(None, "image", f"hash-{number}", place)
    return request(mm_features=[feature])


def salt(number: int) -> Request:
    return request(cache_salt=f"s{number}")


def key_of_the_client(of: Request) -> object:
    tracker = LMCacheMPRequestTracker(of)
    return tracker.get_token_ids(), tracker.cache_salt


def key_of_vllm(of: Request) -> object:
    return kv_cache_utils.generate_block_hash_extra_keys(of, 0, TOKENS, 0)[0]


@pytest.mark.parametrize(
    ("made", "told_apart"), [(lora, False), (embeddings, False), (image, True), (salt, True)]
)
def test_what_the_client_tells_apart(made: Callable[[int], Request], told_apart: bool) -> None:
    first, second = made(1), made(2)
    assert key_of_vllm(first) != key_of_vllm(second)
    assert (key_of_the_client(first) != key_of_the_client(second)) == told_apart


def test_vllm_tells_nothing_else_apart() -> None:
    """A new kind of input is to be looked at: does the client's key hold it?"""
    source = inspect.getsource(kv_cache_utils)
    kinds = {line.split("(")[0] for line in source.splitlines() if "_extra_hash_keys(" in line}
    assert {kind.removeprefix("def ") for kind in kinds if kind.startswith("def ")} == {
        "_gen_mm_extra_hash_keys",
        "_gen_lora_extra_hash_keys",
        "_gen_prompt_embeds_extra_hash_keys",
    }


def test_without_its_caches_vllm_counts_images_from_0() -> None:
    assert hazards.counted_images(
        {
            "--mm-processor-cache-gb": ("--mm-processor-cache-gb", "0"),
            "--enable-prefix-caching": ("--no-enable-prefix-caching",),
        }
    )
    off = SimpleNamespace(
        model_config=SimpleNamespace(multimodal_config=SimpleNamespace(mm_processor_cache_gb=0)),
        config=SimpleNamespace(cache_config=SimpleNamespace(enable_prefix_caching=False)),
        _validate_mm_uuids=lambda *_: None,
    )
    any_two_images = SimpleNamespace(get_all_counts=lambda: {"image": 2})
    found = BaseRenderer._process_mm_uuids(off, {}, any_two_images, {}, "renderer0-mm-0")
    assert found == {"image": ["renderer0-mm-0-image-0", "renderer0-mm-0-image-1"]}
    source = inspect.getsource(BaseRenderer)
    assert 'f"renderer{self.api_process_rank}-mm-{self._mm_req_counter.inc(1)}"' in source
