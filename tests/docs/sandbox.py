"""A folder in which the commands of a block are run by bash as they stand.

`kv-sidecar`, `python -c` and curl are real. What has no place in a test (vLLM, docker, a cluster)
is a stand-in that notes how it was called; `calls` checks that.
"""

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.docs.pages import REPO
from tests.support.server import free_port

STAND_INS = (
    *("vllm", "lmcache", "docker", "kubectl", "make", "python", "python3", ".venv/bin/python"),
    ".venv/gpu/bin/python",
    *("pip", "pipx", "scripts/install.py", "scripts/gpu_wheels.py"),
    *("launch/agg.sh", "launch/disagg.sh", "launch/vllm.sh"),
    *("launch/status.sh", "launch/stop.sh"),
)
_STAND_IN = """\
#!/bin/bash
case $1 in -c) exec "$REAL_PYTHON" "$@";; esac
printf '%s\\0' "{name}" "$@" >> "$CALLS"
printf '\\n\\0' >> "$CALLS"
"""
_KV_SIDECAR = '#!/bin/bash\nexec "$REAL_PYTHON" -m sidecar "$@"\n'
# A server of a block goes on until its end, and must end well.
_PRELUDE = """\
set -eu
servers=()
serve() {
    kv-sidecar serve "$@" 2>> server.log &
    servers+=($!)
    kv-sidecar wait --url "$ADMIN" --timeout 30 || { cat server.log >&2; return 1; }
}
end() {
    code=$?
    for server in "${servers[@]}"; do kill "$server"; wait "$server" || code=99; done
    exit "$code"
}
trap end EXIT
fpath=(. .)
"""
_MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 131072,
}  # fmt: skip


class Outcome(NamedTuple):
    """How a block ended, what it printed, and how stand-ins were called."""

    code: int
    output: str
    calls: list[list[str]]


class Sandbox:
    """An empty folder with a short path (a Unix socket's is limited), and free ports."""

    def __init__(self, root: Path, openai_port: int) -> None:
        self.root = root
        self.port, self.http_port = free_port(), free_port()
        self.admin = f"http://127.0.0.1:{self.http_port}"
        self._openai = f"127.0.0.1:{openai_port}"
        self._write_files()

    def run(self, text: str) -> Outcome:
        """Run a block. Fails after 5 minutes; then everything that it started is killed."""
        script = _PRELUDE + self.adapted(text)
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=self.root, env=self._environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=300)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return Outcome(process.returncode, output, self._calls())

    def adapted(self, text: str) -> str:
        """The same with this sandbox's paths and ports, a small L1, servers in the background."""
        for pattern, replacement in self._substitutions():
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        return text

    def _substitutions(self) -> Iterator[tuple[str, str]]:
        yield r"^(kv-sidecar (?:serve|doctor).*)--l1-size-gb \d+", r"\1--l1-size-gb 0.05"
        yield r"^kv-sidecar serve (?!.*--print-config)", "serve "
        yield r"^(kv-sidecar (?:status|wait))(?! --url)", rf"\1 --url {self.admin}"
        yield r"^(kv-sidecar status .*--watch \d+)", r"timeout -s INT 2 \1 || test $? = 124"
        yield r"kv-sidecar connector ", rf"\g<0>--port {self.port} "
        # The page means a worker's environment, which has Dynamo.
        yield r"kv-sidecar worker-args (?!.*--for )", r"\g<0>--skip-version-check "
        yield r"127\.0\.0\.1:8080", f"127.0.0.1:{self.http_port}"
        yield r"127\.0\.0\.1:8000", self._openai
        yield r"--prometheus-port \d+", f"--prometheus-port {free_port()}"
        yield r"/data/l2|/run/kv/mp", rf"{self.root}\g<0>"
        yield r"/models/Llama-3.1-8B|MODEL_DIRECTORY", str(self.root / "model")
        yield r"(?<= )bench/traces/", f"{REPO}/bench/traces/"
        yield r"/tmp/tiny", str(self.root / "tiny")

    def _environment(self) -> dict[str, str]:
        ours = {
            key: value for key, value in os.environ.items() if not key.startswith("KV_SIDECAR_")
        }
        return ours | {
            "PATH": f"{self.root}/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(REPO),
            "HOME": str(self.root),
            "REAL_PYTHON": sys.executable,
            "CALLS": str(self.root / "calls"),
            "ADMIN": self.admin,
            "KV_SIDECAR_PORT": str(self.port),
            "KV_SIDECAR_HTTP_PORT": str(self.http_port),
        }

    def _calls(self) -> list[list[str]]:
        noted = self.root / "calls"
        text = noted.read_text() if noted.exists() else ""
        return [call.split("\0")[:-1] for call in text.split("\n\0")[:-1]]

    def _write_files(self) -> None:
        for folder in ("bin", "model", "data", "run/kv", ".config/fish/completions"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "model" / "config.json").write_text(json.dumps(_MODEL))
        (self.root / "sidecar.yaml").write_text("l1-size-gb: 0.05\n")
        self._write_program("bin/kv-sidecar", _KV_SIDECAR)
        for name in STAND_INS:
            path = name if "/" in name else f"bin/{name}"
            self._write_program(path, _STAND_IN.format(name=name))

    def _write_program(self, path: str, text: str) -> None:
        program = self.root / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
