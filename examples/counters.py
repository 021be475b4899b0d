"""What vLLM and the sidecar counted, read from their /metrics pages.

Counters only grow: what happened between two readings is their difference. It includes whatever
other clients did meanwhile.
"""

import json
import time
import urllib.request
from dataclasses import astuple, dataclass
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

STORE_SECONDS = 60


@dataclass(frozen=True)
class Counts:
    """Integers only; a later reading minus an earlier one is another of its kind."""

    def __sub__(self, before: Self) -> Self:
        return type(self)(*(x - y for x, y in zip(astuple(self), astuple(before), strict=True)))


@dataclass(frozen=True)
class VllmCounts(Counts):
    """Prompt tokens by where their KV came from, as vLLM tells it."""

    computed: int
    own_cache: int  # vLLM's prefix cache
    transferred: int  # over the connector: from the sidecar, where that is all it has

    @property
    def prompt(self) -> int:
        return self.computed + self.own_cache + self.transferred


@dataclass(frozen=True)
class SidecarCounts(Counts):
    """Tokens that the sidecar was asked for (in whole chunks) and found, chunks that it moved."""

    looked_up: int
    hit_l1: int
    hit_l2: int
    chunks_stored: int
    chunks_loaded: int

    @property
    def hit(self) -> int:
        return self.hit_l1 + self.hit_l2


class Page:
    """One scrape of `url`/metrics. Raises OSError where nothing answers with such a page."""

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(f"{url.rstrip('/')}/metrics", timeout=10) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        self._samples = [sample for family in families for sample in family.samples]

    def total(self, name: str, **labels: str) -> int:
        """The sum of a counter's series with these labels. Raises ValueError without any."""
        wanted = labels.items()
        found = [s.value for s in self._samples if s.name == name and wanted <= s.labels.items()]
        if not found:
            raise ValueError(f"no {name} on its /metrics")
        return int(sum(found))


def counter(url: str, name: str, **labels: str) -> int:
    """One counter by itself, as `Page.total`."""
    return Page(url).total(name, **labels)


def vllm_counts(url: str) -> VllmCounts:
    """Of the vLLM whose API is at `url`. Raises OSError and ValueError as `Page` does."""
    page = Page(url)
    sources = ("local_compute", "local_cache_hit", "external_kv_transfer")
    return VllmCounts(
        *(page.total("vllm:prompt_tokens_by_source_total", source=source) for source in sources)
    )


def sidecar_counts(url: str) -> SidecarCounts:
    """Of the sidecar whose admin port is at `url`. Raises OSError and ValueError as `Page` does."""
    page = Page(url)
    return SidecarCounts(
        looked_up=page.total("lmcache_mp_lookup_requested_tokens_total"),
        hit_l1=page.total("lmcache_mp_lookup_hit_l1_tokens_total"),
        hit_l2=page.total("lmcache_mp_lookup_hit_l2_tokens_total"),
        chunks_stored=page.total("lmcache_mp_l1_write_chunks_total"),
        chunks_loaded=page.total("lmcache_mp_l1_read_chunks_total"),
    )


def wait_stored(url: str, wanted: int) -> None:
    """Wait until the sidecar has counted `wanted` stored chunks (vLLM stores behind its answer).

    Raises TimeoutError after 60 s.
    """
    deadline = time.monotonic() + STORE_SECONDS
    while (stored := sidecar_counts(url).chunks_stored) < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{stored} of {wanted} chunks stored after {STORE_SECONDS} s")
        time.sleep(0.1)


def chunk_size(url: str) -> int:
    """Tokens in a chunk of the sidecar whose admin port is at `url`."""
    with urllib.request.urlopen(f"{url.rstrip('/')}/status", timeout=10) as response:
        return int(json.load(response)["chunk_size"])
