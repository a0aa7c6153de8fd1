"""Serial ports and cameras of this machine, each known by the USB serial number that its maker gave it.

Reads /dev/serial/by-id, /dev/v4l/by-id and /sys; standard library only. Not for opening them (robot/arms.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from zk0d.errors import RobotError

SERIAL = "serial:"
ROOT = Path("/")


@dataclass(frozen=True)
class Device:
    """A port or camera. `serial` is "" where the USB device has none; `usb` is the socket it is in, such as "1-2.3".

    `speed` is the USB link in Mbit/s, 0 when it cannot be told; `port` moves when things are plugged in another order.
    """

    kind: str
    port: str
    serial: str
    name: str
    usb: str
    speed: float

    @property
    def binding(self) -> str:
        """What to write in `[robot]`: by serial number where there is one."""
        return SERIAL + self.serial if self.serial else self.port

    def to_json(self) -> dict[str, object]:
        """For `--json` and the control socket."""
        return {**asdict(self), "binding": self.binding}


def find(root: Path = ROOT) -> list[Device]:
    """Serial ports, then cameras, in order of their names. `root` is the folder that has dev/ and sys/."""
    return [*_ports(root), *_cameras(root)]


def resolve(name: str, kind: str = "port", root: Path = ROOT) -> str:
    """The device file that `serial:NUMBER` means now; any other name is given back. Raises RobotError."""
    if not name.startswith(SERIAL):
        return name
    wanted = name.removeprefix(SERIAL)
    known = [d for d in find(root) if d.kind == kind]
    found = [d for d in known if d.serial == wanted]
    if len(found) == 1:
        return found[0].port
    if found:
        ports = ", ".join(d.port for d in found)
        raise RobotError(f"{ports} all say that their serial number is {wanted}", "name this one by its port")
    there = ", ".join(d.serial for d in known if d.serial) or "none"
    raise RobotError(
        f"no {kind} with the USB serial number {wanted} is plugged in (there: {there})",
        "plug it in and switch it on; `zk0ctl robot find` lists what is there",
    )


def gone(before: list[Device], after: list[Device]) -> list[Device]:
    """What was there before and is not after: the one that was just unplugged."""
    left = {(d.kind, d.port) for d in after}
    return [d for d in before if (d.kind, d.port) not in left]


def _ports(root: Path) -> list[Device]:
    found = []
    for link in sorted((root / "sys/class/tty").glob("tty*")):
        if link.name.startswith(("ttyACM", "ttyUSB")):
            usb = _usb_device(link / "device")
            port = str(root / "dev" / link.name)
            found.append(_device("port", port, usb))
    return found


def _cameras(root: Path) -> list[Device]:
    found = []
    for link in sorted((root / "sys/class/video4linux").glob("video*"), key=lambda p: (len(p.name), p.name)):
        if _text(link / "index") not in ("", "0"):
            continue  # the second node of a USB camera gives metadata, no pictures
        found.append(
            _device("camera", str(root / "dev" / link.name), _usb_device(link / "device"), _text(link / "name"))
        )
    return found


def _device(kind: str, port: str, usb: Path | None, name: str = "") -> Device:
    if usb is None:
        return Device(kind, port, "", name, "", 0.0)
    name = name or " ".join(filter(None, (_text(usb / "manufacturer"), _text(usb / "product"))))
    try:
        speed = float(_text(usb / "speed") or 0)
    except ValueError:
        speed = 0.0
    return Device(kind, port, _text(usb / "serial"), name, usb.name, speed)


def _usb_device(interface: Path) -> Path | None:
    """The USB device above a tty's or camera's interface in /sys: the first folder that has a vendor number."""
    folder = interface.resolve()
    for candidate in (folder, *folder.parents):
        if (candidate / "idVendor").exists():
            return candidate
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
