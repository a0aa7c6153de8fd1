"""A /sys with USB ports and cameras in it, as zk0d/devices.py reads it."""

from __future__ import annotations

from pathlib import Path


def plug(root: Path, usb: str, node: str, serial: str, speed: str = "12") -> None:
    """A USB device in the socket `usb` under `root`, seen as `node` (ttyACM0, video0); `serial` "" where it has none."""
    device = root / "sys/devices/pci0/usb1" / usb
    interface = device / f"{usb}:1.0"
    interface.mkdir(parents=True)
    for name, text in (("idVendor", "1a86"), ("product", "Serial"), ("speed", speed), ("serial", serial)):
        if text:
            (device / name).write_text(text + "\n")
    group = "video4linux" if node.startswith("video") else "tty"
    entry = root / "sys/class" / group / node
    entry.mkdir(parents=True)
    (entry / "device").symlink_to(interface)
    if group == "video4linux":
        (entry / "index").write_text("0\n")
        (entry / "name").write_text("Front camera\n")
