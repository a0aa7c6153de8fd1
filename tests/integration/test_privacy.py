"""Invariant 1: no frame, no joint trajectory, no task text, no file, user or host name leaves the machine.

Marked values are put into all of those places, a real node enrols, joins, trains and delivers, and every byte that it
gives to TLS is searched for them, plain and in the encodings that a careless program would use.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from drawn_dataset import make_dataset
from world import CAMERAS, World

from zk0d.demo import cast
from zk0d.demo.cast import Node

TASK = "Canary-Task-Zeisig fold the blue shirt"
FOLDER = "canaryfolderstieglitz"
USER = "canaryusergimpel"
HOST = "canaryhostammer"


class TappedNode(Node):
    """A node whose daemon runs as user USER, on "host" HOST, with the tap."""

    @property
    def tap(self) -> Path:
        return self.folder.parent / f"{self.name}.tap"

    def command(self) -> list[str]:
        command = super().command()
        script = str(Path(__file__).parent.parent / "tapped_zk0d.py")
        names = {"USER": USER, "LOGNAME": USER, "USERNAME": USER, "HOSTNAME": HOST, "ZK0_TEST_TAP": str(self.tap)}
        return ["env", *(f"{k}={v}" for k, v in names.items()), sys.executable, script, *command[3:]]


def text_forms(word: str) -> Iterator[tuple[str, bytes]]:
    """`word` plain and as a careless program would re-encode it."""
    for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le"):
        raw = word.encode(encoding)
        yield encoding, raw
        yield encoding + " reversed", raw[::-1]
        yield encoding + " hex", raw.hex().encode()
        yield encoding + " HEX", raw.hex().upper().encode()
        for shift in range(3):  # base64 looks different at each of three alignments; its inner part is what is sought
            inner = base64.b64encode(b"\0" * shift + raw)[4:-4]
            yield f"{encoding} base64/{shift}", inner
            yield f"{encoding} urlsafe/{shift}", inner.replace(b"+", b"-").replace(b"/", b"_")
    yield "swapped case", word.swapcase().encode()
    yield "lower case", word.lower().encode()


def number_forms(values: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """Two neighbouring values in every float layout, and each value as decimal text."""
    for name in ("<f4", ">f4", "<f8", ">f8", "<f2"):
        raw = np.asarray(values).astype(name).tobytes()
        if len(raw) >= 6:
            yield name, raw
            yield name + " hex", raw.hex().encode()
            yield name + " base64", base64.b64encode(raw)[:-4]
    for value in values:
        yield "decimal", f"{float(value):.5f}".encode()
        yield "repr", repr(float(value)).encode()[:8]


def windows(data: bytes, size: int = 24, count: int = 400) -> Iterator[tuple[str, bytes]]:
    """Pieces from all over a file that are not constant (constant runs occur anywhere)."""
    step = max(1, (len(data) - size) // count)
    for start in range(0, len(data) - size, step):
        piece = data[start : start + size]
        if len(set(piece)) > 10:
            yield f"bytes at {start}", piece


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bytes, Path, World]]:
    """What a node sent from enrolment to its receipt, the dataset it trained on, and the world."""
    folder = tmp_path_factory.mktemp("privacy")
    root = folder / FOLDER / f"{FOLDER}-data"
    root.parent.mkdir()
    make_dataset(root, episodes=3, frames=24, cameras=("front",), height=32, width=32, seed=5, task=TASK)
    with World(folder / "world", nodes=0) as world:
        node = TappedNode("n0", folder / FOLDER / USER)
        world.nodes.append(node)
        node.configure("virtual:Touch", "expert", CAMERAS)
        node.start(node.answers)
        node.ctl("enroll", world.invite())
        node.ctl("dataset", "add", f"local:{root}", "--name", FOLDER)
        world.federation("private", versions=1, steps=6)
        world.join("private")
        world.until_version("private", 1)
        world.wait(lambda: node.status().get("receipts", 0) >= 1, "a receipt on the node")
        node.stop()
        yield node.tap.read_bytes(), root, world


def test_the_tap_sees_what_the_node_sends(captured: tuple[bytes, Path, World]) -> None:
    """Else the tests below could not fail."""
    sent, _, world = captured
    assert b"zk0d/" in sent and b"update.offer" in sent and b"private" in sent
    update = json.loads(world.hub.admin("versions", "private", "--json"))
    assert update
    largest = max(
        (p for p in (world.folder / "hub" / "blobs").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    assert len(sent) > 100_000, largest  # the delta itself went through the tap
    for form, piece in text_forms("update.offer"):
        if form == "utf-8":
            assert piece in sent


@pytest.mark.parametrize(
    "word", [TASK, FOLDER, USER, HOST, "Zeisig", "stieglitz", "gimpel", "observation.images.front/"]
)
def test_no_text_leaves(captured: tuple[bytes, Path, World], word: str) -> None:
    sent = captured[0]
    lower = sent.lower()
    for form, piece in text_forms(word):
        if len(piece) >= 6:
            assert piece not in sent, f"{word!r} leaves as {form}"
    assert word.lower().encode() not in lower


def test_no_name_of_this_machine_leaves(captured: tuple[bytes, Path, World]) -> None:
    sent = captured[0]
    names = {socket.gethostname(), str(captured[1].parent), os.path.expanduser("~")} - {"/", ""}
    machine_id = Path("/etc/machine-id")
    if machine_id.exists() and machine_id.read_text().strip():
        names.add(machine_id.read_text().strip())
    for name in names:
        if len(name) >= 5:  # a host called "vm" occurs in any megabyte of numbers
            assert name.encode() not in sent, name


def test_no_joint_values_leave(captured: tuple[bytes, Path, World]) -> None:
    import pyarrow.parquet as pq

    sent, root, _ = captured
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        for column in ("observation.state", "action"):
            rows = np.stack(table[column].to_numpy())
            for row in rows[::3]:
                for pair in (row[:2], row[2:4], row[4:6]):
                    for form, piece in number_forms(pair):
                        assert piece not in sent, f"{column} {pair} leaves as {form}"


def test_no_exact_statistics_leave(captured: tuple[bytes, Path, World]) -> None:
    sent, root, _ = captured
    stats = json.loads((root / "meta" / "stats.json").read_text())
    for feature in ("observation.state", "action"):
        for kind in ("mean", "std", "min", "max"):
            values = np.array(stats[feature][kind])
            for a, b in itertools.pairwise(values):
                for form, piece in number_forms(np.array([a, b])):
                    if abs(a - round(a * 2) / 2) > 1e-6:  # one that is on the coarse grid by chance may be sent
                        assert piece not in sent, f"{kind} of {feature} leaves as {form}"


def test_no_frame_leaves(captured: tuple[bytes, Path, World]) -> None:
    """Neither the encoded files nor the pictures in them, as rows of pixels."""
    import av

    sent, root, _ = captured
    videos = sorted((root / "videos").rglob("*.mp4"))
    assert videos
    for path in videos:
        for form, piece in windows(path.read_bytes()):
            assert piece not in sent, f"{path.name}: {form}"
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                picture = frame.to_ndarray(format="rgb24")
                for row in picture[:: max(1, len(picture) // 8)]:
                    line = row.tobytes()
                    if len(set(line)) > 10:
                        assert line[:48] not in sent and line[-48:] not in sent
                        scaled = (row.astype(np.float32) / 255).tobytes()
                        assert scaled[:64] not in sent


def test_a_node_that_leaks_is_caught(captured: tuple[bytes, Path, World]) -> None:
    """The search itself: hide each kind of canary in the capture and see it found."""
    sent, root, _ = captured
    for form, piece in text_forms(TASK):
        assert piece in sent + b"..." + piece, form
    hidden = sent + base64.b64encode(b"x" + TASK.encode())
    assert any(piece in hidden for _, piece in text_forms(TASK))
    video = next((root / "videos").rglob("*.mp4")).read_bytes()
    assert any(piece in sent + video for _, piece in windows(video))


def test_tap_script_changes_nothing_else() -> None:
    """The tapped daemon is zk0d's own main."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent.parent / "tapped_zk0d.py"), "--version"],
        capture_output=True, text=True, env=cast.environment(),
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("zk0d ")
