"""How a virtual station is written down."""

from __future__ import annotations

import subprocess
import sys

import pytest

from robot.virtual.spec import StationSpec
from zk0d.errors import UsageError


def test_parse_reads_every_key() -> None:
    text = "virtual:PickLift?seed=3&clock=wall&leader=rest&fps=50&arm=so100&cameras=front:96x128,wrist:64x64"
    assert StationSpec.parse(text) == StationSpec(
        "PickLift", "rest", 3, {"front": (96, 128), "wrist": (64, 64)}, 50, "wall", "so100"
    )


def test_arguments_win_over_the_text_and_none_does_not() -> None:
    spec = StationSpec.parse("virtual:Touch?seed=3", seed=5, leader=None)
    assert (spec.seed, spec.leader) == (5, "expert")


def test_a_free_bench_has_nobody_at_the_leader() -> None:
    assert StationSpec.parse("virtual:").leader == "rest"
    assert StationSpec("").leader == "rest"


def test_a_replay_file_keeps_its_episode() -> None:
    assert StationSpec.parse("virtual:", leader="replay:/data/x.parquet#7").leader == "replay:/data/x.parquet#7"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("virtual:Juggle", "PickLift"),
        ("virtual:Touch?speed=2", "leader"),
        ("virtual:Touch?seed=x", "seed=3"),
        ("virtual:Touch?clock=sun", "wall"),
        ("virtual:Touch?cameras=front", "cameras=front:96x96"),
        ("virtual:Touch?cameras=front:9x9", "2048"),
        ("virtual:Touch?fps=0", "200"),
        ("virtual:StackCube", "leader=rest"),
        ("virtual:Touch?leader=ghost", "replay"),
        ("/dev/ttyACM0", "virtual:"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        StationSpec.parse(text)
    assert says in str(caught.value)


def test_parsing_imports_neither_torch_nor_mujoco() -> None:
    code = (
        "import sys; from robot.virtual import StationSpec; StationSpec.parse('virtual:Touch');"
        "sys.exit(any(m in sys.modules for m in ('torch', 'lerobot', 'mujoco', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
