"""What `zk0ctl record` says before it loads: to the same daemon that the request goes to, and only when one follows."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from zk0d.control import socket_address
from zk0d.ctl.context import Context
from zk0d.ctl.make_way import announce, socket_path


@pytest.mark.parametrize(
    "options",
    [[], ["--state", "/a"], ["--socket", "/b/s"], ["--socket=/b/s", "--state=/a"], ["--state=/a"], ["--socket", "/s", "--state", "/a"]],
)  # fmt: skip
@pytest.mark.parametrize(
    "environ", [{}, {"ZK0_STATE": "/c"}, {"ZK0_SOCKET": "/d/s"}, {"ZK0_SOCKET": "/d/s", "ZK0_STATE": "/c"}]
)
def test_it_finds_the_daemon_that_the_request_goes_to(
    options: list[str], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ZK0_STATE", "ZK0_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    words = [w for option in options for w in option.split("=")]
    given = dict(zip(words[::2], words[1::2], strict=True))
    expected = Context.make(given.get("--socket"), given.get("--state")).socket
    assert socket_path([*options, "record", "start"]) == str(expected)


@pytest.mark.parametrize("depth", [0, 12])  # a path that is too long for a socket's address
def test_only_a_recording_that_begins_is_announced(tmp_path: Path, depth: int) -> None:
    folder = tmp_path.joinpath(*["deep-folder"] * depth)
    folder.mkdir(parents=True, exist_ok=True)
    path = str(folder / "control.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        with socket_address(path) as address:
            listener.bind(address)
        listener.listen(8)
        listener.settimeout(60)
        for words in (["status"], ["record", "stop"], ["record", "--help"], ["dataset", "record"][:1]):
            announce(["--socket", path, *words])
        announce(["--socket", path, "record", "--task", "x"])
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(100) == b'{"op": "make_way"}\n' and accepted.recv(100) == b""
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_nobody_listens() -> None:
    announce(["--socket", "/nonexistent/control.sock", "record"])
    announce(["record"])


def test_nothing_slow_is_loaded_before_it_is_said() -> None:
    code = "import sys; import zk0d.ctl.main; print(*sorted(m for m in sys.modules if 'zk0d' in m or m in ('json', 're', 'socket')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["zk0d", "zk0d.ctl", "zk0d.ctl.main", "zk0d.ctl.make_way"]
