"""Workers without what runs them: no D-Bus, no runtime. The daemon itself runs, says so, and goes on when it is there."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from bus_stub import BusStub

from zk0d.daemon import bus, units
from zk0d.daemon.config import Config
from zk0d.daemon.workers import KINDS, Workers
from zk0d.errors import WorkerError


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Workers as units, a bus that is not there."""
    monkeypatch.setenv(units.VARIABLE, "units")
    monkeypatch.setenv(bus.VARIABLE, f"unix:path={tmp_path}/bus")
    (tmp_path / "zk0d.toml").write_text(f'[runtime]\npython = "{sys.executable}"\n')
    return Workers(tmp_path, Config.load([tmp_path / "zk0d.toml"]))


def start(workers: Workers, kind: str) -> None:
    asyncio.run(_started(workers, kind))


async def _started(workers: Workers, kind: str) -> None:
    await workers.start(kind, "x", {}, lambda event: None)


@pytest.mark.needs("torch", "lerobot")  # its daemon has a runtime: without one it would say only that
def test_without_a_bus_nothing_is_started_and_the_reason_is_kept(workers: Workers) -> None:
    async def run() -> None:
        assert await workers.survivors() == {} and "systemd cannot be asked" in workers.trouble
        assert await workers.reap_orphans() == []
        with pytest.raises(WorkerError, match="systemd cannot be asked") as told:
            await _started(workers, "trainer")
        assert "systemctl status dbus" in told.value.hint and "dbus" in workers.hint
        assert not await workers.reach()

    asyncio.run(run())


def test_when_the_bus_is_there_the_trouble_is_over(workers: Workers, tmp_path: Path) -> None:
    async def run() -> None:
        await workers.survivors()
        with BusStub(tmp_path / "bus") as stub:
            stub.answers["ListUnitsByPatterns"] = ("a(ssssssouso)", bytes(8))
            assert await workers.reach() and workers.trouble == ""
            assert workers.systemd is not None and "ListUnitsByPatterns" in stub.calls
            await (await workers.systemd.bus()).close()

    asyncio.run(run())


def test_every_kind_has_its_template_and_the_shim_runs_the_same_module() -> None:
    shim = Path(__file__).resolve().parents[2] / "packaging/deb/bin/worker"
    text = shim.read_text()
    told: dict[str, dict[str, str]] = eval(text[text.index("MODULES = ") + 10 : text.index("\n}\n") + 2])
    for name, kind in KINDS.items():
        assert told[units.TEMPLATES[name].removeprefix("zk0d-")][name] == kind.module
    assert sorted(name for kinds in told.values() for name in kinds) == sorted(KINDS) == sorted(units.TEMPLATES)


def test_a_missing_runtime_is_said_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "zk0d.toml").write_text('[runtime]\npython = "/nowhere/python"\n')
    workers = Workers(tmp_path, Config.load([tmp_path / "zk0d.toml"]))
    with pytest.raises(WorkerError, match="no recorder can run") as told:
        start(workers, "recorder")
    assert "[runtime] python" in told.value.hint and not (tmp_path / "work").exists()


def test_installed_without_a_runtime_the_hint_is_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(units.VARIABLE, "units")
    monkeypatch.setenv("ZK0_RUNTIME", str(tmp_path / "runtime"))
    workers = Workers(tmp_path, Config.load([]))
    assert str(tmp_path / "runtime") in workers.runtime_missing() and "zk0ctl runtime install" in workers.hint
