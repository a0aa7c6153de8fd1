"""Two network namespaces with a bad line between them, for real TCP under loss, delay, little bandwidth, cuts and moves.

The line is `tc netem` on a veth pair where the kernel has it, or a relay of IP packets between two TUN devices that does the same.
Needs root; `reason()` says why not. Not a test itself.
"""

from __future__ import annotations

import fcntl
import functools
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

HUB, NODE, MOVED = "10.213.7.1", "10.213.7.2", "10.213.7.3"
_TUNSETIFF, _IFF_TUN_NO_PI = 0x400454CA, 0x1001
_QUEUE = 256 * 1024


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@functools.cache
def reason(line: str) -> str:
    """Why namespaces with this line ("netem" or "tun") can't be had here; "" when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        net = Namespaces(line)
    except (OSError, FileNotFoundError) as error:
        return f"no network namespaces with {line} here: {error}"
    net.close()
    return ""


class Namespaces:
    """`hub` and `node`, linked. Loss is a share, delay seconds one way, rate bytes per second each way; `open` False cuts."""

    def __init__(
        self, line: str, *, loss: float = 0.0, delay: float = 0.0, rate: float | None = None, seed: int = 0
    ) -> None:
        name = f"zk0t{os.getpid() % 100000}"
        self.hub, self.node = f"{name}h", f"{name}n"
        self._line, self._loss, self._delay, self._rate = line, loss, delay, rate
        self.open = True
        self.dead_ports: set[int] = set()
        """Ports whose packets vanish: a router that has forgotten a connection (TUN only)."""
        self._closing, self._rng = False, random.Random(seed)
        self._fds: list[int] = []
        self._thread: threading.Thread | None = None
        try:
            for ns in (self.hub, self.node):
                _ip("netns", "add", ns)
                _ip("-n", ns, "link", "set", "lo", "up")
            (self._veth if line == "netem" else self._tun)()
        except BaseException:
            self.close()
            raise

    def _addresses(self) -> None:
        for ns, address in ((self.hub, HUB), (self.node, NODE)):
            _ip("-n", ns, "addr", "add", f"{address}/24", "dev", "line")
            _ip("-n", ns, "link", "set", "line", "up")

    def _veth(self) -> None:
        _ip("link", "add", "line", "netns", self.hub, "type", "veth", "peer", "name", "line", "netns", self.node)
        self._addresses()
        for ns in (self.hub, self.node):
            self._netem(ns, "add")

    def _netem(self, ns: str, verb: str) -> None:
        words = ["delay", f"{self._delay * 1000:.0f}ms", "loss", f"{self._loss * 100 if self.open else 100:.2f}%"]
        words += ["rate", f"{self._rate * 8:.0f}bit"] if self._rate else []
        done = subprocess.run(
            ["tc", "-n", ns, "qdisc", verb, "dev", "line", "root", "netem", *words], capture_output=True, text=True
        )
        if done.returncode:
            raise OSError(f"tc netem: {done.stderr.strip()}")

    def _tun(self) -> None:
        for ns in (self.hub, self.node):
            with inside(ns):
                fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                self._fds.append(fd)
                fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"line", _IFF_TUN_NO_PI))
        self._addresses()
        self._thread = threading.Thread(target=self._relay, name="tun-relay")
        self._thread.start()

    def _relay(self) -> None:
        due: list[tuple[float, int, int, bytes]] = []
        free = dict.fromkeys(self._fds, 0.0)
        count = 0
        while not self._closing:
            wait = min(0.05, max(0.0, due[0][0] - time.monotonic())) if due else 0.05
            for fd in select.select(self._fds, [], [], wait)[0]:
                to = self._fds[1 - self._fds.index(fd)]
                for _ in range(64):
                    try:
                        packet = os.read(fd, 65536)
                    except (BlockingIOError, OSError):
                        break
                    now = time.monotonic()
                    if not self.open or self._rng.random() < self._loss or self._is_dead(packet):
                        continue
                    start = max(now, free[to])
                    if self._rate:
                        if (start - now) * self._rate > _QUEUE:
                            continue  # the router's buffer is full
                        free[to] = start + len(packet) / self._rate
                    count += 1
                    heapq.heappush(due, (max(start, free[to]) + self._delay, count, to, packet))
            now = time.monotonic()
            while due and due[0][0] <= now:
                _, _, to, packet = heapq.heappop(due)
                try:
                    os.write(to, packet)
                except OSError:
                    pass

    def _is_dead(self, packet: bytes) -> bool:
        at = (packet[0] & 15) * 4
        return (
            bool(self.dead_ports)
            and packet[9] == 6
            and bool({*struct.unpack_from("!HH", packet, at)} & self.dead_ports)
        )

    def cut(self, whole: bool = True) -> None:
        """Nothing passes any more; with `whole` False it does again."""
        self.open = not whole
        if self._line == "netem":
            for ns in (self.hub, self.node):
                self._netem(ns, "change")

    def move(self) -> None:
        """The node's address changes, as after a new lease or another network."""
        _ip("-n", self.node, "addr", "del", f"{NODE}/24", "dev", "line")
        _ip("-n", self.node, "addr", "add", f"{MOVED}/24", "dev", "line")

    def close(self) -> None:
        self._closing = True
        if self._thread is not None:
            self._thread.join()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        for ns in (self.hub, self.node):
            subprocess.run(["ip", "netns", "del", ns], capture_output=True)


@contextmanager
def inside(ns: str) -> Iterator[None]:
    """This thread in namespace `ns`: sockets and threads made now belong there for good."""
    back, there = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{ns}", os.O_RDONLY)
    try:
        os.setns(there, os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(back, os.CLONE_NEWNET)
    finally:
        os.close(back)
        os.close(there)
