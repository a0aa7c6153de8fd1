"""The virtual servos' protocol and memory, without a terminal: bytes in, bytes out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot.virtual.bus import ACTION, BROADCAST, PING, READ, REG_WRITE, SYNC_READ, SYNC_WRITE, WRITE, FeetechBus, frame
from robot.virtual.servo import (
    GOAL_POSITION,
    HOMING_OFFSET,
    ID,
    LOCK,
    MAX_LIMIT,
    MIN_LIMIT,
    OVERLOAD_ERROR,
    PRESENT_POSITION,
    TORQUE_ENABLE,
    Servo,
    decode_signed,
    encode_signed,
)


def bus() -> FeetechBus:
    return FeetechBus([Servo(i) for i in range(1, 7)])


def word(value: int) -> bytes:
    return value.to_bytes(2, "little")


def test_the_bytes_of_a_ping_are_those_of_the_manual() -> None:
    # Feetech's manual, ping of servo 1: FF FF 01 02 01 FB, answered FF FF 01 02 00 FC.
    assert frame(1, PING) == bytes.fromhex("ffff010201fb")
    assert bus().feed(bytes.fromhex("ffff010201fb")) == bytes.fromhex("ffff010200fc")


def test_every_servo_answers_a_broadcast_ping_once() -> None:
    assert bus().feed(frame(BROADCAST, PING)) == b"".join(frame(i, 0) for i in range(1, 7))


def test_read_gives_the_model_number_and_a_write_is_acknowledged() -> None:
    line = bus()
    assert line.feed(frame(3, READ, bytes([3, 2]))) == frame(3, 0, word(777))
    assert line.feed(frame(3, WRITE, bytes([MIN_LIMIT]) + word(812))) == frame(3, 0)
    assert line.feed(frame(3, READ, bytes([MIN_LIMIT, 2]))) == frame(3, 0, word(812))


def test_a_servo_that_is_not_there_is_silent() -> None:
    assert bus().feed(frame(9, PING)) == b""


def test_sync_write_is_silent_and_reports_goals_once_per_packet() -> None:
    line = bus()
    moves: list[int] = []
    line.moved = lambda: moves.append(line.servos[1].word(GOAL_POSITION))
    data = b"".join(bytes([i]) + word(1000 + i) for i in (1, 2))
    assert line.feed(frame(BROADCAST, SYNC_WRITE, bytes([GOAL_POSITION, 2]) + data)) == b""
    assert line.feed(frame(BROADCAST, SYNC_WRITE, bytes([TORQUE_ENABLE, 1, 1, 1, 2, 1]))) == b""
    assert moves == [1002]


def test_sync_read_answers_in_the_order_asked_with_fresh_values() -> None:
    line = bus()
    line.sense = lambda: [s.sense(100 * s.id, 0, 0) for s in line.servos] and None
    reply = line.feed(frame(BROADCAST, SYNC_READ, bytes([PRESENT_POSITION, 2, 5, 2])))
    assert reply == frame(5, 0, word(500)) + frame(2, 0, word(200))


def test_reg_write_waits_for_action() -> None:
    line = bus()
    line.feed(frame(1, REG_WRITE, bytes([GOAL_POSITION]) + word(99)))
    assert line.servos[0].word(GOAL_POSITION) == 0
    assert line.feed(frame(BROADCAST, ACTION)) == b""
    assert line.servos[0].word(GOAL_POSITION) == 99


@pytest.mark.parametrize(
    "broken",
    [
        frame(1, PING)[:-1] + b"\x00",  # checksum
        b"\xff\xff\x01\x01\xfd",  # length below two
        frame(1, 0x77),  # no such instruction
        frame(1, READ, bytes([120, 60])),  # beyond the table
        frame(1, READ, bytes([3])),  # a parameter is missing
        frame(BROADCAST, SYNC_WRITE, bytes([GOAL_POSITION, 2, 1, 0])),  # half an entry
        frame(1, WRITE, bytes([127, 1, 1])),
    ],
)
def test_what_is_not_right_is_not_answered_and_counted(broken: bytes) -> None:
    line = bus()
    assert line.feed(broken) == b""
    assert line.counters.refused == 1
    assert line.feed(frame(1, PING)) == frame(1, 0), "the next frame is understood"


@given(st.binary(max_size=60), st.lists(st.integers(1, 20), max_size=8))
@settings(max_examples=200, deadline=None)
def test_after_any_noise_and_silence_the_next_frame_is_understood(noise: bytes, cuts: list[int]) -> None:
    line = bus()
    line.feed(noise)
    line.silence()
    request = frame(4, READ, bytes([3, 2]))
    pieces, rest = [], request
    for cut in cuts:
        pieces, rest = [*pieces, rest[:cut]], rest[cut:]
    assert b"".join(line.feed(p) for p in [*pieces, rest]) == frame(4, 0, word(777))


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_leave_the_servos_whole(data: bytes) -> None:
    line = bus()
    line.feed(data)
    assert [len(s.table) for s in line.servos] == [128] * 6
    assert all(s.word(3) == 777 for s in line.servos), "the model number is read-only"


def test_dropped_and_corrupted_packets() -> None:
    line = bus()
    line.drop, line.corrupt = 1, 1
    assert line.feed(frame(1, PING)) == b""
    answer = line.feed(frame(1, PING))
    assert answer != frame(1, 0) and len(answer) == len(frame(1, 0))
    assert line.feed(frame(1, PING)) == frame(1, 0)
    assert (line.counters.dropped, line.counters.corrupted) == (1, 1)


@pytest.mark.parametrize(("offset", "raw"), [(0, 5), (1533, 100), (-1204, 4000), (2047, 2046)])
def test_homing_offset_shifts_what_is_read_and_the_goal_alike(offset: int, raw: int) -> None:
    servo = Servo(1)
    servo.write(HOMING_OFFSET, word(encode_signed(offset, 11)))
    servo.write(MAX_LIMIT, word(4095))
    servo.sense(raw, 0, 0)
    assert servo.word(PRESENT_POSITION) == (raw - offset) % 4096
    servo.write(GOAL_POSITION, servo.read(PRESENT_POSITION, 2) or b"")
    assert servo.goal_raw == raw


def test_goals_stay_within_the_position_limits() -> None:
    servo = Servo(1)
    servo.write(MIN_LIMIT, word(1000) + word(3000))
    servo.write(GOAL_POSITION, word(4000))
    assert servo.goal_raw == 3000


def test_torque_on_holds_where_the_joint_is() -> None:
    servo = Servo(1)
    servo.write(GOAL_POSITION, word(17))
    servo.sense(2500, 0, 0)
    servo.write(TORQUE_ENABLE, b"\x01")
    assert servo.goal_raw == 2500


def test_only_unlocked_writes_survive_a_power_cycle() -> None:
    servo = Servo(1)
    servo.write(MIN_LIMIT, word(700))
    servo.write(LOCK, b"\x01")
    servo.write(MIN_LIMIT, word(800))
    assert servo.word(MIN_LIMIT) == 800
    servo.power_cycle()
    assert servo.word(MIN_LIMIT) == 700
    assert not servo.torque


def test_an_overloaded_servo_says_so_and_lets_go() -> None:
    line = bus()
    line.servos[0].write(TORQUE_ENABLE, b"\x01")
    line.servos[0].error = OVERLOAD_ERROR
    assert not line.servos[0].torque
    assert line.feed(frame(1, PING)) == frame(1, OVERLOAD_ERROR)
    line.feed(frame(1, WRITE, bytes([TORQUE_ENABLE, 1])))
    assert line.feed(frame(1, PING)) == frame(1, 0)


def test_a_change_of_id_is_acknowledged_by_the_old_one() -> None:
    line = FeetechBus([Servo(1)])
    assert line.feed(frame(1, WRITE, bytes([ID, 8]))) == frame(1, 0)
    assert line.feed(frame(8, PING)) == frame(8, 0)


@given(st.integers(-2047, 2047))
def test_sign_magnitude_round_trip(value: int) -> None:
    assert decode_signed(encode_signed(value, 11), 11) == value
