"""Video of one camera during one take: encoded while recording, and decoded again before it counts.

A bounded queue that blocks: a frame is never dropped, so frame k of the video is row k of the episode.
Not for reading datasets (LeRobot's decoders do) nor for the video of a rollout's report (film.py).
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from robot.stats import ImageStats, sample_indices
from zk0d.durable import Unbuffered
from zk0d.errors import DatasetError

# CPU and size of a frame at 640x480, GOP 2 (random access), measured on two cores: x264 veryfast crf 22 4.5 ms
# and 11 KiB, ultrafast crf 23 2.5 ms and 16 KiB, LeRobot's SVT-AV1 preset 12 9-12 ms and 5 KiB; PSNR within 1 dB.
# The operator's machine is theirs: CPU counts more than disk, and every browser plays H.264.
CODEC = "libx264"
CODEC_NAME = "h264"
GOP = 2
CRF = 22
PRESET = "veryfast"
PIXELS = "yuv420p"
QUEUE_FRAMES = 60
IN_PIECES = "frag_every_frame+empty_moov+default_base_moof"
AT_ONCE = {"x264-params": "rc-lookahead=0:mbtree=0:sync-lookahead=0:force-cfr=1"}
"""No frame waits in the encoder for later ones, so that a kill costs none; with a key frame every second one, looking
ahead is worth little."""

av.logging.set_libav_level(av.logging.ERROR)  # x264 tells twenty lines about every video

Frame = NDArray[np.uint8]


def video_info(height: int, width: int, fps: int) -> dict[str, Any]:
    """What LeRobot's get_video_info says of these videos: the `info` of a video feature in meta/info.json."""
    return {
        "is_depth_map": False,
        "video.height": height,
        "video.width": width,
        "video.codec": CODEC_NAME,
        "video.pix_fmt": PIXELS,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
        "video.g": GOP,
        "video.crf": CRF,
        "video.preset": PRESET,
        "video.fast_decode": 0,
        "video.video_backend": "pyav",
        "video.extra_options": {},
    }


class CameraEncoder:
    """One camera's encoder thread for one take. `put` from the control loop, then `close` or `abort`."""

    def __init__(self, path: Path, height: int, width: int, fps: int, gop: int = GOP) -> None:
        self.path = path
        self._gop = gop
        self.size = (height, width)
        self.fps = fps
        self.frames = 0
        self.whole = 0
        """Frames that are in the file; final when the thread has ended."""
        self.blocked_s = 0.0
        self._queue: queue.Queue[Frame | None] = queue.Queue(QUEUE_FRAMES)
        self._error: Exception | None = None
        self._aborted = threading.Event()
        self._told_end = False
        self._thread = threading.Thread(target=self._run, name=f"encode-{path.stem}", daemon=True)
        self._thread.start()

    def put(self, frame: Frame) -> None:
        """Queue one RGB frame, shape (height, width, 3) uint8. Blocks when the encoder is behind; the wait is counted.

        Raises DatasetError when the frame has another size or the encoder has failed (for example: disk full).
        """
        if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
            raise DatasetError(
                f"camera {self.path.stem} gave a frame of {frame.shape} {frame.dtype}, not {(*self.size, 3)} uint8",
                "set height and width of the camera to what it gives",
            )
        self._raise_failure()
        own = frame.copy()  # drivers reuse their buffers
        try:
            self._queue.put_nowait(own)
        except queue.Full:
            since = time.perf_counter()
            self._queue.put(own)  # the thread drains its queue even after a failure, so this ends
            self.blocked_s += time.perf_counter() - since
        self.frames += 1

    def close(self) -> None:
        """Encode what is queued and finish the file. Raises DatasetError if encoding failed anywhere."""
        self._queue.put(None)
        self._thread.join()
        self._raise_failure()

    def abort(self) -> None:
        """Stop without finishing the file; the caller removes it."""
        self._aborted.set()
        self._queue.put(None)
        self._thread.join()

    def _raise_failure(self) -> None:
        if self._error is not None:
            raise DatasetError(
                f"the video of camera {self.path.stem} could not be written: {self._error}",
                "see whether the disk is full; saved episodes are whole",
            ) from self._error

    def _run(self) -> None:
        try:
            self._encode()
        except Exception as error:
            self._error = error
            while not self._told_end and self._queue.get() is not None:
                pass

    def _next(self) -> Frame | None:
        frame = self._queue.get()
        self._told_end = frame is None
        return frame

    def _encode(self) -> None:
        options = {"g": str(self._gop), "crf": str(CRF), "preset": PRESET, "bf": "0", "threads": "1", **AT_ONCE}
        live, whole, number = live_path(self.path), 0, 0
        # Our own file: PyAV leaves its own open when the end of it cannot be written (disk full).
        with Unbuffered(live, "w") as file:
            container = av.open(file, "w", format="mp4", options={"movflags": IN_PIECES, "flush_packets": "1"})
            try:
                stream = container.add_stream(CODEC, self.fps, options=options)
                stream.height, stream.width = self.size
                stream.pix_fmt = PIXELS
                stream.time_base = Fraction(1, self.fps)
                while (frame := self._next()) is not None:
                    if self._aborted.is_set():
                        continue
                    picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                    picture.pts = number
                    picture.time_base = Fraction(1, self.fps)
                    number += 1
                    if pieces := stream.encode(picture):
                        container.mux(pieces)
                        whole = file.tell()
                        self.whole += len(pieces)
                container.mux(stream.encode())
                container.close()
            except BaseException:
                with contextlib.suppress(av.FFmpegError, OSError):
                    container.close()
                with contextlib.suppress(OSError):
                    os.truncate(live, whole)  # what was written after the disk was full would look like a frame
                raise
        if not self._aborted.is_set():
            rewrite(live, self.path, self.fps, number)


def live_path(path: Path) -> Path:
    """Where the video `path` lies while it is written: in pieces of one frame, readable up to the last of them."""
    return path.with_suffix(f".live{path.suffix}")


def packets(path: Path) -> int:
    """Frames of a video that may have been cut off, by counting its packets; 0 when it has not even a header."""
    count = 0
    try:
        with av.open(str(path)) as container:
            for packet in container.demux(video=0):
                if packet.dts is None or packet.is_corrupt:
                    break
                count += 1
    except (av.FFmpegError, IndexError, FileNotFoundError):
        pass  # the piece that was being written
    return count


def rewrite(source: Path, target: Path, fps: int, frames: int) -> None:
    """The first `frames` frames of `source` as one plain MP4 with its index in front, nothing encoded again."""
    with (
        av.open(str(source)) as old,
        Unbuffered(target, "w+") as file,
        av.open(file, "w", format="mp4", options={"movflags": "faststart"}) as new,
    ):
        stream = old.streams.video[0]
        copied = new.add_stream_from_template(stream)
        copied.time_base = Fraction(1, fps)
        for number, packet in enumerate(old.demux(stream)):
            if packet.dts is None or number == frames:
                break
            packet.stream = copied
            new.mux(packet)


def verify(path: Path, frames: int, height: int, width: int, fps: int) -> ImageStats:
    """Decode the whole file and look: as many frames as rows, at the times of the rows. Gives its image statistics.

    Raises DatasetError that says what differs. One thread, so that the control loop of the next take keeps its core.
    """
    wanted = set(sample_indices(frames).tolist())
    stats = ImageStats()
    count = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for picture in container.decode(stream):
                at = float(picture.pts * picture.time_base)
                if abs(at - count / fps) > 1e-4 or (picture.height, picture.width) != (height, width):
                    raise DatasetError(
                        f"{path.name}: frame {count} is {picture.width}x{picture.height} at {at:.4f} s, "
                        f"not {width}x{height} at {count / fps:.4f} s"
                    )
                if count in wanted:
                    stats.add(picture.to_ndarray(format="rgb24"))
                count += 1
    except (av.FFmpegError, IndexError) as error:
        raise DatasetError(f"{path.name} cannot be decoded: {error}", "the take is not kept") from error
    if count != frames:
        raise DatasetError(f"{path.name} has {count} frames for {frames} rows", "the take is not kept")
    return stats
