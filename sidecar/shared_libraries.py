"""Shared libraries of the system: packages of Python need them and do not bring them.

Also for `scripts/install.py`, which runs before anything is installed: nothing but Python here.
"""

import ctypes

# Debian's package, by the name that the loader looks for.
DEBIAN = {
    "libatomic.so.1": "libatomic1",
    "libcurl.so.4": "libcurl4",
    "libibverbs.so.1": "libibverbs1",
    "libnuma.so.1": "libnuma1",
}
# By the package that is imported. tests/images resolves all that is installed and holds this to it.
NEEDED = {
    "mooncake": ("libcurl.so.4", "libibverbs.so.1", "libnuma.so.1"),
    "playwright": ("libatomic.so.1",),
    "vllm": ("libnuma.so.1",),  # the CPU build
}


def lack(package: str) -> str:
    """What `package` needs and the loader does not find, and what brings it; empty if nothing."""
    names = missing(package)
    if not names:
        return ""
    packages = " ".join(DEBIAN[name] for name in names)
    return f"{package} needs {', '.join(names)}: apt-get install {packages}"


def missing(package: str) -> list[str]:
    """The shared libraries that `package` needs and the loader does not find."""
    return [library for library in NEEDED.get(package, ()) if not loads(library)]


def loads(library: str) -> bool:
    """Whether the loader finds a library; it stays loaded."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
