"""The daemon, the hub and the CLI import no torch, lerobot or transformers; the CLI imports next to nothing."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import zk0d

LIGHT = ("zk0d.ctl", "zk0d.daemon", "zk0d.hub", "zk0d.link", "zk0d.model")
HEAVY = ("torch", "lerobot", "transformers", "safetensors", "pandas", "pyarrow", "matplotlib")


def loaded(statement: str) -> set[str]:
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def modules(package: str) -> list[str]:
    path = __import__(package, fromlist=["x"]).__path__
    return [package + "." + m.name for m in pkgutil.iter_modules(path) if m.name != "__main__"]


@pytest.mark.parametrize("package", LIGHT)
def test_light_rooms_stay_light(package: str) -> None:
    statement = "\n".join(f"import {m}" for m in modules(package) if not m.endswith(".chart"))
    found = loaded(statement)
    assert f"{package}" in found
    assert not found & set(HEAVY)


def test_zk0ctl_starts_with_the_standard_library_alone() -> None:
    found = loaded("import zk0d.ctl.main, zk0d.ctl.status_cmd")
    foreign = {
        m.split(".")[0] for m in found
        if m.split(".")[0] not in sys.stdlib_module_names and not m.startswith(("zk0d", "_", "sitecustomize", "distutils"))
    }  # fmt: skip
    assert foreign <= {"__main__", "_distutils_hack", "google"}, foreign


def test_the_idle_daemon_leaves_out_what_it_does_not_need() -> None:
    """Nine megabytes of X.509 until it makes or keeps a certificate; the one curve, once there is something to check."""
    idle = "import zk0d.daemon.main, zk0d.daemon.service"
    assert not {"cryptography", "numpy", "psutil", "rich"} & loaded(idle)
    checking = loaded(f"{idle}\nimport zk0d.link.signature")
    assert "cryptography" in checking and "cryptography.x509" not in checking


def test_daemon_and_hub_do_not_know_each_other() -> None:
    assert not any(m.startswith("zk0d.hub") for m in loaded("\n".join(f"import {m}" for m in modules("zk0d.daemon"))))
    assert not any(m.startswith("zk0d.daemon") for m in loaded("\n".join(f"import {m}" for m in modules("zk0d.hub"))))


def test_version_is_said() -> None:
    assert zk0d.__version__
