"""A check-up of arms, cameras, USB and disk without moving anything: what was measured and what to do about it.

Not for the daemon's own health (`zk0ctl doctor`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from robot.config import CameraTable, RobotTable
from zk0d import devices
from zk0d.errors import RobotError

Finding = dict[str, Any]
"""`level` ok, warn or bad; `part`, `what` was measured, what to `do`."""

HOT_C, TOO_HOT_C = 55, 65
LOW_V, HIGH_V = 4.5, 12.9
LOADED = 0.6
ERROR_RATE = 0.001
_CAMERA_S = 2.0
_DISK_BYTES = 32 << 20
_USB2_MBIT = 280.0
"""What a 480 Mbit/s bus gives to isochronous cameras in practice."""


def _finding(level: str, part: str, what: str, do: str = "") -> Finding:
    return {"level": level, "part": part, "what": what, "do": do}


def check_all(table: RobotTable, folder: Path, fps: int, reads: int, say: Callable[..., None]) -> list[Finding]:
    """Check what the table names, and the disk under `folder`. Each finding is also said as it is made."""
    found: list[Finding] = []

    def add(items: list[Finding]) -> None:
        for item in items:
            found.append(item)
            say("finding", **item)

    for prefix, pair in table.each().items():
        for role in ("follower", "leader"):
            if role == "follower" or pair.leader:
                add([{**f, "part": prefix.replace("_", " ") + f["part"]} for f in check_arm(pair, role, reads)])
    if not table.virtual:
        cameras = [replace(camera, name=name) for name, camera in table.all_cameras.items()]
        for camera in cameras:
            add(check_camera(camera, fps))
        add(check_usb(cameras, fps))
    add(check_disk(folder))
    return found


def check_arm(table: RobotTable, role: str, reads: int) -> list[Finding]:
    """Firmware, supply, temperature, load and error bits of every servo, and how many of `reads` readings fail."""
    from robot.bare import bare_arm
    from robot.ports import device_errors

    try:
        with ExitStack() as stack:
            device = bare_arm(stack, table, role, handshake=False)
            with device_errors(f"the {role}", device.config.port):
                missing = [j for j in device.bus.motors if not _answers(device.bus, j)]
                if missing:
                    return [_silent(device.bus, role, missing)]
                return [*_servos(device.bus, role), *_cable(device.bus, role, reads), *_calibrated(device, role)]
    except RobotError as error:
        return [_finding("bad", role, error.message, error.hint)]


def _answers(bus: Any, joint: str) -> bool:
    """Whether a servo answers, be it with an error bit, which LeRobot's ping takes for silence."""
    tries = (bus.packet_handler.ping(bus.port_handler, bus.motors[joint].id) for _ in range(6))
    return any(bus._is_comm_success(outcome) for _, outcome, _ in tries)


def _silent(bus: Any, role: str, missing: list[str]) -> Finding:
    if len(missing) == len(bus.motors):
        return _finding("bad", role, "no servo answers", "switch the arm's power on; check the cable from the board")
    what = ", ".join(f"{j} (servo {bus.motors[j].id})" for j in missing)
    do = f"check the cable before {missing[0]}; has it its id? (zk0ctl robot setup {role})"
    return _finding("bad", role, f"no answer from {what}", do)


def _servos(bus: Any, role: str) -> list[Finding]:
    found = []
    versions: dict[int, str] = {}
    for motor in bus.ids:  # one by one and again: LeRobot asks once, and a lost packet is not another firmware
        for _ in range(5):
            if read := bus._read_firmware_version([motor]):
                versions |= read
                break
    if len(set(versions.values())) == 1:
        found.append(_finding("ok", role, f"firmware {next(iter(versions.values()))} on all {len(bus.motors)} servos"))
    else:
        said = ", ".join(f"servo {i}: {v}" for i, v in sorted(versions.items()))
        found.append(
            _finding("warn", role, f"servos have different firmware ({said})", "update with Feetech's program")
        )
    voltages: list[float] = []
    temperatures: list[int] = []
    for joint in bus.motors:

        def value(what: str, joint: str = joint) -> int:
            return _value(bus, what, joint)

        volts, celsius = value("Present_Voltage") / 10, value("Present_Temperature")
        load, status = abs(value("Present_Load")) / 1000, value("Status")
        for _ in range(3):  # a movement that ends is no load
            if load >= LOADED:
                time.sleep(0.1)
                load = min(load, abs(value("Present_Load")) / 1000)
        voltages.append(volts)
        temperatures.append(celsius)
        part = f"{role} {joint}"
        if not LOW_V <= volts <= HIGH_V:
            found.append(
                _finding("bad", part, f"{volts:.1f} V", "use the supply that came with the arm; check its plug")
            )
        if celsius >= HOT_C:
            level = "bad" if celsius >= TOO_HOT_C else "warn"
            found.append(_finding(level, part, f"{celsius} °C", "let it rest, torque off; does the joint run freely?"))
        if load >= LOADED:
            found.append(_finding("warn", part, f"load {load:.0%} of stall", "free the joint, or rest the arm"))
        if status:
            found.append(_finding("bad", part, f"error bits {status:#04x}", "switch the arm's power off and on"))
    found.append(
        _finding("ok", role, f"{min(voltages):.1f}…{max(voltages):.1f} V, {min(temperatures)}…{max(temperatures)} °C")
    )
    return found


def _value(bus: Any, what: str, joint: str) -> int:
    """A register as a servo in trouble says it too: LeRobot's read refuses an answer with an error bit."""
    address, length = bus.model_ctrl_table[bus.motors[joint].model][what]
    servo = bus.motors[joint].id
    value, outcome, _ = bus._read(address, length, servo, num_retry=5, raise_on_error=False)
    if not bus._is_comm_success(outcome):
        raise ConnectionError(f"{joint} (servo {servo}) does not say its {what}")
    return int(bus._decode_sign(what, {servo: value})[servo])


def _cable(bus: Any, role: str, reads: int) -> list[Finding]:
    """Readings of the whole chain; if some fail, of each servo: the loose plug is before the first bad one."""
    began = time.perf_counter()
    failed = sum(not _reads(lambda: bus.sync_read("Present_Position", normalize=False)) for _ in range(reads))
    took = (time.perf_counter() - began) / reads * 1e3
    if failed <= ERROR_RATE * reads:
        return [_finding("ok", role, f"{failed} of {reads} readings failed, {took:.1f} ms each")]
    each = max(10, reads // 10)
    rates = {j: sum(not _reads(partial(bus.read, "Present_Position", j, normalize=False)) for _ in range(each))
             for j in bus.motors}  # fmt: skip
    worst = ", ".join(f"{j} {n}" for j, n in rates.items() if n) or "none when asked one by one"
    first = next((j for j, n in rates.items() if n), "")
    what = f"{failed} of {reads} readings failed ({failed / reads:.1%}); of {each} for each servo: {worst}"
    do = f"reseat the plug before {first}" if first else "reseat the plugs, first that at the controller board"
    return [_finding("bad" if failed > reads // 20 else "warn", role, what, f"{do}; then try another cable")]


def _reads(call: Callable[[], Any]) -> bool:
    try:
        call()
    except ConnectionError:  # a lost or damaged packet; an unplugged port raises SerialException, which is told above
        return False
    return True


def _calibrated(device: Any, role: str) -> list[Finding]:
    for attempt in range(10):
        try:
            calibrated = bool(device.is_calibrated)
            break
        except RuntimeError as error:  # an answer with an error bit, which is a finding already
            return [_finding("warn", role, f"whether it is calibrated cannot be told: {error}", "mend that first")]
        except ConnectionError:  # LeRobot reads each value once
            if attempt == 9:
                raise
    if calibrated:
        return [_finding("ok", role, f"calibrated as {device.calibration_fpath}")]
    return [_finding("warn", role, "is not calibrated as its file says", f"zk0ctl robot calibrate {role}")]


def check_camera(camera: CameraTable, fps: int) -> list[Finding]:
    """The rate that a camera really gives, over two seconds."""
    from robot.arms import _camera

    part = f"camera {camera.name}"
    try:
        config = _camera(camera, fps)
        from lerobot.cameras.opencv import OpenCVCamera

        device = OpenCVCamera(config)
        device.connect()
    except RobotError as error:
        return [_finding("bad", part, error.message, error.hint)]
    except Exception as error:  # OpenCV and LeRobot raise ConnectionError, RuntimeError, ValueError
        return [_finding("bad", part, str(error).splitlines()[0], "check source, size and fps; is it in use?")]
    try:
        frames, began = 0, time.perf_counter()
        while time.perf_counter() - began < _CAMERA_S:
            device.read()
            frames += 1
        rate = frames / (time.perf_counter() - began)
    except Exception as error:
        return [_finding("bad", part, str(error).splitlines()[0], "check its cable; use another USB socket")]
    finally:
        device.disconnect()
    if rate < 0.95 * fps:
        return [_finding("warn", part, f"{rate:.1f} of {fps} frames/s", 'more light; fourcc = "MJPG"; a smaller size')]
    return [_finding("ok", part, f"{rate:.1f} frames/s")]


def check_usb(cameras: list[CameraTable], fps: int) -> list[Finding]:
    """Whether the cameras that share a USB controller fit its bandwidth, by their size, rate and format."""
    there = {d.port: d for d in devices.find() if d.kind == "camera"}
    load: dict[str, float] = {}
    found = []
    for camera in cameras:
        try:
            device = there.get(os.path.realpath(devices.resolve(camera.source, "camera")))
        except RobotError:
            continue  # said where the camera was opened
        if device is None or not device.usb:
            continue
        if 0 < device.speed < 480:
            found.append(_finding("bad", f"camera {camera.name}", f"USB at {device.speed:.0f} Mbit/s",
                                  "use another cable, no old hub"))  # fmt: skip
        bits = 2.0 if camera.fourcc == "MJPG" else 16.0
        bus = device.usb.partition("-")[0]
        load[bus] = load.get(bus, 0.0) + camera.height * camera.width * fps * bits / 1e6
    for bus, mbit in sorted(load.items()):
        if mbit > _USB2_MBIT:
            found.append(_finding("warn", f"USB bus {bus}", f"cameras need about {mbit:.0f} Mbit/s",
                                  'fourcc = "MJPG", or a socket of another controller'))  # fmt: skip
        else:
            found.append(_finding("ok", f"USB bus {bus}", f"cameras need about {mbit:.0f} Mbit/s"))
    return found


def check_disk(folder: Path) -> list[Finding]:
    """How fast synced writes are where datasets go, and how much room is left."""
    while not folder.is_dir():
        folder = folder.parent
    path = folder / f".zk0-speed-{os.getpid()}"
    block = os.urandom(1 << 20)
    try:
        began = time.perf_counter()
        with path.open("wb") as f:
            for _ in range(_DISK_BYTES >> 20):
                f.write(block)
            f.flush()
            os.fsync(f.fileno())
        rate = _DISK_BYTES / (time.perf_counter() - began) / 1e6
    except OSError as error:
        return [_finding("bad", "disk", f"{folder}: {error.strerror}", "make room, or set [datasets] folder")]
    finally:
        path.unlink(missing_ok=True)
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize / 1e9
    level = "bad" if free < 1 else "warn" if free < 5 or rate < 20 else "ok"
    do = "" if level == "ok" else "make room, or set [datasets] folder to a faster or emptier disk"
    return [_finding(level, "disk", f"{rate:.0f} MB/s synced, {free:.1f} GB free", do)]
