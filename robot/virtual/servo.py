"""One STS3215 servo: its control table, its encoder and its memory. Not for packets (bus.py) or physics (scene.py).

Addresses: Feetech STS/SMS control table, the same as lerobot.motors.feetech.tables.STS_SMS_SERIES_CONTROL_TABLE.
"""

from __future__ import annotations

from typing import Final

RESOLUTION: Final = 4096
MODEL_STS3215: Final = 777
TABLE_SIZE: Final = 128
EEPROM_END: Final = 40
READ_ONLY: Final = frozenset({0, 1, 2, 3, 4, *range(56, 71)})

ID: Final = 5
MIN_LIMIT: Final = 9
MAX_LIMIT: Final = 11
PHASE: Final = 18
HOMING_OFFSET: Final = 31
TORQUE_ENABLE: Final = 40
GOAL_POSITION: Final = 42
TORQUE_LIMIT: Final = 48
LOCK: Final = 55
PRESENT_POSITION: Final = 56
PRESENT_VELOCITY: Final = 58
PRESENT_LOAD: Final = 60
PRESENT_VOLTAGE: Final = 62
PRESENT_TEMPERATURE: Final = 63
STATUS: Final = 65
MOVING: Final = 66
PRESENT_CURRENT: Final = 69

VOLTAGE_ERROR: Final = 0x01
OVERHEAT_ERROR: Final = 0x04
OVERLOAD_ERROR: Final = 0x20

_DEFAULTS: Final = {
    0: bytes([3, 10]),  # firmware 3.10
    3: MODEL_STS3215.to_bytes(2, "little"),
    7: bytes([250]),  # return delay, 500 µs as delivered
    8: bytes([1]),
    MAX_LIMIT: (RESOLUTION - 1).to_bytes(2, "little"),
    13: bytes([70, 80, 40]),  # max temperature °C, max and min voltage in 0.1 V
    16: (1000).to_bytes(2, "little"),
    PHASE: bytes([0x0C]),
    21: bytes([32, 32, 0]),  # P, D, I
    28: (500).to_bytes(2, "little"),
    34: bytes([20, 200, 80]),
    TORQUE_LIMIT: (1000).to_bytes(2, "little"),
    PRESENT_VOLTAGE: bytes([74, 31]),  # 7.4 V, 31 °C
}


def encode_signed(value: int, sign_bit: int) -> int:
    """Sign-magnitude, as the servo stores it. The magnitude is limited to what fits."""
    magnitude = min(abs(value), (1 << sign_bit) - 1)
    return magnitude | (1 << sign_bit) if value < 0 else magnitude


def decode_signed(value: int, sign_bit: int) -> int:
    """Inverse of encode_signed."""
    magnitude = value & ((1 << sign_bit) - 1)
    return -magnitude if value >> sign_bit & 1 else magnitude


class Servo:
    """A servo's memory, with an absolute 12-bit encoder behind it.

    `raw` is the encoder's own reading, 0..4095. What the wire shows is `raw - Homing_Offset` modulo 4096; goals are in
    the wire's frame too. EEPROM cells (addresses below 40) survive a power cycle only if they were written unlocked.
    """

    keeps_goal = False
    """Whether torque drives it to the goal that it had before."""
    goal_wakes = False
    """Whether any goal switches its torque on. (Both are told of real servos, with one firmware or another.)"""

    def __init__(self, servo_id: int) -> None:
        self.table = bytearray(TABLE_SIZE)
        for address, data in _DEFAULTS.items():
            self.table[address : address + len(data)] = data
        self.table[ID] = servo_id
        self.eeprom = bytes(self.table[:EEPROM_END])
        self.raw = RESOLUTION // 2
        self.error = 0
        self.pinned: dict[int, bytes] = {}
        self.pending: tuple[int, bytes] | None = None

    @property
    def id(self) -> int:
        """Bus address, 0..253."""
        return self.table[ID]

    @property
    def torque(self) -> bool:
        """Whether the servo drives its joint."""
        return bool(self.table[TORQUE_ENABLE]) and not self.error & OVERLOAD_ERROR

    @property
    def homing_offset(self) -> int:
        """Encoder steps, sign-magnitude at address 31 (bit 11)."""
        return decode_signed(self.word(HOMING_OFFSET), 11)

    @property
    def goal_raw(self) -> int:
        """The goal in the encoder's own frame, limited to Min/Max_Position_Limit as the servo does."""
        goal = decode_signed(self.word(GOAL_POSITION), 15)
        goal = min(max(goal, self.word(MIN_LIMIT)), self.word(MAX_LIMIT))
        return (goal + self.homing_offset) % RESOLUTION

    def word(self, address: int) -> int:
        """Unsigned 16-bit value at an address."""
        return self.table[address] | self.table[address + 1] << 8

    def put_word(self, address: int, value: int) -> None:
        """Set a 16-bit cell, bypassing write protection (the servo's own side)."""
        self.table[address : address + 2] = value.to_bytes(2, "little")

    def sense(self, raw: int, velocity: int, load: int) -> None:
        """Take over what the joint does: encoder steps, steps/s, load in 0.1 % of stall torque."""
        self.raw = raw % RESOLUTION
        self.put_word(PRESENT_POSITION, (self.raw - self.homing_offset) % RESOLUTION)
        self.put_word(PRESENT_VELOCITY, encode_signed(velocity, 15))
        self.put_word(PRESENT_LOAD, encode_signed(load, 10))
        self.put_word(PRESENT_CURRENT, min(abs(load), 1000) // 3)  # 6.5 mA units, 2.2 A at stall
        self.table[MOVING] = int(abs(velocity) > 20)
        self.table[STATUS] = self.error
        for address, data in self.pinned.items():
            self.table[address : address + len(data)] = data

    def read(self, address: int, length: int) -> bytes | None:
        """Cells from the table, or None when the range is not in it."""
        return bytes(self.table[address : address + length]) if address + length <= TABLE_SIZE else None

    def write(self, address: int, data: bytes) -> bool:
        """What a WRITE instruction does. False when the range is not in the table; read-only cells keep their value."""
        if address + len(data) > TABLE_SIZE:
            return False
        was_on = self.torque
        for offset, value in enumerate(data):
            if address + offset not in READ_ONLY:
                self.table[address + offset] = value
        if not self.table[LOCK] and address < EEPROM_END:
            self.eeprom = bytes(self.table[:EEPROM_END])
        if address <= TORQUE_ENABLE < address + len(data) and self.table[TORQUE_ENABLE] and not was_on:
            self.error &= ~OVERLOAD_ERROR
            if not self.keeps_goal:  # holds where it is
                self.put_word(GOAL_POSITION, (self.raw - self.homing_offset) % RESOLUTION)
        if self.goal_wakes and address <= GOAL_POSITION < address + len(data):
            self.table[TORQUE_ENABLE] = 1
        return True

    def power_cycle(self) -> None:
        """Lose the RAM cells and every EEPROM cell that was written locked."""
        fresh = Servo(self.id)
        self.table = fresh.table
        self.table[:EEPROM_END] = self.eeprom
        self.error = 0
        self.pending = None
