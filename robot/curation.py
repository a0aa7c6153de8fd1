"""Worker that looks at and reshapes whole datasets: verify, contact sheet, delete, merge, split, import, repair.

What is made appears whole in a new folder or not at all; no source is changed. Not for recording (dataset.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robot.carried import carry
from zk0d import dataset_info, durable
from zk0d.errors import DatasetError, UsageError, Zk0Error, from_os
from zk0d.filetree import PART
from zk0d.worker import Message, WorkerChannel, run_worker

Say = Callable[..., None]


def load(root: Path) -> Any:
    """LeRobot's dataset of a folder, never asking a model hub. Raises DatasetError."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    if not (root / "meta/info.json").is_file():
        raise DatasetError(f"{root}: there is no dataset", "name the folder that holds meta/info.json")
    dataset_info.check(dataset_info.read(root), root)
    try:
        return LeRobotDataset(f"local/{root.name}", root=root)
    except Exception as error:  # pyarrow, pandas, datasets, av: each has its own
        raise DatasetError(
            f"{root} does not open: {str(error).strip().splitlines()[0]}", "zk0ctl dataset repair"
        ) from error


def made(target: Path, make: Callable[[Path], None], source: Path | None = None) -> Path:
    """Let `make` fill a folder beside `target`, open it as a check, then give it its name. Raises DatasetError.

    `source`: what `make` uses up, as which errors name the folder that is being made.
    """
    if target.exists():
        raise DatasetError(f"{target} is there already", "choose another name")
    part = target.with_name(f".{target.name}.{os.getpid()}{PART}")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        make(part)
        load(part)
        durable.publish(part, target)
    except Zk0Error as error:
        error.message = _renamed(error.message, part, source or target)
        raise
    except OSError as error:
        why = from_os(error, f"{target} could not be made")
        raise DatasetError(_renamed(why.message, part, source or target), why.hint) from error
    except (ValueError, RuntimeError, KeyError) as error:
        text = _renamed(f"{target} could not be made: {error}", part, source or target)
        raise DatasetError(text, "the sources are unchanged") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _renamed(text: str, part: Path, known: Path) -> str:
    """`text` with the folder's real name: when a person reads it, `part` and what a converter puts beside are gone."""
    names = f"(?:{re.escape(str(part))}|(?:local/)?{re.escape(part.name)})(?:_old|_v30)?"
    return re.sub(names, lambda _: str(known), text)


def chosen(episodes: list[int], total: int) -> list[int]:
    """Sorted episode numbers, each there. Raises UsageError."""
    wrong = [n for n in episodes if not 0 <= n < total]
    if wrong or not episodes:
        raise UsageError(f"there is no episode {', '.join(map(str, wrong)) or 'named'}", f"it has 0 to {total - 1}")
    return sorted(set(episodes))


def delete(job: Message, say: Say) -> dict[str, Any]:
    """The dataset `root` without `episodes`, as the folder `target`."""
    from lerobot.datasets.dataset_tools import delete_episodes

    source = load(Path(job["root"]))
    gone = chosen(list(job["episodes"]), source.meta.total_episodes)
    if len(gone) == source.meta.total_episodes:
        raise UsageError("nothing would be left", "take the dataset out with `zk0ctl dataset add … --no-train`")
    left = [n for n in range(source.meta.total_episodes) if n not in set(gone)]

    def fill(part: Path) -> None:
        delete_episodes(source, gone, part, f"local/{part.name}")
        carry([(Path(job["root"]), left)], part)

    return _counts(made(Path(job["target"]), fill))


def merge(job: Message, say: Say) -> dict[str, Any]:
    """All `roots`, in their order, as one dataset in the folder `target`."""
    from lerobot.datasets.dataset_tools import merge_datasets

    sources = [load(Path(root)) for root in job["roots"]]

    def fill(part: Path) -> None:
        merge_datasets(sources, f"local/{part.name}", part)
        roots = [Path(root) for root in job["roots"]]
        carry([(r, range(s.meta.total_episodes)) for r, s in zip(roots, sources, strict=True)], part)

    return _counts(made(Path(job["target"]), fill))


def split(job: Message, say: Say) -> dict[str, Any]:
    """`episodes` of `root` as `target`, and the others as `rest` where that is named."""
    from lerobot.datasets.dataset_tools import delete_episodes

    source = load(Path(job["root"]))
    total = source.meta.total_episodes
    first = chosen(list(job["episodes"]), total)
    second = [n for n in range(total) if n not in set(first)]
    if not second:
        raise UsageError("a split needs episodes on both sides", f"there are 0 to {total - 1}")
    result = {}
    for key, without, with_ in (("target", second, first), ("rest", first, second)):
        if job.get(key):

            def fill(part: Path, without: list[int] = without, with_: list[int] = with_) -> None:
                delete_episodes(source, without, part, f"local/{part.name}")
                carry([(Path(job["root"]), with_)], part)

            result[key] = _counts(made(Path(job[key]), fill))
    return result


def take_in(job: Message, say: Say) -> dict[str, Any]:
    """The dataset in `source`, a copy that may be used up, becomes `target`, as v3.0."""
    source = Path(str(job["source"]))
    version = _version(source)

    def fill(part: Path) -> None:
        source.rename(part)
        if not version.startswith("v3."):
            _convert(part, say)

    return {**_counts(made(Path(job["target"]), fill, source)), "was": version}


def _lacks(error: Exception) -> str:
    return from_os(error).message if isinstance(error, OSError) else f"meta/info.json has no such {error}"


def _version(root: Path) -> str:
    try:
        info = json.loads((root / "meta/info.json").read_text())
        version = str(info["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{root} is no LeRobot dataset: {_lacks(error)}", "name the folder with meta/info.json"
        ) from error
    if not version.startswith(("v3.", "v2.1")):
        raise DatasetError(
            f"{root} is a dataset of {version}", "v2.1 and v3.0 can be imported; convert it to v2.1 first"
        )
    dataset_info.check(info, root)
    return version


def _convert(root: Path, say: Say) -> None:
    """v2.1 to v3.0, in place, by LeRobot's converter, which leaves the old folder beside it."""
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    say("converting", of="v2.1 to v3.0")
    try:
        convert_dataset(f"local/{root.name}", root=root, push_to_hub=False)
    except Exception as error:
        raise DatasetError(f"{root}: LeRobot's converter failed: {error!r}", "is the v2.1 dataset whole?") from error
    finally:
        for suffix in ("_old", "_v30"):
            shutil.rmtree(root.with_name(root.name + suffix), ignore_errors=True)


def _counts(root: Path) -> dict[str, Any]:
    info = json.loads((root / "meta/info.json").read_text())
    return {"root": str(root), "episodes": info["total_episodes"], "frames": info["total_frames"]}


def _verify(job: Message, say: Say) -> dict[str, Any]:
    from robot.verification import verify

    return verify(Path(job["root"]), say)


def _sheet(job: Message, say: Say) -> dict[str, Any]:
    from robot.sheet import draw

    return draw(load(Path(job["root"])), Path(job["out"]), list(job.get("episodes") or []))


def _repair(job: Message, say: Say) -> dict[str, Any]:
    from robot.salvage import salvage

    report: dict[str, Any] = {}
    made(Path(job["target"]), lambda part: report.update(salvage(Path(job["root"]), part, say)))
    return {**_counts(Path(job["target"])), **report}


ACTIONS: dict[str, Callable[[Message, Say], dict[str, Any]]] = {
    "verify": _verify, "sheet": _sheet, "delete": delete, "merge": merge, "split": split, "take_in": take_in,
    "repair": _repair,
}  # fmt: skip


def main(job: Message, channel: WorkerChannel) -> Message:
    """Do one job. Raises DatasetError or UsageError."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    action = str(job.get("action"))
    if action not in ACTIONS:
        raise UsageError(f"dataset {action!r} is not known", f"one of {', '.join(ACTIONS)}")
    return ACTIONS[action](job, channel.emit)


if __name__ == "__main__":
    sys.exit(run_worker(main))
