"""Multi-modal inputs at the native door, by the block hashes that vLLM makes of them.

By their tokens alone the prompts are one: where an image is, the tokens are its placeholders.
"""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/install.py engine")

from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from tests.support.native_client import CHUNKS, HIT, MISS, engine_at
from tests.support.server import Server

BLOCK, IMAGE_TOKENS = 16, 24
AT = 40
BEFORE = AT // BLOCK  # chunks that end before the image


@pytest.mark.parametrize(
    ("image", "at", "found"),
    [
        ("first", AT, CHUNKS),
        ("second", AT, BEFORE),
        ("first", AT + 2, BEFORE),
        ("first", AT + 2 * BLOCK, BEFORE),
        ("first", 0, 0),
        (None, 0, BEFORE),
    ],
)
def test_images_are_told_apart(own_server: Server, image: str | None, at: int, found: int) -> None:
    with engine_at(own_server, bytes(32)) as engine:
        engine.store(hashes=hashes_with("first", AT))
        hits = engine.find(hashes_with(image, at))
        assert hits == [HIT] * found + [MISS] * (CHUNKS - found)


def hashes_with(image: str | None, at: int) -> list[bytes]:
    """Of a prompt with an image from token `at` on."""
    hash_function = get_hash_fn_by_name("sha256")
    init_none_hash(hash_function)
    place = PlaceholderRange(offset=at, length=IMAGE_TOKENS)
    features = [MultiModalFeatureSpec(None, "image", image, place)] if image else None
    request = Request(
        "r", [7] * (BLOCK * CHUNKS), SamplingParams(), None, mm_features=features,
        block_hasher=get_request_block_hasher(BLOCK, hash_function),
    )  # fmt: skip
    return list(request.block_hashes)
