"""Which hash-locked list the managed environment is made from: the CUDA build's, or the CPU's.

Not for fetching (runtime_fetch.py) or installing (environment.py) them. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from zk0d.errors import Zk0Error

NAMES = {"cuda": "runtime", "cpu": "runtime-cpu"}
"""Build → file. The registry has no Linux torch without CUDA (its makers' own index has, with other hashes): the CPU's
list has the same torch, without what it loads only for a GPU (triton and some CUDA libraries; 1.1 GB)."""
DRIVERS = {"12": 525, "13": 580}
"""CUDA's major version → the oldest NVIDIA driver it runs on (CUDA Compatibility, "minor version compatibility")."""
DRIVER = Path("/proc/driver/nvidia/version")
_BLOCK = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)[^\n]*\n((?:[ \t]+--hash=[^\n]*\n?)*)", re.MULTILINE)


def normal(name: str) -> str:
    """A project's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class Lists:
    """The shipped locks: `tool` installs the installer, `packages` is the environment."""

    tool: Path
    packages: Path

    @classmethod
    def find(cls, build: str = "cuda") -> Lists:
        """From /usr/share/zk0d/lock, else the source tree's packaging/lock. Raises Zk0Error when there are none."""
        name = f"{NAMES[build]}.txt"
        for folder in (Path("/usr/share/zk0d/lock"), Path(__file__).resolve().parents[2] / "packaging" / "lock"):
            if (folder / name).exists():
                return cls(folder / "bootstrap.txt", folder / name)
        raise Zk0Error(f"the list of packages ({name}) is not there", "install the package zk0-common again")

    @property
    def key(self) -> str:
        """Names the environment: the same lists and the same Python give the same one."""
        digest = hashlib.sha256(f"{sys.version_info[:2]} {os.uname().machine}".encode())
        digest.update(self.tool.read_bytes() + self.packages.read_bytes())
        return digest.hexdigest()[:12]

    @property
    def count(self) -> int:
        """How many packages it names; on one machine a few of them may not apply."""
        return len(_BLOCK.findall(self.packages.read_text()))

    def hashes(self) -> dict[str, frozenset[str]]:
        """Project → the SHA-256 (hex) of every file that may be installed for it."""
        found = _BLOCK.findall(self.packages.read_text())
        return {normal(n): frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", block)) for n, _, block in found}

    @property
    def cuda(self) -> str:
        """CUDA's major version that its torch is built for; empty when it names none."""
        found = re.search(r"^nvidia-cuda-runtime(?:-cu\d+)?==(\d+)", self.packages.read_text(), re.MULTILINE)
        return found[1] if found else ""


def driver() -> str:
    """The version of the NVIDIA driver that is loaded; empty when there is none."""
    try:
        found = re.search(r"Kernel Module\D*?(\d+\.[\d.]+)", DRIVER.read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def unfit(version: str, cuda: str) -> str:
    """Why a driver cannot run torch's build for `cuda`; empty when it can."""
    oldest = DRIVERS.get(cuda)
    if not version or oldest is None or int(version.split(".")[0]) >= oldest:
        return ""
    return f"the NVIDIA driver {version} is too old for CUDA {cuda}, which needs {oldest} or newer"


def choose(wanted: str = "") -> tuple[str, str]:
    """The build for this machine and, in words, why; `wanted` ("cpu" or "cuda") is what the operator asks for.

    Raises Zk0Error when the GPU's driver is too old for the list's torch: that is better mended than gone round.
    """
    found = driver()
    if wanted == "cpu":
        return "cpu", "as asked: training will not use a GPU"
    cuda = Lists.find("cuda").cuda
    if why := unfit(found, cuda):
        raise Zk0Error(why, "sudo ubuntu-drivers install, and reboot; or `zk0ctl runtime install --cpu`")
    if wanted == "cuda" or found:
        return "cuda", f"for CUDA {cuda}, driver {found or 'not loaded'}"
    return "cpu", "no NVIDIA driver is loaded (--cuda takes the GPU's build all the same)"
