"""Signals: windows over DST changes, files of a laid-out /proc and /sys, sources that lie or hang, a doubled NVML."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from bus_stub import BusStub, number, variant
from hypothesis import given
from hypothesis import strategies as st

from zk0d.daemon import bus
from zk0d.daemon.config import Config
from zk0d.daemon.signals import board as boards
from zk0d.daemon.signals.all import sources
from zk0d.daemon.signals.board import Board
from zk0d.daemon.signals.gpu import Gpu
from zk0d.daemon.signals.machine import DiskSpace, ForeignCpu, HoldFile, Power, Pressure, Temperature
from zk0d.daemon.signals.reading import Level, Reading
from zk0d.daemon.signals.session import Desktop, Metered
from zk0d.daemon.signals.windows import Windows, next_change, open_at, parse
from zk0d.daemon.training import TICK_S
from zk0d.daemon.workers import SAVE_GRACE_S

BERLIN = ZoneInfo("Europe/Berlin")


def at(*when: int, fold: int = 0) -> float:
    return dt.datetime(*when, tzinfo=BERLIN, fold=fold).timestamp()  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("when", "opened"),
    [
        ((2026, 3, 2, 19, 59), False), ((2026, 3, 2, 20, 0), True), ((2026, 3, 3, 6, 59), True), ((2026, 3, 3, 7, 0), False),
        ((2026, 3, 7, 6, 0), True), ((2026, 3, 7, 12, 0), False), ((2026, 3, 8, 12, 0), True), ((2026, 3, 9, 3, 0), False),
    ],
)  # fmt: skip
def test_windows(when: tuple[int, ...], opened: bool) -> None:
    windows = [parse("Mon-Fri 20:00-07:00"), parse("sun")]
    assert open_at(windows, at(*when), BERLIN) is opened


@pytest.mark.parametrize("text", ["", "Mon 25:00-07:00", "Xyz", "Mon-Fri 7-8", "20:00-07:00", "Mon 20:60-21:00"])
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ValueError, match=r"is |has "):
        parse(text)


def test_the_clocks_go_forward_and_back() -> None:
    night = [parse("daily 22:00-06:00")]
    for day, length in (((2026, 3, 28), 7), ((2026, 10, 24), 9), ((2026, 5, 2), 8)):
        begin = at(*day, 22, 0)
        assert open_at(night, begin, BERLIN) and not open_at(night, begin - 1, BERLIN)
        assert next_change(night, begin, BERLIN) == begin + length * 3600
    gap = [parse("daily 02:15-02:45")]  # does not exist on 29 March, comes twice on 25 October
    assert not any(open_at(gap, at(2026, 3, 29, 0, 0) + m * 60, BERLIN) for m in range(300))
    assert sum(open_at(gap, at(2026, 10, 25, 0, 0) + m * 60, BERLIN) for m in range(300)) == 60
    assert next_change([parse("daily 00:00-24:00")], at(2026, 5, 2, 1, 0), BERLIN) is None


def test_the_trainer_leaves_before_the_hours_end() -> None:
    signal = Windows(["Mon-Fri 20:00-07:00"], "Europe/Berlin")
    end = at(2026, 3, 3, 7, 0)
    levels = [signal.read(end + s).level for s in (-3600, -299, -29, 0, 60)]
    assert levels == [Level.CLEAR, Level.WARY, Level.STOP, Level.STOP, Level.STOP]
    assert signal.read(end).hard and signal.read(end).waits == "resumes Tue 20:00"


@given(st.floats(0, 900), st.floats(0, 5))
def test_a_checkpoint_is_finished_before_the_hours_end(save_s: float, phase: float) -> None:
    """Read every few seconds, decided upon at the next tick: then there is time for the step under way and the
    checkpoint, as long as they were measured to take, and even for the daemon to end a trainer that takes too long."""
    signal = Windows(["Mon-Fri 20:00-07:00"], "Europe/Berlin", lambda: save_s)
    end = at(2026, 3, 3, 7, 0)
    reads = itertools.count(end - 3 * 3600 + phase, signal.every_s)
    levels = [(t, signal.read(t).level) for t in itertools.takewhile(lambda t: t < end, reads)]
    wary = next(t for t, level in levels if level is Level.WARY)
    stop = next(t for t, level in levels if level is Level.STOP)
    assert end - stop <= max(35.0, 3 * save_s) and wary < stop - 60 * (save_s < 60)  # no earlier than it needs
    asked = stop + TICK_S
    assert asked + save_s < end and asked + max(SAVE_GRACE_S, 2 * save_s) <= end


def test_pressure(tmp_path: Path) -> None:
    signal = Pressure("memory", 40, tmp_path)
    assert not signal.read(0).known
    for value, level in (("0.00", Level.CLEAR), ("25.00", Level.WARY), ("40.00", Level.STOP)):
        (tmp_path / "memory").write_text(f"some avg10={value} avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00\n")
        assert signal.read(0).level is level
    (tmp_path / "memory").write_text("some avg10=nan avg60=0.00\n")
    with pytest.raises(ValueError, match="plausible"):
        signal.read(0)


def test_power(tmp_path: Path) -> None:
    signal = Power(True, tmp_path)
    assert not signal.read(0).known
    for name, files in {"BAT0": {"type": "Battery"}, "AC": {"type": "Mains", "online": "0"},
                        "mouse": {"type": "Battery", "scope": "Device"}}.items():  # fmt: skip
        (tmp_path / name).mkdir()
        for key, value in files.items():
            (tmp_path / name / key).write_text(value + "\n")
    assert (signal.read(0).says, signal.read(0).level) == ("on battery", Level.STOP)
    (tmp_path / "AC" / "online").write_text("1\n")
    assert (signal.read(0).says, signal.read(0).level) == ("on mains", Level.CLEAR)
    assert Power(False, tmp_path).read(0).level is Level.CLEAR


def test_temperature(tmp_path: Path) -> None:
    signal = Temperature(90, tmp_path)
    assert not signal.read(0).known
    chip = tmp_path / "hwmon0"
    chip.mkdir()
    (chip / "name").write_text("k10temp\n")
    (chip / "temp1_input").write_text("999999999\n")  # a sensor that lies
    (chip / "temp2_input").write_text("86000\n")
    assert signal.read(0).level is Level.WARY and signal.read(0).says == "86 °C (k10temp)"
    (chip / "temp2_input").write_text("91000\n")
    assert signal.read(0).level is Level.STOP


def test_disk_and_hold_file(tmp_path: Path) -> None:
    assert DiskSpace(tmp_path, 0).read(0).level is Level.CLEAR
    assert DiskSpace(tmp_path, 1e9).read(0).level is Level.STOP
    signal = HoldFile(tmp_path / "hold")
    assert signal.read(0).level is Level.CLEAR
    (tmp_path / "hold").write_bytes(b"backup runs \xff\nmore")
    assert signal.read(0).level is Level.STOP and "backup runs" in signal.read(0).says


def test_foreign_cpu(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 0 900 0 0 0 0 0 0\n")
    signal = ForeignCpu(25, lambda: [os.getpid()], tmp_path)
    assert not signal.read(0).known
    stat.write_text("cpu  1000000 0 0 1000000 0 0 0 0 0 0\n")
    assert signal.read(0).level is Level.STOP


def test_a_burst_of_foreign_cpu_is_no_use_of_the_machine(tmp_path: Path) -> None:
    """Two processors, read every five seconds: ten seconds of a compiler do not count, a minute of it does."""
    stat, total, busy = tmp_path / "stat", 0, 0
    signal = ForeignCpu(50, list, tmp_path)
    levels = []
    for k in range(40):
        total, busy = total + 1000, busy + (950 if 10 <= k < 12 or 20 <= k < 32 else 50)
        stat.write_text(f"cpu  {busy} 0 0 {total - busy} 0 0 0 0 0 0\n")
        levels.append(signal.read(5.0 * k).level)
    assert Level.STOP not in levels[:20] and levels[25:33] == [Level.STOP] * 8
    assert levels[39] is Level.CLEAR  # and it is over half a minute after its end
    signal.read(-3600.0)  # the clock was put back: nothing breaks


class Says:
    every_s = 0.0

    def __init__(self, name: str, gives: object) -> None:
        self.name, self.gives = name, gives

    def read(self, now: float) -> Reading:
        if isinstance(self.gives, Exception):
            raise self.gives
        if isinstance(self.gives, threading.Event):
            self.gives.wait(120)
            return Reading(self.name, "awake")
        return self.gives  # type: ignore[return-value]


def until(condition: object, board: Board) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        board.check()
        assert time.monotonic() < deadline, board.readings()
        time.sleep(0.01)


def test_sources_that_break_lie_or_hang_stop_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "HANGS_S", 0.2)
    sleep = threading.Event()
    good, hangs = Says("good", Reading("good", "one")), Says("hangs", sleep)
    board = Board([Says("breaks", OSError("no such device")), Says("lies", "nonsense"), hangs, good])
    board.start()
    try:
        until(lambda: board.readings()[3].says == "one", board)
        good.gives = Reading("good", "two")
        until(lambda: board.readings()[3].says == "two", board)
        breaks, lies, hanging, _ = board.readings()
        assert (breaks.known, breaks.says) == (False, "not known: no such device")
        assert (lies.known, hanging.known) == (False, False) and "no answer" in hanging.says
        assert all(r.level is Level.CLEAR for r in board.readings())
        sleep.set()  # it answers at last, and is asked again from then on
        until(lambda: board.readings()[2].says == "awake", board)
    finally:
        sleep.set()
        board.close()
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("signals-")], board)


def test_desktop_and_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bus.VARIABLE, f"unix:path={tmp_path}/bus")
    with BusStub(tmp_path / "bus") as stub:
        stub.answers["IdleHint"] = variant("b", number(0))
        assert Desktop(True).read(0).level is Level.STOP and Desktop(False).read(0).level is Level.CLEAR
        for value, level in ((1, Level.STOP), (3, Level.STOP), (2, Level.CLEAR), (4, Level.CLEAR)):
            stub.answers["Metered"] = variant("u", number(value))
            reading = Metered(True).read(0)
            assert reading.level is level and reading.uses == ("network",)
        del stub.answers["Metered"]
        with pytest.raises(bus.BusError, match="no such name"):
            Metered(True).read(0)


NVML = """
#include <string.h>
#include <stdlib.h>
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } process_t;
typedef struct { unsigned long long total, free, used; } memory_t;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **d) { *d = (void *)7; return i ? 2 : 0; }
int nvmlDeviceGetMemoryInfo(void *d, memory_t *m) {
  m->total = 8000000000ull; m->free = strtoull(getenv("FAKE_FREE"), 0, 10); m->used = m->total - m->free; return d != (void *)7; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned int *n, process_t *p) {
  int pid = atoi(getenv("FAKE_PID")); *n = pid != 0; memset(p, 0, sizeof *p); p[0].pid = pid; return d != (void *)7; }
"""


def test_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [os.getpid()]
    assert not Gpu(own.copy, foreign_stops=True, least_mb=0, library="libnot-there.so.9").read(0).known
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make the double of NVML with")
    (tmp_path / "nvml.c").write_text(NVML)
    library = str(tmp_path / "libnvidia-ml.so.1")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    signal = Gpu(own.copy, foreign_stops=True, least_mb=1000, library=library)
    for pid, free, level, short in (
        (0, 4_000_000_000, Level.CLEAR, False), (os.getpid(), 10_000_000, Level.CLEAR, False),
        (1, 4_000_000_000, Level.STOP, False), (1, 10_000_000, Level.STOP, True),
    ):  # fmt: skip
        monkeypatch.setenv("FAKE_PID", str(pid))
        monkeypatch.setenv("FAKE_FREE", str(free))
        reading = signal.read(0)
        assert (reading.level, reading.memory, reading.known) == (level, short, True), reading


def test_where_there_is_nothing_to_sense_each_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No D-Bus, no NVML, no pressure, no sensors: none holds anything back, and each has its reason."""
    monkeypatch.setenv(bus.VARIABLE, f"unix:path={tmp_path}/bus")
    nowhere = tmp_path / "nowhere"
    senses = [
        Desktop(True), Metered(True), Gpu(list, foreign_stops=True, least_mb=0, library="libnot-there.so.9"),
        *(Pressure(what, 50, nowhere) for what in ("cpu", "memory", "io")), ForeignCpu(50, list, nowhere),
        Power(True, nowhere), Temperature(90, nowhere), DiskSpace(nowhere, 1), HoldFile(tmp_path / "file" / "hold"),
    ]  # fmt: skip
    (tmp_path / "file").touch()  # where the hold file's folder should be
    readings = Board(senses).read_now(time.time())
    assert len(readings) == len(senses)
    for reading in readings:
        assert not reading.known and reading.level is Level.CLEAR, reading
        assert reading.says.startswith("not known: ") and len(reading.says) > len("not known: ") + 5, reading


def test_a_hold_that_cannot_be_read_holds(tmp_path: Path) -> None:
    (tmp_path / "hold").mkdir()
    reading = HoldFile(tmp_path / "hold").read(0.0)
    assert reading.level is Level.STOP and reading.says.endswith("it cannot be read: Is a directory")


def test_nothing_starts_before_every_source_was_asked(tmp_path: Path) -> None:
    """A daemon that starts while others use the machine does not train until it has seen that."""
    hold = HoldFile(tmp_path / "hold")
    board = Board([hold])
    assert [(r.level, r.known) for r in board.readings()] == [(Level.WARY, False)]
    assert board.read_now(time.time())[0].level is Level.CLEAR
    cpu = ForeignCpu(50, list)
    assert cpu.read(time.time()).level is Level.WARY, "one reading is no share of anything"
    assert ForeignCpu(0, list).read(time.time()).level is Level.CLEAR, "one that is only shown waits for nothing"


def test_every_source_reads_or_says_why_not(tmp_path: Path) -> None:
    board = Board(sources(Config.load([]), tmp_path, lambda: [os.getpid()]))
    for reading in board.read_now(time.time()):
        assert reading.known or reading.says.startswith(("not known: ", "not known yet: "))
