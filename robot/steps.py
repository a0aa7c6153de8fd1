"""The dialogue of a step-wise job: says what to do, waits for a person's answer from any terminal.

Not for what the steps are (calibration.py, servo_ids.py).
"""

from __future__ import annotations

from typing import Any

from robot.ear import Channel, Ear


class Aborted(Exception):
    """The person, or the end of the supervisor, ended the work."""

    done: tuple[str, ...] = ()
    """What was done before and stays: joints whose servos were given an id."""


class Steps:
    """The dialogue: says what to do, waits for the answer."""

    def __init__(self, channel: Channel) -> None:
        self.ear = Ear(channel)

    def say(self, event: str, **fields: Any) -> None:
        """Tell the person something."""
        self.ear.emit(event, **fields)

    def answered(self, wait_s: float = 0.0) -> bool:
        """Whether `next` came within `wait_s`. Raises Aborted for stop, discard, finish and a lost supervisor."""
        message = self.ear.poll(wait_s)
        if message is None:
            return False
        if message.get("cmd") == "next":
            return True
        raise Aborted(str(message.get("cmd")))

    def ask(self, name: str, text: str) -> None:
        """Say a step and wait for `next`; one that came before the step was said does not answer it."""
        while self.answered():
            pass
        self.say("step", step=name, text=text)
        while not self.answered(0.5):
            pass
