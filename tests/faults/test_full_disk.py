"""The disk is full while an ended take is verified, committed and assembled: nothing is lost, and it is saved later."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lerobot")
from recorded_dataset import check_whole
from small_disk import small_disk

from robot.dataset import RecordedDataset
from robot.episodes import RecordingSpec
from zk0d.errors import DatasetError

SPEC = RecordingSpec(30, tuple(f"{n}.pos" for n in "abcdef"), {"front": (64, 64)}, "so_follower", "degrees")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "4m") as folder:
        yield folder


def seal(dataset: RecordedDataset, number: int) -> None:
    take = dataset.new_take()
    for k in range(8):
        picture = np.full((64, 64, 3), 20 * number + k, np.uint8)
        picture[:32] = 255
        take.add(k / 30, np.full(6, k, np.float32), np.full(6, number, np.float32), {"front": picture})
    dataset.seal(take, f"task {number}", {})


def fill(disk: Path, leave: int) -> Path:
    """Use up the disk but for `leave` bytes."""
    filler = disk / "filler"
    space = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - leave)
    return filler


def test_a_take_survives_a_disk_that_is_full_at_any_step_of_becoming_an_episode(disk: Path, tmp_path: Path) -> None:
    template = tmp_path / "template"
    with RecordedDataset(template, SPEC) as dataset:
        seal(dataset, 0)
    with RecordedDataset(template, SPEC) as dataset:
        assert len(dataset.records) == 1
        seal(dataset, 1)
    failed = left = 0
    for leave in range(0, 160, 8):
        root = disk / "cups"
        shutil.copytree(template, root)
        filler = fill(disk, leave * 1024)
        left = 0
        try:
            with RecordedDataset(root, SPEC) as dataset:
                left = len(dataset.records)
        except (DatasetError, OSError) as error:
            assert "No space left" in str(error) or "room" in str(error), error
        failed += left != 2
        filler.unlink()
        with RecordedDataset(root, SPEC) as dataset:  # the person has made room
            assert len(dataset.records) == 2, f"{leave} KiB were left"
            assert not dataset.recovery.quarantined, f"{leave} KiB were left: {dataset.recovery}"
        if leave % 16 == 0 or left == 2:  # LeRobot's loader takes its time
            assert len(check_whole(root)) == 16
        shutil.rmtree(root)
        if left == 2:
            break
    print(f"{failed} amounts of room were too little; {leave} KiB were enough")
    assert failed > 3 and left == 2
