"""`python tests/faults/fuzz.py --cases 1000000 [--seed N]`: bad input for every parser and machine of the link, counted.

Prints accepted and refused per target, the rate, and how much memory grew; exits 1 at the first crash with what repeats it.
Not a test itself: test_fuzz.py runs a few thousand cases of the same in the suite.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from fuzz_targets import SIMPLE, ChunkTarget, PeerTarget, Target

MEMORY_LIMIT = 64 << 20
"""Bytes by which the process may grow over the whole run."""


@dataclass
class Report:
    """What a run did. `crash` names the target, the case's seed and the traceback."""

    cases: int = 0
    accepted: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    grown: int = 0
    crash: str = ""

    def text(self) -> str:
        lines = [f"{'target':20} {'cases':>9} {'refused':>9} {'accepted':>9}"]
        for name in self.refused:
            a, r = self.accepted[name], self.refused[name]
            lines.append(f"{name:20} {a + r:9} {r:9} {a:9}")
        lines.append(
            f"{self.cases} cases in {self.seconds:.1f} s, memory grew by {self.grown / 2**20:.1f} MiB"
            f" (at most {MEMORY_LIMIT >> 20}); accepted ones were looked at again and are well-formed"
        )
        return "\n".join([*lines, self.crash]).rstrip()


@contextmanager
def listening() -> Iterator[list[str]]:
    """No log lines (there would be one for each refusal); what is logged as an error is a defect, and collected."""
    defects: list[str] = []

    def collect(logger: Any, method: str, event: Any) -> Any:
        defects.append(f"{event.get('event')}: {sys.exception() or event}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40), processors=[collect])
    try:
        yield defects
    finally:
        structlog.configure(**before)


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(cases: int, seed: int, only: str = "") -> Report:
    """`cases` over all targets in turn. Each case has its own seed, so that one can be repeated alone."""
    peer, chunk = PeerTarget(), ChunkTarget()
    targets: dict[str, Target] = {**SIMPLE, "conversation": peer, "chunk": chunk}
    chosen = {n: t for n, t in targets.items() if only in n}
    report = Report(accepted=dict.fromkeys(chosen, 0), refused=dict.fromkeys(chosen, 0))
    names, start, base, rng = list(chosen), time.monotonic(), 0, random.Random()
    try:
        with listening() as defects:
            for n in range(cases):
                name = names[n % len(names)]
                case = (seed << 40) + n
                rng.seed(case)
                try:
                    kept = report.accepted if chosen[name](rng) else report.refused
                    assert not defects, defects[0]
                except Exception:
                    report.crash = f"{name}: case {n} of seed {seed}\n{traceback.format_exc()}"
                    break
                kept[name] += 1
                report.cases = n + 1
                if n == min(20_000, cases // 10):
                    base = _resident()  # caches are warm now
    finally:
        peer.close()
        chunk.close()
    report.seconds, report.grown = time.monotonic() - start, _resident() - base
    return report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests/faults/fuzz.py", description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    parser.add_argument("--only", default="", help="targets whose name contains this")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    args: Any = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(1 << 20) if args.seed is None else args.seed
    # A declared size that becomes an allocation shall fail here, not swap.
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    print(f"seed {seed}", flush=True)
    report = run(args.cases, seed, args.only)
    print(json.dumps(report.__dict__) if args.json else report.text())
    return 1 if report.crash or report.grown > MEMORY_LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
