"""`kv-sidecar size`."""

import argparse
import json
from pathlib import Path
from typing import Any

from connectors import model_file, sizing
from connectors.errors import ConnectorError
from connectors.model_config import Model
from connectors.sizing import KVSize
from sidecar.commands.arguments import checked
from sidecar.commands.output import amount, columns
from sidecar.config.values import integer, size_gib

_COUNT = checked(integer(1, 2**31 - 1))


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "size",
        help="bytes of KV of a model, and how much of it an L1 holds",
        description="What a model's KV cache takes, from its config.json.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="config.json or its directory")
    parser.add_argument("--tp", type=_COUNT, default=1, help="tensor-parallel ranks (default 1)")
    parser.add_argument(
        "--kv-cache-dtype",
        choices=sizing.KV_DTYPES,
        default="auto",
        metavar="DTYPE",
        help=f"{', '.join(sizing.KV_DTYPES)}; default auto",
    )
    parser.add_argument("--chunk-size", type=_COUNT, default=256, help="tokens (default 256)")
    parser.add_argument(
        "--l1-size-gb", type=checked(size_gib), help="GiB; also print what fits into it"
    )
    parser.add_argument(
        "--prompt-tokens", type=_COUNT, default=8192, help="of a usual prompt (default 8192)"
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON, in bytes")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print the figures. Raises ConnectorError for a file that is no model's config.json."""
    model = model_file.read(given.model, ask_classes=True)
    size = sizing.kv_size(model, given.kv_cache_dtype, given.tp)
    if not size.rank_bytes:
        raise ConnectorError(f"{given.model}: no layer of this model has a KV cache")
    figures = _figures(given, model, size)
    print(json.dumps(figures, indent=2) if given.json else "\n".join(_lines(given, model, figures)))
    return 0


def _figures(given: argparse.Namespace, model: Model, size: KVSize) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "model": model.name,
        "kv_cache_dtype": model.dtype if given.kv_cache_dtype == "auto" else given.kv_cache_dtype,
        "attention_layers": sum(group.layers for group in model.attention),
        "recurrent_layers": model.recurrent_layers,
        "mla": model.latent,
        "ranks": size.ranks,
        "bytes_per_token_of_rank": size.rank_bytes,
        "bytes_per_token": size.token_bytes,
        "bytes_per_token_windowed": size.ranks * size.windowed,
        "chunk_tokens": given.chunk_size,
        "bytes_per_chunk": size.chunk_bytes(given.chunk_size),
    }
    if given.l1_size_gb:
        fit = sizing.fit(size, int(given.l1_size_gb * 2**30), given.chunk_size, given.prompt_tokens)
        figures |= {
            "l1_tokens": fit.tokens,
            "prompt_tokens": given.prompt_tokens,
            "l1_prompts": fit.prompts,
        }
    return figures


def _lines(given: argparse.Namespace, model: Model, figures: dict[str, Any]) -> list[str]:
    rows = [
        ("model", _model_text(model, figures["kv_cache_dtype"])),
        ("one token", _ranks_text(given, figures)),
        ("one chunk", f"{amount(figures['bytes_per_chunk'])} ({given.chunk_size} tokens)"),
        ("one prompt", _prompt_text(given, figures)),
    ]
    if given.l1_size_gb:
        prompts = figures["l1_prompts"]
        fits = f"{figures['l1_tokens']:,} tokens"
        if prompts is not None:
            fits += f", {prompts:,} prompts of {given.prompt_tokens:,} tokens"
        rows.append((f"L1 of {given.l1_size_gb:g} GiB", fits))
    return columns(rows) + _notes(model, figures)


def _model_text(model: Model, dtype: str) -> str:
    shapes = {(group.kv_heads, group.elements) for group in model.attention}
    heads = [f"{heads} KV heads of {elements / 2:g}" for heads, elements in sorted(shapes)]
    groups = [
        f"{group.layers} layers"
        + (f" with a window of {group.window:,} tokens" if group.window else "")
        for group in model.attention
    ]
    shape = "MLA" if model.latent else " and ".join(heads)
    return f"{model.name}: {', '.join(groups)}, {shape}, {dtype}"


def _ranks_text(given: argparse.Namespace, figures: dict[str, Any]) -> str:
    text = amount(figures["bytes_per_token"])
    if given.tp == 1:
        return text
    if figures["mla"]:
        return f"{text}, the same on all {given.tp} ranks and kept once"
    return f"{text}: {amount(figures['bytes_per_token_of_rank'])} on each of {given.tp} ranks"


def _prompt_text(given: argparse.Namespace, figures: dict[str, Any]) -> str:
    chunks = given.prompt_tokens // given.chunk_size
    if not chunks:
        return f"{given.prompt_tokens:,} tokens are less than a chunk: not cached"
    size = amount(chunks * figures["bytes_per_chunk"])
    return f"{size} ({given.prompt_tokens:,} tokens, {chunks:,} whole chunks)"


def _notes(model: Model, figures: dict[str, Any]) -> list[str]:
    notes = []
    if figures["bytes_per_token_windowed"]:
        share = figures["bytes_per_token_windowed"] / figures["bytes_per_token"]
        notes.append(
            f"note: {share:.0%} of it belongs to layers with a window. The engine keeps it for the "
            "window alone, the sidecar for every chunk."
        )
    if model.recurrent_layers:
        notes.append(
            f"note: {model.recurrent_layers} layers have recurrent state, which is not counted. "
            "With lmcache's client the sidecar refuses such a model."
        )
    return notes
