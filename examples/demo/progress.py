"""One line for each thing that the demo does, with the time since the start."""

import time


class Progress:
    """Lines like `[ 12 s] vLLM: loading....`."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._open = False

    def line(self, text: str) -> None:
        """Begin a line; dots may follow."""
        self.end()
        print(f"[{time.monotonic() - self._started:3.0f} s] {text} ", end="", flush=True)
        self._open = True

    def dot(self) -> None:
        print(".", end="", flush=True)

    def end(self) -> None:
        if self._open:
            print(flush=True)
        self._open = False
