"""The control loop comes first where that is permitted, and only while it lasts; where it is not, nothing fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from robot.realtime import PRIORITY, before_others

CODE = """
import os, resource
from robot.realtime import before_others
os.setpriority(os.PRIO_PROCESS, 0, 3)  # whatever the tests themselves run at
try:
    resource.setrlimit(resource.RLIMIT_RTPRIO, ({limit}, {limit}))
    os.setuid(65534)
except ValueError:  # root in a container may not raise limits; it has the right to real time itself
    pass
for _ in range(2):  # the unprivileged get it, give it back, and get it again
    with before_others() as how:
        inside = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    print(how, *inside, os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0), sep="|")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand out the right to real time, and be another user")
@pytest.mark.parametrize(("limit", "expected"), [(20, f"real time|{os.SCHED_RR}|{PRIORITY}|0|3"), (0, "ordinary")])
def test_by_the_units_limit(limit: int, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(limit=limit)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    one, two = done.stdout.splitlines()
    if limit and one == "ordinary: Operation not permitted|0|0|0|3":
        pytest.skip("this kernel gives real time to nobody in this control group")
    assert one == two and one.startswith(expected)


def test_not_for_a_bench_that_steps_its_own_time() -> None:
    with before_others(False) as how:
        assert how.startswith("ordinary") and os.sched_getscheduler(0) == os.SCHED_OTHER
