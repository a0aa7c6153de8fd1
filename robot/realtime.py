"""Puts the control loop of a take before everything else, where that is permitted; where it is not, nothing fails.

The unit zk0d-record@ permits it (LimitRTPRIO=). Only for loops that sleep between their periods. Linux only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

PRIORITY = 5
"""Low among real-time threads: above every ordinary one, below the kernel's interrupt threads (50)."""


@contextlib.contextmanager
def before_others(wanted: bool = True) -> Iterator[str]:
    """This thread is scheduled round robin in real time → "real time", or "ordinary" with the reason.

    Start the threads that help (encoders, savers) before it, so that they stay ordinary ones. Not SCHED_RESET_ON_FORK:
    the unprivileged cannot take it back, and later threads would lose the unit's niceness (sched(7)).
    """
    if not wanted:
        yield "ordinary: the bench steps its own time"
        return
    try:
        policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    except (OSError, AttributeError) as error:
        yield f"ordinary: {getattr(error, 'strerror', None) or error}"
        return
    try:
        yield "real time"
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, policy, param)
