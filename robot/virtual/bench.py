"""The inside of a station: two arms of servos, the scene, the leader's script and the clock. Single-threaded.

Built and used by the station's thread only. Not for threads and ports (station.py).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robot.virtual.bus import FeetechBus
from robot.virtual.joints import Calibration, JointMap
from robot.virtual.leader import Driven, LeaderScript, Replayed, Resting
from robot.virtual.line import PtyLine
from robot.virtual.replay import Recording
from robot.virtual.scene import Scene
from robot.virtual.servo import GOAL_POSITION, HOMING_OFFSET, MAX_LIMIT, MIN_LIMIT, RESOLUTION, Servo, encode_signed
from robot.virtual.spec import StationSpec

MAX_BACKLOG_S = 0.25
_STILL = np.zeros(6)


class Arm:
    """Six servos behind one port, delivered calibrated."""

    def __init__(self, port: Path, calibration: Calibration) -> None:
        self.calibration = calibration
        self.map = JointMap(calibration)
        self.servos = [Servo(values["id"]) for values in calibration.values()]
        for servo, values in zip(self.servos, calibration.values(), strict=True):
            servo.write(HOMING_OFFSET, encode_signed(values["homing_offset"], 11).to_bytes(2, "little"))
            servo.write(MIN_LIMIT, values["range_min"].to_bytes(2, "little"))
            servo.write(MAX_LIMIT, values["range_max"].to_bytes(2, "little"))
        self.line = PtyLine(port, FeetechBus(self.servos))

    def show(self, steps: NDArray[np.int64], speeds: NDArray[np.float64], loads: NDArray[np.float64]) -> None:
        """Set what the encoders read. `steps` are in the frame of the calibration that the arm was delivered with."""
        raw = steps + self.map.offset
        for servo, *values in zip(self.servos, raw.tolist(), speeds.tolist(), loads.tolist(), strict=True):
            servo.sense(int(values[0]), round(values[1]), round(values[2]))

    def goals(self) -> NDArray[np.float64]:
        """(6,) rad that the servos are told to go to."""
        raw = np.array([servo.goal_raw for servo in self.servos])
        return self.map.to_rad((raw - self.map.offset) % RESOLUTION)

    def hold(self, angles: NDArray[np.float64]) -> None:
        """Make these angles the servos' goals."""
        raw = self.map.to_steps(angles) + self.map.offset
        for servo, value in zip(self.servos, raw.tolist(), strict=True):
            servo.put_word(GOAL_POSITION, (value - servo.homing_offset) % RESOLUTION)

    def driven(self) -> NDArray[np.bool_]:
        """(6,) which servos hold."""
        return np.array([servo.torque for servo in self.servos])


class Bench:
    """The simulated world of one station."""

    def __init__(self, spec: StationSpec, follower: Arm, leader: Arm) -> None:
        self.spec = spec
        self.follower = follower
        self.leader = leader
        kind, _, source = spec.leader.partition(":")
        self._recording = Recording(source) if kind == "replay" else None
        self.scene = Scene(spec)
        self._take = -1
        self._frames: dict[tuple[str, int, int], tuple[int, NDArray[np.uint8]]] = {}
        self.script: LeaderScript = self._start(spec.seed, take=0)
        follower.line.bus.sense = self._sense
        leader.line.bus.sense = lambda: leader.show(self._lead, _STILL, _STILL)
        if spec.clock == "step":
            follower.line.bus.moved = self.advance

    def begin(self, seed: int) -> None:
        """A new take."""
        take = self._take + 1
        self.script = self._start(seed, take)
        self._take = take

    def _start(self, seed: int, take: int) -> LeaderScript:
        script: LeaderScript
        if self._recording is not None:
            episode = self._recording.episode_of(take)
            first = self.follower.map.steps_from_range(self._recording.values(episode)[0])
            self.scene.reset(seed, start=self.follower.map.to_rad(first))
            script = Replayed(self._recording, episode, self.leader.map)
        else:
            self.scene.reset(seed)
            if self.spec.leader == "expert":
                script = Driven(self.scene, seed, self.leader.map)
            else:
                script = Resting(self.leader.map.to_steps(self.scene.target))
        self.follower.hold(self.scene.target)
        self._lead = self._from = self._to = script.first
        self._simulated = 0.0
        self._shown = 0
        self._epoch: float | None = None
        return script

    def advance(self) -> None:
        """One control period (clock "step")."""
        self.scene.step(self.follower.goals(), self.follower.driven())
        self._lead = self.script.next()

    def follow_clock(self, now: float) -> float:
        """Catch up with the wall clock (monotonic, s); gives the seconds until there is something to do."""
        if self._epoch is None:
            self._epoch = now
        elapsed = now - self._epoch
        if elapsed - self._simulated > MAX_BACKLOG_S:
            # A machine that cannot keep up slows the bench down instead of making it jump.
            self._epoch += elapsed - self._simulated - MAX_BACKLOG_S
            elapsed = now - self._epoch
        while self._simulated + self.scene.period_s <= elapsed:
            self.scene.step(self.follower.goals(), self.follower.driven())
            self._simulated += self.scene.period_s
        periods = elapsed * self.spec.fps
        while self._shown < math.floor(periods) + 1:
            self._from, self._to = self._to, self.script.next()
            self._shown += 1
        self._lead = self._from
        if self._recording is None:  # a hand moves between the control periods too
            self._lead = np.rint(self._from + (self._to - self._from) * (periods % 1)).astype(np.int64)
        return max(0.0, self._simulated + self.scene.period_s - elapsed)

    def _sense(self) -> None:
        self.follower.show(self.follower.map.to_steps(self.scene.angles), self.scene.speeds, self.scene.loads)

    def frame(self, view: str, height: int, width: int) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 of the present state; a state is drawn once, and each caller gets its own copy."""
        key = (view, height, width)
        version, pixels = self._frames.get(key, (-1, None))
        if pixels is None or version != self.scene.version:
            pixels = self.scene.draw(view, height, width)
            self._frames[key] = (self.scene.version, pixels)
        return pixels.copy()

    def close(self) -> None:
        """Free the scene."""
        self.scene.close()
