"""The D-Bus client: against a real dbus-daemon of its own where there is one, and against a bus that goes wrong."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bus_stub import BusStub, variant

from zk0d.daemon import bus
from zk0d.daemon.bus import Bus, BusError, get_property

DAEMON = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
CONFIG = """<busconfig><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>"""


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if shutil.which("dbus-daemon") is None:
        pytest.skip("there is no dbus-daemon on this machine")
    path = tmp_path / "bus"
    (tmp_path / "bus.conf").write_text(CONFIG.format(path=path))
    command = ["dbus-daemon", f"--config-file={tmp_path}/bus.conf", "--nofork", "--print-address"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        monkeypatch.setenv(bus.VARIABLE, f"unix:path={path},guid=0")
        yield path
        process.terminate()


def test_a_real_bus(real: Path) -> None:
    async def run() -> None:
        link = await Bus.connect()
        assert "org.freedesktop.DBus" in (await link.call((*DAEMON, "ListNames")))[0]
        ((name,), (owned,)) = await asyncio.gather(
            link.call((*DAEMON, "GetNameOwner"), "s", "org.freedesktop.DBus"),
            link.call((*DAEMON, "NameHasOwner"), "s", "org.example.nobody"),
        )
        assert (name, owned) == ("org.freedesktop.DBus", False)
        with pytest.raises(BusError) as told:
            await link.call((*DAEMON, "GetNameOwner"), "s", "org.example.nobody")
        assert told.value.name.endswith("NameHasNoOwner")
        await link.close()
        assert link.lost

    asyncio.run(run())
    assert isinstance(get_property(*DAEMON, "Interfaces"), list)
    with pytest.raises(BusError) as told:
        get_property("org.example.nobody", "/", "org.example", "X")
    assert told.value.name.endswith(("ServiceUnknown", "NameHasNoOwner"))


def test_a_property(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bus.VARIABLE, f"unix:path={tmp_path}/bus")
    where = ("org.example", "/", "org.example")
    with pytest.raises(BusError, match="does not answer"):
        get_property(*where, "IdleHint")
    with BusStub(tmp_path / "bus") as stub:
        stub.answers["IdleHint"] = variant("b", b"\1\0\0\0")
        stub.answers["Broken"] = ("v", b"\x01")
        assert get_property(*where, "IdleHint") is True
        with pytest.raises(BusError, match="cut short"):
            get_property(*where, "Broken")
        with pytest.raises(BusError, match="no such name"):
            get_property(*where, "Other")


def test_a_bus_that_dies_fails_what_waits(tmp_path: Path) -> None:
    async def run() -> None:
        with BusStub(tmp_path / "bus") as stub:
            link = await Bus.connect(str(tmp_path / "bus"))
            stub.answers["Slow"] = ("!", b"refused")
            with pytest.raises(BusError, match="refused"):
                await link.call(("org.example", "/", "org.example", "Slow"))
        async with asyncio.timeout(60):
            while not link.lost:
                await asyncio.sleep(0.01)
        with pytest.raises(BusError, match="lost"):
            await link.call(("org.example", "/", "org.example", "Slow"))

    asyncio.run(run())
