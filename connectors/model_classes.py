"""A program for an environment with vLLM or transformers: what a model's class says of itself.

Reads a config.json from stdin. Prints the configuration of its language model as JSON, with all
that the class adds. Runs no code of the model's own, and looks nothing up elsewhere.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"


def language_model(directory: str) -> Any:
    """By vLLM, which has classes beside those of transformers."""
    try:
        from vllm.transformers_utils.config import get_config, get_hf_text_config
    except ImportError:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(directory, trust_remote_code=False).get_text_config()
    return get_hf_text_config(get_config(directory, trust_remote_code=False))


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_bytes(sys.stdin.buffer.read())
        print(json.dumps(language_model(directory).to_dict(), default=str))


if __name__ == "__main__":
    main()
