"""The Feetech half-duplex protocol (SCS/STS protocol 0) for a chain of virtual servos: bytes in, bytes out.

Frame: FF FF id length instruction parameters… ~sum. No I/O here; line.py puts it on a pseudo-terminal.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from robot.virtual.servo import GOAL_POSITION, PRESENT_POSITION, STATUS, Servo

BROADCAST: Final = 0xFE
PING: Final = 0x01
READ: Final = 0x02
WRITE: Final = 0x03
REG_WRITE: Final = 0x04
ACTION: Final = 0x05
SYNC_READ: Final = 0x82
SYNC_WRITE: Final = 0x83
MAX_LENGTH: Final = 250
MAX_DATA: Final = 128


@dataclass
class BusCounters:
    """What went over the bus. `refused`: bad checksum, length or instruction, or a range outside the table."""

    requests: int = 0
    replies: int = 0
    refused: int = 0
    noise: int = 0
    dropped: int = 0
    corrupted: int = 0
    goals: int = 0
    positions: int = 0


def frame(servo_id: int, code: int, parameters: bytes = b"") -> bytes:
    """A frame with checksum; `code` is an instruction or, in a reply, the servo's error bits."""
    body = bytes([servo_id, len(parameters) + 2, code]) + parameters
    return b"\xff\xff" + body + bytes([~sum(body) & 0xFF])


class FrameParser:
    """Cuts a byte stream into frames. Strict: anything that is not a whole frame with the right sum is skipped."""

    def __init__(self, counters: BusCounters) -> None:
        self._buffer = bytearray()
        self._counters = counters

    def reset(self) -> None:
        """Forget a partial frame (the line was silent: its sender gave up)."""
        self._counters.noise += len(self._buffer)
        self._buffer.clear()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Yield (id, instruction, parameters) of each frame completed by `data`."""
        buffer = self._buffer
        buffer += data
        while True:
            start = buffer.find(b"\xff\xff")
            if start < 0:
                keep = 1 if buffer.endswith(b"\xff") else 0
                self._counters.noise += len(buffer) - keep
                del buffer[: len(buffer) - keep]
                return
            self._counters.noise += start
            del buffer[:start]
            if len(buffer) < 4:
                return
            servo_id, length = buffer[2], buffer[3]
            if servo_id == 0xFF:  # FF FF FF …: the header starts one byte later
                self._counters.noise += 1
                del buffer[:1]
                continue
            if not 2 <= length <= MAX_LENGTH:
                self._counters.refused += 1
                del buffer[:2]
                continue
            if len(buffer) < length + 4:
                return
            body, checksum = bytes(buffer[2 : length + 3]), buffer[length + 3]
            if ~sum(body) & 0xFF != checksum:
                self._counters.refused += 1
                del buffer[:2]
                continue
            del buffer[: length + 4]
            yield servo_id, body[2], body[3:]


class FeetechBus:
    """A chain of servos. `sense()` is called before present values are read, `moved()` after a sync write of goals."""

    def __init__(self, servos: Sequence[Servo]) -> None:
        self.servos = list(servos)
        self.counters = BusCounters()
        self.sense: Callable[[], None] = lambda: None
        self.moved: Callable[[], None] = lambda: None
        self.drop = 0
        self.corrupt = 0
        self.corrupt_share = 0.0
        self.drop_share = 0.0
        self._dice = random.Random(0)
        self._parser = FrameParser(self.counters)

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the wire, give the bytes that the servos answer."""
        out = bytearray()
        for servo_id, instruction, parameters in self._parser.feed(data):
            if self.drop or (self.drop_share and self._dice.random() < self.drop_share):
                self.drop = max(0, self.drop - 1)
                self.counters.dropped += 1
                continue
            self.counters.requests += 1
            for reply in self._answer(servo_id, instruction, parameters):
                self.counters.replies += 1
                out += self._damage(reply)
        return bytes(out)

    def silence(self) -> None:
        """The line was quiet for longer than a frame takes: drop what is half received."""
        self._parser.reset()

    def _damage(self, reply: bytes) -> bytes:
        if not self.corrupt and not (self.corrupt_share and self._dice.random() < self.corrupt_share):
            return reply
        self.corrupt = max(0, self.corrupt - 1)
        self.counters.corrupted += 1
        return reply[:-1] + bytes([reply[-1] ^ 0x55])

    def _with_id(self, servo_id: int) -> list[Servo]:
        return [s for s in self.servos if servo_id in (BROADCAST, s.id)]

    def _answer(self, servo_id: int, instruction: int, parameters: bytes) -> Iterator[bytes]:
        targets = self._with_id(servo_id)
        if instruction == PING and not parameters:
            for servo in targets:
                yield frame(servo.id, servo.error)
        elif instruction == READ and len(parameters) == 2 and servo_id != BROADCAST:
            yield from self._read(targets, *parameters)
        elif instruction in (WRITE, REG_WRITE) and len(parameters) >= 2:
            yield from self._write(targets, instruction, servo_id, parameters)
        elif instruction == ACTION and not parameters:
            self._act(targets)
            if servo_id != BROADCAST:
                yield from (frame(s.id, s.error) for s in targets)
        elif instruction == SYNC_READ and servo_id == BROADCAST and len(parameters) >= 3:
            chosen = [s for i in parameters[2:] for s in self.servos if s.id == i]
            yield from self._read(chosen, parameters[0], parameters[1])
        elif instruction == SYNC_WRITE and servo_id == BROADCAST and len(parameters) >= 4:
            self._sync_write(parameters[0], parameters[1], parameters[2:])
        else:
            self.counters.refused += 1

    def _read(self, servos: list[Servo], address: int, length: int) -> Iterator[bytes]:
        if not 1 <= length <= MAX_DATA:
            self.counters.refused += 1
            return
        if address <= STATUS + 5 and address + length > PRESENT_POSITION:
            self.counters.positions += 1
            self.sense()
        for servo in servos:
            data = servo.read(address, length)
            if data is None:
                self.counters.refused += 1
            else:
                yield frame(servo.id, servo.error, data)

    def _write(self, servos: list[Servo], instruction: int, servo_id: int, parameters: bytes) -> Iterator[bytes]:
        address, data = parameters[0], parameters[1:]
        if address == 40:
            self.sense()  # torque on loads the goal from the present position, so that has to be fresh
        for servo in servos:
            answer_id = servo.id  # the reply to a change of ID still comes from the old one
            if instruction == REG_WRITE:
                servo.pending = (address, data)
            elif not servo.write(address, data):
                self.counters.refused += 1
                continue
            if servo_id != BROADCAST:
                yield frame(answer_id, servo.error)

    def _act(self, servos: list[Servo]) -> None:
        for servo in servos:
            if servo.pending is not None:
                servo.write(*servo.pending)
                servo.pending = None

    def _sync_write(self, address: int, length: int, rest: bytes) -> None:
        if not 1 <= length <= MAX_DATA or len(rest) % (length + 1):
            self.counters.refused += 1
            return
        for start in range(0, len(rest), length + 1):
            for servo in self._with_id(rest[start]):
                servo.write(address, rest[start + 1 : start + 1 + length])
        if address <= GOAL_POSITION < address + length:
            self.counters.goals += 1
            self.moved()
