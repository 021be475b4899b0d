"""Workers whose KV would be wrong with the sidecar's client, and what to do instead.

The client's keys hold the tokens of a request, its cache_salt, and the model's name; of an image
the tokens hold what vLLM takes for its identity (lmcache 0.5.5 and 0.5.6:
`RequestTracker` in `lmcache_mp_metadata.py`, `IPCCacheServerKey` in `custom_types.py`). What else
vLLM puts in the hashes of its own prefix cache (`generate_block_hash_extra_keys` in
`vllm/v1/core/kv_cache_utils.py`, 0.31 and 0.32) is in none of them, and no server can see it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from connectors import lmcache_mp, vllm_options
from connectors.arguments import by_name, is_off
from connectors.errors import ConnectorError
from connectors.model_file import is_latent, is_multimodal, is_recurrent
from connectors.versions import Installed, meets
from connectors.worker import Command, Worker, connectors_of

SALTED = "--salted-requests"
# By name (`--enable-lora`): the flag as given, and its values.
Options = Mapping[str, tuple[str, ...]]

_PREFIX_CACHE, _IMAGE_CACHE = "--enable-prefix-caching", "--mm-processor-cache-gb"


@dataclass(frozen=True)
class Hazard:
    """`what` stands on the command, `why` that brings wrong KV, and what to `do`.

    `salts_help`: right KV if each request that differs from others in more than its tokens has
    a cache_salt of its own.
    """

    what: str
    why: str
    do: str
    salts_help: bool = False


def of_options(options: Options) -> Iterator[Hazard]:
    """What in a worker's options makes its KV depend on more than the client's keys hold."""
    for look in _OPTIONS:
        if found := look(options):
            yield found


def of_latent_model(mode: str, have: Installed | None) -> Hazard | None:
    """MLA in handle mode on vLLM's CPU build.

    lmcache 0.5.6 moves the KV cache to shared memory, and vLLM 0.32's MLA layers go on with the
    memory from before.
    """
    handle_mode = ("lmcache_driven", lmcache_mp.MODES_OF_0_4_7["lmcache_driven"])
    on_cpu = have is not None and "cpu" in (have.get("vllm") or "")
    if mode not in handle_mode or not on_cpu:
        return None
    return Hazard(
        "an MLA model in mode lmcache_driven",
        "on vLLM's CPU build the memory that LMCache shares is not the one that MLA layers use",
        "--transfer-mode engine_driven, or auto",
    )


def of_images(options: Options, have: Installed | None) -> Hazard | None:
    """A multi-modal model with a client whose keys do not hold its inputs.

    `lmcache_mp_connector.py` of lmcache 0.4.5 to 0.5.2 leaves placeholders as they are;
    `hex_hash_to_int16` in `utils.py` of 0.5.3 and 0.5.4 puts 16 bits in their place.
    """
    client = have.get("lmcache") if have else None
    if client is None or meets(client, "0.5.5") or _on(options, "--language-model-only"):
        return None
    return Hazard(
        f"a multi-modal model with lmcache {client}",
        "before 0.5.5 the client's keys hold 16 bits of an image's hash, before 0.5.3 nothing: "
        "one image gets the KV of another",
        "pip install 'lmcache>=0.5.5', or give each image a cache_salt of its own, and say so with "
        f"{SALTED}",
        salts_help=True,
    )


def of_recurrent_model(have: Installed | None) -> Hazard | None:
    """A model with recurrent state with a client that registers it as if it were KV.

    `EngineGroupInfo.recurrent_state` is of lmcache 0.5.5; the sidecar refuses several KV groups of
    older ones, and cannot tell what a single one holds.
    """
    client = have.get("lmcache") if have else None
    if client is None or meets(client, "0.5.5"):
        return None
    return Hazard(
        f"a model with recurrent state with lmcache {client}",
        "before 0.5.5 the client does not say which layers are recurrent, and what is stored of "
        "them is no prefix's",
        "pip install 'lmcache>=0.5.5'",
    )


def check(
    worker: Worker, command: Command, have: Installed | None, salted: bool, python: str
) -> list[str]:
    """What could not be checked. Raises ConnectorError for a worker whose KV would be wrong.

    `have` and `python` are the worker's versions and interpreter, None and empty where the
    worker runs elsewhere. `salted`: all requests have the cache_salt that they need.
    """
    arguments, unchecked = command.arguments, []
    if vllm_options.hidden(arguments):
        try:
            arguments = vllm_options.written_out(arguments, worker.program == "vllm", python)
        except vllm_options.NotChecked as reason:
            unchecked.append(f"not checked: what --config and dotted options say: {reason}")
    options = by_name(arguments)
    if not uses_client(options):
        return unchecked
    settings = connectors_of(worker.config).get(lmcache_mp.NAME, {})
    found = list(of_options(options))
    if latent := of_latent_model(settings.get(lmcache_mp.TRANSFER_MODE, "auto"), have):
        found += [latent] if is_latent(worker.model) else []
    if images := of_images(options, have):
        found += [images] if is_multimodal(worker.model) else []
    if recurrent := of_recurrent_model(have):
        found += [recurrent] if is_recurrent(worker.model) else []
    for hazard in found:
        if not (salted and hazard.salts_help):
            raise ConnectorError(f"{hazard.what}: {hazard.why}: {hazard.do}")
    return unchecked


def uses_client(options: Options) -> bool:
    """Whether a worker with these options has the sidecar's client."""
    if options.get("--kv-offloading-backend", ("",))[-1] == "lmcache":
        return True
    return lmcache_mp.NAME in " ".join(options.get("--kv-transfer-config", ()))


def adapters(options: Options) -> Hazard | None:
    if not _on(options, "--enable-lora"):
        return None
    return Hazard(
        "--enable-lora",
        "the client's keys do not tell LoRA adapters apart: one gets the KV of another",
        _salts("the requests of each adapter"),
        salts_help=True,
    )


def embeddings(options: Options) -> Hazard | None:
    if not _on(options, "--enable-prompt-embeds"):
        return None
    return Hazard(
        "--enable-prompt-embeds",
        "the client's keys hold no prompt embeddings: those of one length get each other's KV",
        _salts("different embeddings"),
        salts_help=True,
    )


def counted_images(options: Options) -> Hazard | None:
    """vLLM hashes images only for its caches; without them it counts them from 0 at each start.

    `_process_mm_uuids` in `vllm/renderers/base.py`, 0.31 and 0.32.
    """
    flag, *size = options.get(_IMAGE_CACHE, ("",))
    if not size or _number(size[0]) != 0 or not is_off(options.get(_PREFIX_CACHE, ("",))[0]):
        return None
    return Hazard(
        f"{flag} {size[0]} with {options[_PREFIX_CACHE][0]}",
        "vLLM then numbers images in place of hashing them, and the first image after a start "
        "gets the KV of the first before it",
        "leave one of the two out",
        salts_help=True,
    )


_OPTIONS: tuple[Callable[[Options], Hazard | None], ...] = (
    adapters,
    embeddings,
    counted_images,
)


def _salts(whose: str) -> str:
    return f"give {whose} a cache_salt of their own, and say so with {SALTED}"


def _on(options: Options, name: str) -> bool:
    return name in options and not is_off(options[name][0])


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
