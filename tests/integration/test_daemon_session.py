"""A recording session steered from two terminals: single keys in the one that began it, commands in another.

The daemon, its control socket, the real recorder and the virtual servo bus; two pseudo-terminals.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_process import Daemon, wait_until
from recorded_dataset import check_whole

pytest.importorskip("lerobot")
pytest.importorskip("so101_nexus")

SESSION = (
    "record", "--dataset", "cups", "--task", "touch the cube", "--episodes", "3", "--keep", "all", "--keys",
    "--by-hand", "--paused", "--reset-s", "600", "--follower", "virtual:Touch?clock=wall", "--leader", "rest",
)  # fmt: skip


class Terminal:
    """The terminal in which the session was begun."""

    def __init__(self, node: Daemon, *words: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            node.command(*words), env=node.environ, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.seen = ""

    def press(self, key: str) -> None:
        os.write(self.master, key.encode())

    def read(self) -> str:
        """All that it has shown so far."""
        with contextlib.suppress(OSError):  # its other end is closed
            while select.select([self.master], [], [], 0)[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
        return self.seen

    def shows(self, text: str, count: int = 1) -> None:
        wait_until(lambda: self.read().count(text) >= count, f"the terminal shows {text!r}", 120)


@contextlib.contextmanager
def terminal(node: Daemon, *words: str) -> Iterator[Terminal]:
    opened = Terminal(node, *words)
    try:
        yield opened
    finally:
        opened.process.kill()
        opened.process.wait(60)
        os.close(opened.master)


def test_next_again_discard_pause_and_finish_from_two_terminals(tmp_path: Path) -> None:
    with Daemon(tmp_path / "node") as node, terminal(node, *SESSION) as first:

        def say(word: str) -> None:
            """A command in the second terminal."""
            ran = node.ctl("record", word)
            assert ran.code == 0 and ran.out.startswith(f"{word}: recording by "), ran

        def phase(name: str, frames: int = 0) -> dict[str, Any]:
            def reached() -> dict[str, Any] | None:
                assert first.process.poll() is None, first.read()
                now = (node.status()["session"] or {}).get("progress") or {}
                return now if now.get("phase") == name and now.get("frames", frames) >= frames else None

            return dict(wait_until(reached, f"phase {name}", 60))

        def take() -> None:
            say("next")
            phase("take", frames=5)

        phase("paused")  # it waits for the first `next`, and the arm follows its leader
        assert "paused: `zk0ctl record next` begins a take" in node.ctl("record", "watch", "--once").out
        take()
        seen = node.ctl("record", "watch", "--once").out
        assert (
            "taking episode 0" in seen and "elbow_flex" in seen and "cameras: front" in seen and "servos: up to" in seen
        )
        first.press("d")
        first.shows("discarded take 1: discarded")
        phase("reset")
        take()
        first.press("n")
        first.shows("saved episode 0")
        phase("reset")
        first.press("r")  # that one was not good after all: one more is wanted
        first.shows("again: episode 0 is recorded anew")
        take()
        say("rerecord")
        first.shows("discarded take 3: to be recorded again")
        phase("reset")
        take()
        first.press("p")
        first.shows("pausing after this take")
        say("next")
        first.shows("saved episode 1")
        phase("paused")
        say("resume")
        phase("reset")
        first.press("n")
        phase("take", frames=5)
        say("finish")
        first.press("n")
        first.shows("saved episode 2")
        assert wait_until(lambda: first.process.poll() is not None, "the session's end", 120)
        assert "cups: 3 episodes (3 new, 2 takes discarded); told to finish" in first.read()
        assert first.process.returncode == 2  # of the three that were wanted, one is to be recorded again
        assert node.status()["session"] is None
        late = node.ctl("record", "next")
        assert late.code == 1 and "nothing is being recorded" in late.err
        assert "excluded by you" in node.ctl("dataset", "show", "cups", "--episodes").out
        assert any("episode 0 of 'cups' is recorded again" in text for text in node.events("record"))
        whole = check_whole(node.state / "datasets/cups")
        assert whole.num_episodes == 3 and min(whole.meta.episodes["length"]) >= 5
