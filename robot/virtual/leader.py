"""What moves the virtual leader: a scripted expert, a recording, or nothing. Encoder steps per control period.

Not for the follower, which only physics moves.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robot.virtual.expert import Expert
from robot.virtual.joints import JointMap
from robot.virtual.replay import Recording
from robot.virtual.scene import Scene

Steps = NDArray[np.int64]


class LeaderScript(Protocol):
    """`first` is shown until the first control period has passed, then what next() gives."""

    first: Steps

    @property
    def done(self) -> bool:
        """There is no more to show."""

    def next(self) -> Steps:
        """Encoder steps (6,) for the next control period; the last ones again when there is no more."""


class Resting:
    """Nobody touches the leader."""

    def __init__(self, steps: Steps) -> None:
        self.first = steps
        self.done = False

    def next(self) -> Steps:
        """Where it is."""
        return self.first


class Driven:
    """The scripted expert's hand on the leader."""

    def __init__(self, scene: Scene, seed: int, joints: JointMap) -> None:
        self._expert = Expert(scene, seed)
        self._joints = joints
        self.first = joints.to_steps(self._expert.at)

    @property
    def done(self) -> bool:
        """The script has ended."""
        return self._expert.done

    def next(self) -> Steps:
        """The expert's next angles, as the leader's encoders count them."""
        return self._joints.to_steps(self._expert.next())


class Replayed:
    """A recorded teleoperation."""

    def __init__(self, recording: Recording, episode: int, joints: JointMap) -> None:
        self._steps: Steps = joints.steps_from_range(recording.values(episode))
        self._row = 0
        self.first: Steps = self._steps[0]
        self.done = False

    def next(self) -> Steps:
        """The next source row."""
        self._row += 1
        if self._row >= len(self._steps):
            self.done = True
        row: Steps = self._steps[min(self._row, len(self._steps) - 1)]
        return row
