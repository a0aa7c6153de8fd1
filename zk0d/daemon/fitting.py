"""Which datasets of this node a federation's spec can be trained on, and the trainer's job of a task on them.

Not for where and how the job runs on this machine (trainer_job.py), nor for which episodes are good (quality.py).
"""

from __future__ import annotations

from typing import Any

from zk0d.daemon import datasets
from zk0d.daemon.quality import Selection
from zk0d.daemon.store import Dataset, Store, Task
from zk0d.errors import Zk0Error
from zk0d.model.blobs import BlobStore
from zk0d.model.spec import ModelSpec


class Fitting:
    """Looks at the datasets anew with each question: they are recorded to meanwhile."""

    def __init__(self, store: Store, blobs: BlobStore, selection: Selection) -> None:
        self._store, self._blobs, self._selection = store, blobs, selection

    def of(self, spec_digest: str) -> tuple[list[Dataset], list[str]]:
        """The training datasets that fit a spec we hold, and sentences about those that do not. Raises Zk0Error when
        the spec cannot be read."""
        spec = ModelSpec.load(self._blobs.path(spec_digest))
        fits: list[Dataset] = []
        reasons: list[str] = []
        for dataset in (d for d in self._store.datasets() if d.train):
            wrong = datasets.misfits(dataset, spec)
            total, out = datasets.refreshed(dataset).episodes, self._selection.out(dataset)
            if total and len(out) >= total:
                wrong.append(f"none of its {total} episodes is trained on (`zk0ctl dataset show {dataset.name}`)")
            if wrong:
                reasons.append(f"dataset {dataset.name}: {', and '.join(wrong)}")
            else:
                fits.append(dataset)
        return fits, reasons

    def job(self, task: Task) -> dict[str, Any]:
        """The trainer's job for `task`, all but where it writes. Raises Zk0Error when nothing fits any more."""
        fits, reasons = self.of(task.body["spec_digest"])
        if not fits:
            raise Zk0Error(f"no dataset fits federation {task.federation} any more", "; ".join(reasons))
        body = task.body
        return {
            "spec": str(self._blobs.path(body["spec_digest"])),
            "base": str(self._blobs.path(body["base_digest"])),
            "version": str(self._blobs.path(body["version_digest"])),
            "datasets": [{"root": str(d.root), "episodes": self._episodes(d), "rename": d.rename} for d in fits],
            **{k: body[k] for k in ("local_steps", "batch_size", "lr", "mu", "seed")},
        }

    def _episodes(self, dataset: Dataset) -> list[int]:
        """Those that are trained on, by their numbers: a task goes on with what it was begun with."""
        total = datasets.refreshed(dataset).episodes
        some = self._selection.trained(dataset, total)
        return list(range(total)) if some is None else some
