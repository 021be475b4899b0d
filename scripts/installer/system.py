"""What the groups need of the system: programs and shared libraries, as Debian's packages.

They are installed where that is possible: by root, with apt-get.
"""

import os
import shutil
from collections.abc import Iterable

from installer.steps import step
from sidecar import shared_libraries

# The package, where it is not called like its program.
PACKAGES = {"etcd": "etcd-server", "ip": "iproute2", **shared_libraries.DEBIAN}


def missing(needs: Iterable[str]) -> list[str]:
    """Those of the programs and libraries that are not on this machine."""
    return [name for name in needs if not _there(name)]


def bring(needs: Iterable[str]) -> None:
    """Install what is missing, and say of what still is that it is."""
    for name in missing(needs):
        package = PACKAGES.get(name, name)
        if os.geteuid() == 0 and shutil.which("apt-get"):
            _install(package)
        if not _there(name):
            print(f"  no {name} (apt-get install {package}): what needs it is skipped")


def _there(name: str) -> bool:
    return shared_libraries.loads(name) if ".so." in name else shutil.which(name) is not None


def _install(package: str) -> None:
    # A new machine is often busy with upgrades of its own: their lock is waited for.
    apt = "apt-get -o DPkg::Lock::Timeout=300"
    install = f"{apt} install -qq -y --no-install-recommends {package}"
    script = f"{install} || {{ {apt} update -qq && {install}; }} || true"
    step(package, ["env", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", script])
