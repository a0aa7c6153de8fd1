"""How long a node waits before it dials again (protocol.md §2)."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from zk0d.link import tunnel
from zk0d.link.state import LinkLimits


@pytest.mark.parametrize(("refused", "first", "bound"), [(False, 0.25, 30.0), (True, 5.0, 600.0)])
def test_pauses_double_from_the_first_to_a_bound_and_are_random(refused: bool, first: float, bound: float) -> None:
    for failures in (0, 1, 2, 3, 7, 50, 5000):
        whole = min(bound, first * 2.0 ** min(failures, 100))
        pauses = [tunnel._pause(LinkLimits(), failures, refused) for _ in range(100)]
        assert all(whole / 2 <= p <= whole for p in pauses)
        assert max(pauses) - min(pauses) > whole / 10, "nodes of one hub must not come back together"


def test_the_first_failure_waits_the_first_pause(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counted: list[int] = []
    enough = threading.Event()
    real = tunnel._pause

    def noted(limits: LinkLimits, failures: int, refused: bool) -> float:
        counted.append(failures)
        if len(counted) == 4:
            enough.set()
        return real(limits, failures, refused)

    monkeypatch.setattr(tunnel, "_pause", noted)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening: refuses
        dialler = tunnel.Tunnel(
            host="127.0.0.1", port=nobody.getsockname()[1], context=ssl.create_default_context, run_dir=tmp_path / "run",
            on_event=lambda event: None, limits=LinkLimits(retry_min_s=0.001, retry_max_s=0.01),
            on_message=lambda frames, size, inbox: None, on_room=lambda: None,
        )  # fmt: skip
        dialler.start()
        try:
            assert enough.wait(60)
        finally:
            dialler.close()
    assert counted[:4] == [0, 1, 2, 3]
