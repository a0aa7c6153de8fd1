"""The recorder worker: teleoperate, and make each take an episode that survives whatever happens next.

`python -m robot.recorder JOB.json`; job, events and commands are in docs/architecture.md, "Workers".
Not for what a take is on disk (episodes.py, dataset.py) nor for opening devices (arms.py).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from robot.cutoff import Begun
from robot.ear import Channel, Ear, Ended
from robot.ramp import put_down, ramp
from robot.realtime import before_others
from robot.recorder_job import RecorderJob
from robot.room import Room
from zk0d.errors import ConfigError, DatasetError, RobotError
from zk0d.worker import Message, run_worker

PROGRESS_EVERY_S = 0.5
DISK_CHECK_EVERY_S = 5.0
KEEP_WHEN_CUT_S = 1.0


class Recorder:
    """One job. Takes are recorded on the calling thread; the one before is verified and saved beside it."""

    def __init__(self, job: RecorderJob, channel: Ear, bench: Any, dataset: Any, view: Any = None) -> None:
        self.job = job
        self._view = view
        self._channel = channel
        self._bench = bench
        self._dataset = dataset
        self._fast = (job.pace or ("fast" if bench.stepped else "real")) == "fast"
        if self._fast and not bench.stepped:
            raise ConfigError('recorder job: pace = "fast" needs a bench that steps its own time', 'use pace = "real"')
        # A take is sealed (durable) by its own thread, so that it never queues behind the verification of the last one.
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="save", initializer=_step_back)
        self._saving: list[tuple[int, bool | None, Future[Any]]] = []
        self._first = len(dataset.records)
        self._adopted: int = dataset.adopted_staged  # of an earlier recorder: they count towards what is wanted
        self._take = 0
        self._saved = 0
        self._frames = 0
        self._discarded = 0
        self._finish = False  # no further take
        self._cut = False  # end the take in progress as well
        self._paused = job.paused
        self._kept: int | None = None  # the take kept last, which `rerecord` between takes replaces
        self._replaced: set[int] = set()
        self._episodes: dict[int, int] = {}  # take → episode, of those saved
        cameras = tuple(bench.cameras.values())
        self._room = Room(job.floor_bytes, job.quota_left, cameras, job.fps, job.episode_s)
        self._least = round(KEEP_WHEN_CUT_S * job.fps)
        """Rows below which a take that was cut off is not worth keeping."""
        self._max_takes = job.max_takes or (4 * job.episodes + 10 if job.keep == "success" else 0)

        self._home: Any = None if bench.virtual else bench.positions()
        """Where the arms stood when they were opened: their rest."""
        self._limp = False
        """Told to let the arms go where they are."""

    def approach(self) -> None:
        """The follower goes to where the leader is: no leap. An end that is told meanwhile is one before any take."""
        if self._bench.virtual:
            return
        try:
            why = ramp(self._bench, self._bench.leader_pose, self._channel)
        except BaseException:  # such as a leader that is lost: the arm is on its way, and must not sink there
            put_down(self._bench, self._home, self._channel)
            raise
        if why:
            self._finish, self._cut, self._limp = True, why != "care", why == "release"

    def run(self) -> Message:
        """Record until the job is done or a command ends it; everything saved is durable when this returns."""
        try:
            self._between(0.0)
            while not self._finish and self._wanted():
                self._take += 1
                self._one_take()
                self._collect(wait=self._all_taken())
                if not self._finish and self._wanted():
                    self._between(self.job.reset_s)
        finally:
            put_down(self._bench, self._home, self._channel, limp=self._limp)  # not held while takes are verified
            try:
                self._collect(wait=True)
            finally:
                self._sealer.shutdown()
                self._saver.shutdown()
        return {
            "episodes": self._saved + self._adopted,
            "takes": self._take,
            "discarded": self._discarded,
            "frames": self._frames,
            "dataset": str(self.job.dataset),
            "ended": f"the arm was let go: {self._bench.health()['reason']}"
            if self._bench.released
            else self._room.reason,
        }

    def _all_taken(self) -> bool:
        return self._adopted + self._saved + len(self._saving) - len(self._replaced) >= self.job.episodes

    def _next_episode(self) -> int:
        return self._first + self._saved + len(self._saving)

    def _wanted(self) -> bool:
        return not self._all_taken() and (not self._max_takes or self._take < self._max_takes)

    def _one_take(self) -> None:
        job, bench = self.job, self._bench
        if refusal := self._room.refusal(self._dataset.free_bytes()):
            raise DatasetError(f"{job.dataset}: {refusal}", "make room: nothing recorded is deleted for you")
        self._channel.emit("take", take=self._take, episode=self._next_episode())
        seed = job.seed * 100_003 + self._take - 1
        bench.begin_take(seed)
        whole = {"take": self._take, "seed": seed, "pace": "fast" if self._fast else "real"}
        take = self._dataset.new_take(Begun(job.task, whole, 0 if bench.virtual else self._least))
        try:
            with before_others(not self._fast):
                outcome = self._loop(take)
        except RobotError as error:
            self._keep_what_there_is(take, seed, error)
            raise
        except (DatasetError, OSError) as error:
            raise self._leave(take, error) from error
        except BaseException as error:  # a defect of ours must not cost what a person has recorded
            self._set_aside(take, f"the recorder failed: {type(error).__name__}: {error}")
            raise
        success = bench.success()
        too_short = take.frames < 2 or (self._cut and (bench.virtual or take.frames < self._least))
        if outcome in ("discard", "rerecord") or too_short:
            take.discard()
            words = {"discard": "discarded", "rerecord": "to be recorded again"}
            self._drop(words.get(outcome, "cut short"))
        elif job.keep == "success" and success is False:
            take.discard()
            self._drop("no success")
        else:
            pace = "fast" if self._fast else "real"
            facts = {"take": self._take, "seed": seed, "success": success, "ended_by": outcome, "pace": pace}
            self._save(take, success, {**facts, "observed": bench.tally()})

    def _save(self, take: Any, success: bool | None, facts: dict[str, Any]) -> None:
        sealing = self._sealer.submit(self._dataset.seal, take, self.job.task, facts)
        saving = self._saver.submit(lambda: self._dataset.save(sealing.result()))
        self._saving.append((self._take, success, saving))
        self._kept = self._take

    def _leave(self, take: Any, error: DatasetError | OSError) -> DatasetError:
        """The take cannot be written on (disk full): what there is stays, for the next start → what to say."""
        why = error.message if isinstance(error, DatasetError) else f"the take could not be written: {error}"
        kept = self._set_aside(take, why)
        if not kept:
            return DatasetError(why, "see whether the disk is full; saved episodes are whole")
        return DatasetError(f"{why}; of take {self._take}, {kept}", "make room on the disk, then record again")

    def _set_aside(self, take: Any, why: str) -> str:
        """End a take that cannot go on → what is kept of it for the next start; empty when it is too little."""
        rows = take.leave()
        if not rows:
            take.discard()
            self._drop(why)
            return ""
        kept = f"its first {rows / self.job.fps:.0f} s are kept, and saved when recording starts again"
        self._drop(f"{why}; {kept}")
        return kept

    def _keep_what_there_is(self, take: Any, seed: int, error: RobotError) -> None:
        """A bus or camera went in mid-take: the rows so far are whole, so a long enough take is kept."""
        if self._bench.virtual or take.frames < self._least:
            take.discard()
            self._drop(f"a device failed: {error.message}")
            return
        facts = {"take": self._take, "seed": seed, "success": None, "ended_by": "device", "error": error.message}
        facts["observed"] = self._bench.tally()
        self._save(take, None, {**facts, "pace": "fast" if self._fast else "real"})

    def _loop(self, take: Any) -> str:
        """The control loop of one take, LeRobot's order: observe, read the leader, send, keep. Gives what ended it."""
        job, bench = self.job, self._bench
        period = 1.0 / job.fps
        limit = max(2, round(job.episode_s * job.fps)) if job.auto else sys.maxsize
        begin = anchor = time.perf_counter()
        next_progress, next_disk, steps = begin + PROGRESS_EVERY_S, begin + DISK_CHECK_EVERY_S, 0
        while True:
            now = time.perf_counter()
            at = take.frames * period if self._fast else now
            state, images = bench.observe()
            sent = bench.command(bench.leader_pose())
            take.add(at, state, sent, images)
            if self._view is not None:
                self._view.offer(bench.joints, state, sent, images)
            if self._tend():
                return "care"
            steps += 1
            if take.frames >= limit:
                return "time"
            if job.auto and bench.leader_done():
                return "leader"
            if now >= next_progress:
                next_progress = now + PROGRESS_EVERY_S
                self._progress(take, now - begin)
                self._collect(wait=False)
            if now >= next_disk:
                next_disk = now + DISK_CHECK_EVERY_S
                if self._room.full(self._dataset.free_bytes(), take.folder):
                    self._finish = True
                    return "disk"
            wait = 0.0
            if not self._fast:
                wait = anchor + steps * period - time.perf_counter()
                if wait < -period:  # fell behind by more than a period: go on from here instead of hurrying after it
                    anchor, steps, wait = time.perf_counter(), 0, 0.0
            if (end := self._commands(wait)) is not None:
                return end

    def _tend(self) -> bool:
        """Care for the arm: say what has changed; true when it was let go, which ends the session."""
        for found in self._bench.tend():
            self._channel.emit("care", **found)
        self._finish = self._finish or self._bench.released
        return bool(self._bench.released)

    def _commands(self, wait_s: float) -> str | None:
        """Sleep until the next period, reacting at once to what the supervisor says. Gives what ends the take."""
        deadline = time.perf_counter() + wait_s
        while True:
            message = self._channel.poll(max(0.0, deadline - time.perf_counter()))
            if message is None:
                return None
            match message.get("cmd"):
                case "next" | "discard" | "rerecord" as end:
                    return str(end)
                case "pause":  # after this take
                    self._paused = True
                    self._channel.emit("pausing", take=self._take)
                case "resume":
                    self._paused = False
                case "finish":
                    self._finish = True
                case "stop" | "release" as end:
                    self._finish = self._cut = True
                    self._limp = end == "release"
                    return str(end)
                case "orphaned":
                    self._finish = True
                    if not self._bench.virtual:
                        self._cut = True
                        return "orphaned"

    def _between(self, seconds: float) -> None:
        """Teleoperate without recording: for `seconds`, in which the person puts things back, and while paused.

        `next` begins the next take; `rerecord` replaces the take kept last.
        """
        bench, period = self._bench, 1.0 / self.job.fps
        end = time.perf_counter() + seconds
        paused, said = False, 0.0
        while (self._paused or time.perf_counter() < end) and not self._finish:
            began = time.perf_counter()
            if self._paused and not paused:
                self._channel.emit("paused", take=self._take)
            paused = self._paused
            bench.observe()
            bench.command(bench.leader_pose())
            if self._tend():
                return
            if began - said >= PROGRESS_EVERY_S:
                said = began
                phase = {"phase": "paused"} if paused else {"phase": "reset", "left_s": round(end - began, 1)}
                self._channel.emit("progress", episode=self._next_episode(), **phase, **bench.preview())
                self._collect(wait=False)
            match self._commands(max(0.0, period - (time.perf_counter() - began))):
                case "next":
                    self._paused = False
                    end = 0.0
                case "rerecord":
                    self._replace()
                case "discard":
                    pass  # there is no take to drop
                case None:
                    continue
        if paused and not self._finish:
            self._channel.emit("resumed")

    def _replace(self) -> None:
        """The take kept last is to be recorded again. It stays in the dataset; the daemon keeps it out of training."""
        if self._kept is None or self._kept in self._replaced:
            return
        self._replaced.add(self._kept)
        if (episode := self._episodes.get(self._kept)) is not None:
            self._channel.emit("superseded", take=self._kept, episode=episode)

    def _progress(self, take: Any, seconds: float) -> None:
        self._channel.emit(
            "progress",
            episode=self._next_episode(),
            phase="take",
            frames=take.frames,
            seconds=round(seconds, 2),
            hz=round(take.frames / seconds, 1) if seconds > 0 else 0.0,
            **self._bench.preview(),
        )

    def _drop(self, reason: str) -> None:
        self._discarded += 1
        self._channel.emit("discarded", take=self._take, reason=reason)

    def _collect(self, wait: bool) -> None:
        """Report what the saver has finished. A take that does not verify is discarded; a full disk ends the job."""
        while self._saving and (wait or self._saving[0][2].done()):
            take, success, future = self._saving.pop(0)
            try:
                record = future.result()
            except DatasetError as error:
                self._discarded += 1
                self._channel.emit("discarded", take=take, reason=error.message)
                continue
            except OSError as error:
                self._discarded += 1
                raise DatasetError(
                    f"take {take} could not be saved: {error}", "see whether the disk is full"
                ) from error
            self._saved += 1
            self._frames += record.length
            self._room.recorded(sum(int(f["bytes"]) for f in record.files.values()), record.length / self.job.fps)
            self._episodes[take] = record.position.episode_index
            self._channel.emit(
                "saved",
                episode=record.position.episode_index,
                frames=record.length,
                success=success,
                take=take,
                quality=record.quality,
            )
            if take in self._replaced:
                self._channel.emit("superseded", take=take, episode=record.position.episode_index)


def _step_back() -> None:
    """Verifying never takes a core from a control loop: this thread alone (Linux) becomes as nice as possible."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def recover(root: Path) -> Message:
    """Adopt what a killed recorder left in the dataset, with no arm opened. Raises DatasetError."""
    from robot.dataset import RecordedDataset, read_spec

    with RecordedDataset(root, read_spec(root)) as dataset:
        return {"episodes": len(dataset.records), "recovered": dataset.recovery.to_json(), "dataset": str(root)}


def _view(job: RecorderJob) -> AbstractContextManager[Any]:
    if not job.rerun:
        return nullcontext()
    from robot.rerun_view import RerunView

    return RerunView(job.rerun)


def main(job: Message, channel: Channel) -> Message:
    """Open everything, record, close everything. Raises RobotError, DatasetError or ConfigError."""
    if "recover" in job:
        return recover(Path(job["recover"]))
    wanted, ear = RecorderJob.parse(job), Ear(channel)
    try:
        return _record(wanted, ear)
    except Ended:  # before anything was opened; takes of an earlier recorder wait for the next
        none = dict.fromkeys(("episodes", "takes", "discarded", "frames"), 0)
        return {**none, "dataset": str(wanted.dataset), "ended": ""}


def _record(wanted: RecorderJob, ear: Ear) -> Message:
    # After the job is known to be right: these take seconds.
    from robot.arms import open_bench
    from robot.dataset import RecordedDataset
    from robot.episodes import RecordingSpec

    with _view(wanted) as view, open_bench(wanted.robot, fps=wanted.fps, seed=wanted.seed, ear=ear) as bench:
        spec = RecordingSpec(wanted.fps, bench.joints, bench.cameras, bench.robot_type, wanted.robot.units)
        with RecordedDataset(wanted.dataset, spec) as dataset:
            recorder = Recorder(wanted, ear, bench, dataset, view)
            recorder.approach()
            with before_others() as scheduling:  # a trial, for whoever wonders about late frames
                pass
            ear.emit("ready", ports=bench.ports, cameras=list(bench.cameras), scheduling=scheduling,
                     recovered=dataset.recovery.to_json())  # fmt: skip
            return recorder.run()


if __name__ == "__main__":
    sys.exit(run_worker(main))
