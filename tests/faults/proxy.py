"""A TCP proxy with faults: delay, little bandwidth, standstill, resets, half-open links. One thread; not a test itself."""

from __future__ import annotations

import heapq
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

PIECE = 16 * 1024


@dataclass(eq=False)
class _Way:
    """One direction of one connection."""

    source: socket.socket
    sink: socket.socket
    up: bool
    waiting: list[tuple[float, int, bytes]] = field(default_factory=list)
    free: float = 0.0
    dead: bool = False

    @property
    def held(self) -> int:
        return sum(len(d) for _, _, d in self.waiting)


class FaultProxy:
    """In front of 127.0.0.1:`target`. Set `delay` (seconds one way), `rate` (bytes/s each way), `stopped` at any time."""

    def __init__(self, target: int, *, delay: float = 0.0, rate: float | None = None) -> None:
        self._target = target
        self.delay, self.rate, self.stopped = delay, rate, False
        self.resets = 0
        self.reset_at: list[int] = []
        """Values of `passed` at which every connection is reset, ascending."""
        self.passed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._ways: list[_Way] = []
        self._orders: list[str] = []
        self._count, self._closing = 0, False
        self._thread = threading.Thread(target=self._run, name="fault-proxy")
        self._thread.start()

    def reset(self) -> None:
        """Reset every connection."""
        self._orders.append("reset")

    def half_open(self) -> None:
        """What is connected now swallows everything from here on, and says nothing."""
        self._orders.append("half_open")

    def close(self) -> None:
        self._closing = True
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            while self._orders:
                self._reset() if self._orders.pop(0) == "reset" else self._forget()
            for key, _ in self._selector.select(0.005):
                if key.data is None:
                    self._accept()
                elif key.data in self._ways:
                    self._read(key.data)
            self._write()
        self._reset()
        self._listener.close()
        self._selector.close()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=2)
        except OSError:
            client.close()
            return
        for source, sink, up in ((client, server, True), (server, client, False)):
            source.setblocking(False)
            way = _Way(source, sink, up)
            self._ways.append(way)
            self._selector.register(source, selectors.EVENT_READ, way)

    def _read(self, way: _Way) -> None:
        if not way.dead and (self.stopped or way.held > 256 * 1024):
            time.sleep(0.001)
            return
        try:
            data = way.source.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(way)
            return
        if way.dead:
            return
        self.passed += len(data)
        if self.reset_at and self.passed >= self.reset_at[0]:
            self.reset_at.pop(0)
            self._reset()
            return
        now = time.monotonic()
        if self.rate:
            way.free = max(now, way.free) + len(data) / self.rate
        self._count += 1
        heapq.heappush(way.waiting, (max(now, way.free) + self.delay, self._count, data))

    def _write(self) -> None:
        now = time.monotonic()
        for way in list(self._ways):
            while not self.stopped and way.waiting and way.waiting[0][0] <= now:
                due, number, data = way.waiting[0]
                try:
                    n = way.sink.send(data)
                except BlockingIOError:
                    break
                except OSError:
                    self._end(way)
                    break
                heapq.heappop(way.waiting)
                if n < len(data):
                    heapq.heappush(way.waiting, (due, number, data[n:]))

    def _end(self, way: _Way) -> None:
        # Half-open: the end that is left never hears of it.
        for one in [w for w in self._ways if w is way or (w.source is way.sink and not way.dead)]:
            self._ways.remove(one)
            self._selector.unregister(one.source)
            one.source.close()

    def _forget(self) -> None:
        for way in self._ways:
            way.dead = True
            way.waiting.clear()

    def _reset(self) -> None:
        self.resets += 1
        for way in self._ways:
            try:
                way.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                pass
        for way in list(self._ways):
            if way in self._ways:
                self._end(way)
