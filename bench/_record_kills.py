"""`kill -9` at random points of the recorder, again and again on one dataset, and what LeRobot's loader finds after it.

Runs as a process of its own that has imported everything and has no threads, so that each recorder is one fork.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FPS, SIZE, TAKE_S = 30, [96, 128], 1.4


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """Run `work` (given a descriptor to write to) in a fork → its pid and the descriptor to read from."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.close(read)
            os.setsid()
            work(write)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    os.close(write)
    return pid, read


def drain(read: int) -> bytes:
    parts = []
    while data := os.read(read, 65536):
        parts.append(data)
    os.close(read)
    return b"".join(parts)


def killed_once(table: dict[str, Any], root: Path, dice: random.Random) -> tuple[int, float]:
    """One recorder, killed some time after its first take began → episodes it had called saved, when it was killed."""
    from _recorders import ours

    pid, read = forked(lambda out: void(ours(table, root, FPS, TAKE_S, 100_000, 2, SIZE, out)))
    heard, moment = b"", dice.uniform(0.0, 3.0)
    deadline, end = time.monotonic() + 60, float("inf")
    while time.monotonic() < min(deadline, end):
        if select.select([read], [], [], max(0.0, min(deadline, end) - time.monotonic()))[0]:
            data = os.read(read, 65536)
            if not data:
                raise SystemExit("the recorder ended by itself")
            heard += data
            if b"take\n" in heard and end == float("inf"):
                end = time.monotonic() + moment
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    heard += drain(read)
    return heard.count(b"saved\n"), moment


def void(*_: object, **__: object) -> None:
    """Nothing."""


def seen(root: Path, first: int, recovering: bool) -> dict[str, Any]:
    """What LeRobot's loader finds, in a fork: `episodes`, and how many from `first` on do not give their last row."""

    def look(out: int) -> None:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        from robot.recorder import recover

        found = recover(root)["recovered"] if recovering else {}
        dataset, bad = None, 0
        if (root / "meta/info.json").exists():
            dataset = LeRobotDataset("local/bench", root=root, video_backend="pyav")
            ends = dataset.meta.episodes["dataset_to_index"]
            for episode in range(first, len(ends)):
                row = dataset[ends[episode] - 1]
                bad += int(row["episode_index"]) != episode or float(row["observation.images.camera0"].std()) < 0.01
        count = dataset.num_episodes if dataset is not None else 0
        os.write(out, json.dumps({"episodes": count, "bad": bad, "found": found}).encode())

    pid, read = forked(look)
    said = drain(read)
    if os.waitpid(pid, 0)[1]:
        return {"episodes": 0, "bad": 0, "found": {}}
    return dict(json.loads(said))


def whole(root: Path) -> int:
    """Problems of the whole dataset at the end: every frame decoded, every hash compared."""
    from robot.verification import verify

    pid, read = forked(lambda out: void(os.write(out, str(len(verify(root, void)["problems"])).encode())))
    said = drain(read)
    return int(said) if not os.waitpid(pid, 0)[1] else 1


def main() -> None:
    table, root, count, seed, limit_s = json.loads(sys.argv[1])
    import lerobot.datasets.lerobot_dataset
    import lerobot.robots.so_follower
    import lerobot.teleoperators.so_leader  # noqa: F401

    from robot import arms, dataset, recorder, video  # noqa: F401

    recorder.Recorder.approach = lambda self: None  # type: ignore[method-assign]
    recorder.put_down = lambda *given, **named: None  # type: ignore[assignment]
    root, dice = Path(root), random.Random(seed)
    held = lost = recovered = cut = removed = quarantined = 0
    began, done = time.monotonic(), 0
    for number in range(count):
        if time.monotonic() - began > limit_s:
            break
        said, moment = killed_once(table, root, dice)
        before = seen(root, held, recovering=False)
        after = seen(root, before["episodes"], recovering=True)
        gone = max(0, held + said - before["episodes"]) + before["bad"]
        gone = max(gone, held + said - after["episodes"] + after["bad"])
        found = after["found"]
        done += 1
        recovered += len(found.get("adopted", []))
        cut += len(found.get("cut", []))
        removed += len(found.get("removed", []))
        quarantined += len(found.get("quarantined", []))
        if gone > 0:
            lost += gone
            print(
                f"kill {number}, {moment:.3f} s after the first take began: lost {gone} (seed {seed})", file=sys.stderr
            )
        held = after["episodes"]
    print(json.dumps({
        "kills": done, "episodes_lost": lost, "episodes": held, "problems": whole(root), "recovered": recovered, "of_them_cut": cut, "removed": removed,
        "quarantined": quarantined,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
