"""In place of an interpreter with vLLM and Dynamo: starts in a moment, and fails as it is told.

Dynamo's frontend lists the model as soon as a worker has registered it in the discovery directory.
`STAND_IN_<PROGRAM>` says what goes wrong: `exit:CODE` before it is ready, `die:CODE` once it is,
`never` (is never ready), `stay` (SIGTERM does not end it). PROGRAM is FRONTEND, DECODE, PREFILL
or WORKER. A worker has children, one of them in a session of its own, and a file in /dev/shm.
All draw a bar of progress, with a sign that is not ASCII.
"""

import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

VERSIONS = {"vllm": "0.31.0+cpu", "lmcache": "0.5.6", "nixl": "1.5.1", "ai-dynamo": "1.6.1"}


def value(flag: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(flag) + 1] if flag in sys.argv else default


def main() -> None:
    if sys.argv[1] == "-c":
        print(json.dumps(VERSIONS))
        return
    frontend = sys.argv[2] == "dynamo.frontend"
    mode = value("--disaggregation-mode", "worker")
    fault, _, code = os.environ.get(
        f"STAND_IN_{'frontend' if frontend else mode}".upper(), ""
    ).partition(":")
    print(f"loading {sys.argv[2]}", flush=True)
    sys.stdout.buffer.write("50%\r100% \u2713\n".encode())
    if fault == "exit":
        print("ValueError: told to fail", flush=True)
        sys.exit(int(code))
    if fault == "stay":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: end())
    port = int(value("--http-port") or os.environ["DYN_SYSTEM_PORT"])
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.answer = models if frontend else (lambda: None if fault == "never" else {})  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if not frontend:
        serve_model()
    if fault == "die":
        if memory_path().exists():
            wait_until_noticed()
        time.sleep(1.5)
        print("RuntimeError: told to die", flush=True)
        os._exit(int(code))
    while True:
        print("served a request", flush=True)
        time.sleep(float(os.environ.get("STAND_IN_PAUSE", "1")))


def serve_model() -> None:
    for apart in (False, True):
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        subprocess.Popen(command, start_new_session=apart)
    with memory_path().open("wb+") as file:
        file.truncate(4096)
        global memory
        memory = mmap.mmap(file.fileno(), 4096)
    directory = Path(os.environ["DYN_FILE_KV"])
    directory.mkdir(exist_ok=True)
    (directory / value("--served-model-name")).touch()


def wait_until_noticed() -> None:
    """Until the launcher has seen what is in /dev/shm, which it looks for once a second or so.

    One that dies in its first moments leaves it; no worker that has loaded a model does so.
    """
    record, end = Path(os.environ["TMPDIR"]).with_name("stack.json"), time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.1)
        if record.is_file() and memory_path().name in record.read_text():
            return


def memory_path() -> Path:
    return Path(f"/dev/shm/{os.environ['STAND_IN_MEMORY']}_{os.getpid()}")


def end() -> None:
    """In order: only what is killed, or dies, leaves its memory."""
    memory_path().unlink(missing_ok=True)
    os._exit(0)


def models() -> object:
    directory = Path(os.environ["DYN_FILE_KV"])
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return {"data": [{"id": name} for name in names]}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = self.server.answer()  # type: ignore[attr-defined]
        self.send_response(503 if answer is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    main()
