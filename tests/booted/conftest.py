"""Packages built from this tree and installed in a booted Debian 13: what `make test-booted` needs.

Nothing here runs in `make test`: a system image takes a minute to make and root to boot. Where it cannot be booted, every test says why.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
collect_ignore_glob = [] if os.environ.get("ZK0_BOOTED") else ["test_*.py"]


def _tool() -> ModuleType:
    path = REPOSITORY / "packaging" / "booted" / "container.py"
    spec = importlib.util.spec_from_file_location("zk0_booted_container", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [i for i in items if Path(__file__).parent in i.path.parents and "boot" in getattr(i, "fixturenames", ())]
    reason = _tool().why_not() if here else ""
    for item in here:
        # The system outlives a test: what runs in it is none of the test's own processes.
        item.add_marker(pytest.mark.may_leak("the booted system lasts for a module or more"))
        item.add_marker(pytest.mark.timeout(600))
        if reason:
            item.add_marker(pytest.mark.skip(reason=f"no system can be booted: {reason}"))


def build(out: Path, version: str = "") -> list[Path]:
    """Build the packages into `out` → the .deb files."""
    command = [str(REPOSITORY / "packaging/deb/build.sh"), str(out), *([version] if version else [])]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "debhelper is missing" in built.stderr:
        pytest.skip(built.stderr.strip())
    assert built.returncode == 0, built.stderr
    return [Path(line) for line in built.stdout.split()]


@pytest.fixture(scope="session")
def debs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The packages of this tree."""
    return build(tmp_path_factory.mktemp("debs"))


@pytest.fixture(scope="session")
def newer_debs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same with a higher version number, to upgrade to."""
    return build(tmp_path_factory.mktemp("newer"), "9.0.0")


def install(system: Any, debs: list[Path], *flags: str, environment: str = "") -> str:
    """`apt-get install` the files in the booted system → what it printed. `environment`: arguments of `env`."""
    system.sh("rm -rf /root/debs && mkdir /root/debs")
    for deb in debs:
        system.put(deb, f"/root/debs/{deb.name}")
    return str(system.sh(f"env {environment} apt-get install -y {' '.join(flags)} /root/debs/*.deb </dev/null"))


@pytest.fixture(scope="session")
def boot() -> Callable[..., Any]:
    """Boots a new system (`boot("bare")`: one without what zk0d depends on); use it with `with`."""
    tool = _tool()

    def booted(which: str = "ready", shown: dict[Path, str] | None = None) -> Any:
        try:
            image = tool.image(which)
        except RuntimeError as error:
            pytest.skip(f"no system image can be made: {error}")
        return tool.Container(image, shown)

    return booted


@pytest.fixture(scope="session")
def system(boot: Callable[..., Any], debs: list[Path]) -> Iterator[Any]:
    """One booted system for the modules that need no fresh one, which leave it as they found it: the three packages, and the people alice (in group zk0) and mallory (not)."""
    with boot() as booted:
        install(booted, debs)
        booted.sh("useradd -m alice && usermod -aG zk0 alice && useradd -m mallory")
        yield booted


RUNTIME = """
set -e
base=/var/lib/zk0-runtime env=/var/lib/zk0-runtime/envs/shown
mkdir -p $env/bin
ln -s "$(echo /opt/zk0/python/bin/python3.*[0-9])" $env/bin/python
ln -s /opt/zk0/venv/lib $env/lib
echo "home = /opt/zk0/python/bin" >$env/pyvenv.cfg
ln -s envs/shown $base/current
echo /opt/zk0/python/lib >/etc/ld.so.conf.d/shown.conf; ldconfig
cd / && $env/bin/python -P -c "import torch, lerobot, mujoco"
"""


def with_runtime(boot: Callable[..., Any]) -> Any:
    """A system that has this checkout's environment as its managed runtime, read-only: installing one takes 6 GB and minutes."""
    return boot(shown={REPOSITORY / ".venv": "/opt/zk0/venv", Path(sys.base_prefix): "/opt/zk0/python"})


def make_runtime(system: Any) -> None:
    """Put the shown environment in place; skips the test where its Python does not run in the system."""
    done = system.run("bash", "-c", RUNTIME, check=False, timeout=120)
    if done.returncode:
        pytest.skip(f"this checkout's environment does not run in the booted system: {done.stderr.strip()[-300:]}")
