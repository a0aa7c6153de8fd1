"""`python -m robot.virtual.trial --task PickLift --takes 50`: how often the scripted expert succeeds, through the bus.

LeRobot's own leader and follower, no cameras unless asked for. Not for recording (robot/recorder.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robot.virtual.spec import EXPERT_TASKS, StationSpec
from robot.virtual.station import VirtualStation


@dataclass(frozen=True)
class TakeResult:
    """One take: the simulator's flag came up (`success`), and was still up at the end (`held`)."""

    seed: int
    success: bool
    held: bool
    frames: int
    ms_per_cycle: float


def arms(station: VirtualStation, folder: Path) -> tuple[Any, Any]:
    """LeRobot's follower and leader on the station's ports, not yet connected."""
    from lerobot.robots.so_follower import SO101Follower, SOFollowerRobotConfig
    from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig

    station.write_calibration(folder, "follower", "leader")
    follower = SO101Follower(
        SOFollowerRobotConfig(
            port=station.follower_port, id="follower", calibration_dir=folder, cameras=station.camera_configs()
        )
    )
    leader = SO101Leader(SO101LeaderConfig(port=station.leader_port, id="leader", calibration_dir=folder))
    return follower, leader


def run_takes(spec: StationSpec, seeds: range, max_frames: int = 900) -> list[TakeResult]:
    """Run the expert's takes with LeRobot's teleoperation loop (observe, act, send)."""
    results = []
    with tempfile.TemporaryDirectory() as folder, VirtualStation(spec) as station:
        follower, leader = arms(station, Path(folder))
        follower.connect()
        leader.connect()
        try:
            for seed in seeds:
                station.begin_take(seed)
                frames, started = 0, time.perf_counter()
                while not station.leader_done() and frames < max_frames:
                    follower.get_observation()
                    follower.send_action(leader.get_action())
                    frames += 1
                cycle_ms = (time.perf_counter() - started) / max(frames, 1) * 1000
                held = station.succeeding()
                results.append(TakeResult(seed, bool(station.success()), bool(held), frames, cycle_ms))
                print(_line(results[-1]), file=sys.stderr, flush=True)
        finally:
            follower.disconnect()
            leader.disconnect()
    return results


def _line(take: TakeResult) -> str:
    word = "success" if take.success and take.held else "lost it again" if take.success else "no success"
    return f"  seed {take.seed:4}  {take.frames:4} frames  {take.ms_per_cycle:6.2f} ms/cycle  {word}"


def main(argv: list[str] | None = None) -> int:
    """Print a table per task, or with --json one object. Exit status 1 when a success rate is under --at-least."""
    parser = argparse.ArgumentParser(prog="python -m robot.virtual.trial", description=__doc__.splitlines()[0])
    parser.add_argument("--task", action="append", choices=EXPERT_TASKS, help="may be given again; default: all")
    parser.add_argument("--takes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first take (default 0)")
    parser.add_argument("--cameras", default="", help="for example front:96x96,wrist:96x96 (height x width)")
    parser.add_argument("--at-least", type=float, default=0.0, help="success rate below which the exit status is 1")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    report: dict[str, Any] = {}
    for task in args.task or EXPERT_TASKS:
        print(f"{task}: {args.takes} takes from seed {args.seed}", file=sys.stderr)
        spec = StationSpec.parse(f"virtual:{task}?cameras={args.cameras}")
        takes = run_takes(spec, range(args.seed, args.seed + args.takes))
        report[task] = {
            "takes": len(takes),
            "successes": sum(t.success for t in takes),
            "held": sum(t.held for t in takes),
            "failed_seeds": [t.seed for t in takes if not t.success],
            "mean_frames": round(statistics.mean(t.frames for t in takes), 1),
            "ms_per_cycle": round(statistics.median(t.ms_per_cycle for t in takes), 3),
            "results": [asdict(t) for t in takes],
        }
    if args.json:
        print(json.dumps(report))
    else:
        for task, r in report.items():
            print(
                f"{task:14} {r['successes']}/{r['takes']} succeeded ({r['held']} held to the end), "
                f"{r['mean_frames']} frames a take, {r['ms_per_cycle']} ms a cycle; failed seeds {r['failed_seeds']}"
            )
    return int(any(r["successes"] < args.at_least * r["takes"] for r in report.values()))


if __name__ == "__main__":
    sys.exit(main())
