#!/usr/bin/env python3
"""Make the pictures of docs/operate.md: a real server under real traffic, in a real browser.

    .venv/bin/python -m scripts.screenshots [--minutes 15] [--to docs/images]

Needs the groups `engine` and `browser` of scripts/install.py.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from PIL import Image

from tests.support.browser import Watched, chromium
from tests.support.layouts import FUSED, one_group
from tests.support.server import Server
from tests.support.traffic import Traffic

PROMPTS, CHUNKS = 150, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--to", type=Path, default=Path("docs/images"))
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        server = Server(directory, *flags(directory), l1_size_gb=0.25, chunk_size=256).start()
        try:
            work(server, directory, 60 * given.minutes)
            take(server, given.to)
        finally:
            server.stop()


def flags(directory: Path) -> list[str]:
    """A disk, and behind it something that a file can make fail."""
    disk = {"type": "fs", "name": "nvme", "base_path": str(directory / "l2")}
    disk |= {"max_capacity_gb": 1, "min_free_gb": 0}
    far = {
        "type": "tests.support.faulty_adapter:FaultInjectSettings",
        "name": "bucket",
        "inner": {"type": "tests.support.mock_adapter:MockSettings"},
    }
    far |= {"control_path": str(directory / "faults.json")}
    return [part for adapter in (disk, far) for part in ("--l2-adapter", json.dumps(adapter))]


def work(server: Server, directory: Path, seconds: float) -> None:
    """Prompts of unequal popularity, more and fewer a second; towards the end a backend fails."""
    shape = {"blocks": 160, "heads": 4, "size": 64, "layers": 16}
    traffic = [
        Traffic(server, name, one_group(FUSED, dtype="bfloat16", seed=seed, **shape))
        for seed, name in enumerate(("Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct"))
    ]
    draw, began = random.Random(7), time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        if elapsed > 0.9 * seconds:
            (directory / "faults.json").write_text(json.dumps({"errors": {"store": "EIO"}}))
        prompt = min(int(draw.paretovariate(0.6)), PROMPTS)
        draw.choice(traffic).ask(prompt, draw.randint(1, CHUNKS))
        if draw.random() < 0.003:
            draw.choice(traffic).store_badly()
        busy = 0.5 + 0.5 * (int(elapsed / seconds * 7) % 2)
        time.sleep(draw.expovariate(8 * busy))


def take(server: Server, folder: Path) -> None:
    with chromium() as browser:
        for name, options in {
            "dashboard-light": {"color_scheme": "light"},
            "dashboard-phone": {"color_scheme": "dark", "width": 390, "height": 844},
        }.items():
            window = Watched(browser, **options)
            window.page.goto(server.http)
            window.page.wait_for_selector("tbody tr")
            path = folder / f"{name}.png"
            window.page.screenshot(path=path, full_page="phone" not in name)
            window.close()
            shrink(path)


def shrink(path: Path) -> None:
    """Few colours are used, so a palette loses nothing that can be seen."""
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main()
