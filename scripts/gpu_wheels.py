#!/usr/bin/env python3
"""Collect the wheels that `make gpu-quick` uses on a machine without a package index.

    scripts/gpu_wheels.py --python 3.12 --platform manylinux_2_28_x86_64

The folder (26 MB) goes along with the repository. There nothing is installed: what the Python
there lacks is unpacked. torch and numpy are too large to be taken along, and lmcache comes without
its dependencies, of which the client needs few.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Beside what the server needs: the client made by hand, the stock client, the tests.
CLIENTS = ("pyzmq", "msgspec", "cachetools", "pytest", "pytest-timeout")
ALONE = ("lmcache==0.5.6",)
LEFT_OUT = {"numpy"}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    made.add_argument("--python", default=version, help="version of the Python there")
    made.add_argument("--platform", default="manylinux_2_28_x86_64", help="newest that it takes")
    made.add_argument("--to", default=str(ROOT / "build" / "gpu-wheels"), help="the folder")
    return made


def main() -> int:
    options = parser().parse_args()
    fetch(options, *server_needs(), *CLIENTS)
    fetch(options, "--no-deps", *ALONE)
    wheels = list(Path(options.to).glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    print(f"{len(wheels)} wheels, {size:.0f} MB, in {options.to}")
    return 0


def server_needs() -> list[str]:
    """The dependencies of pyproject.toml, but for LEFT_OUT."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [need for need in project["dependencies"] if name_of(need) not in LEFT_OUT]


def name_of(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return found[0]


def fetch(options: argparse.Namespace, *what: str) -> None:
    """Wheels for the machine there, whatever machine this is."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--dest", options.to,
        "--only-binary", ":all:", "--implementation", "cp", "--python-version", options.python,
    ]  # fmt: skip
    for platform in platforms(options.platform):
        command += ["--platform", platform]
    subprocess.run([*command, *what], check=True)


def platforms(newest: str) -> list[str]:
    """With the older names that wheels have for machines like this: pip does not derive them."""
    match = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", newest)
    if match is None:
        return [newest]
    machine = match[2]
    names = [f"manylinux_2_{minor}_{machine}" for minor in range(int(match[1]), 4, -1)]
    return [*names, f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"linux_{machine}"]


if __name__ == "__main__":
    sys.exit(main())
