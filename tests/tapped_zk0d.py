"""zk0d with a tap on its link: everything it gives to TLS is also appended to the file in ZK0_TEST_TAP.

The program itself is unchanged; only the constructor argument that exists for this is filled in.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from zk0d.daemon import enrolment, main, uplink


def tap(data: bytes) -> None:
    with Path(os.environ["ZK0_TEST_TAP"]).open("ab") as f:
        f.write(data)


uplink.NodeLink = functools.partial(uplink.NodeLink, tap=tap)  # type: ignore[misc,assignment]
enrolment.enroll = functools.partial(enrolment.enroll, tap=tap)

if __name__ == "__main__":
    sys.exit(main.main())
