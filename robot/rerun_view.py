"""The take in a Rerun viewer, by LeRobot's own functions, at most ten times a second and off the control loop's thread.

Optional: without the package rerun-sdk it says what to install. Not for a terminal's preview (zk0d/ctl).
"""

from __future__ import annotations

import importlib
import importlib.util
import socket
import threading
from typing import Any, Self

from zk0d.errors import ConfigError
from zk0d.viewer import place

EVERY_S = 0.1


class RerunView:
    """Context manager. `where`: "spawn", or "HOST:PORT" of a viewer on this machine. Raises ConfigError."""

    def __init__(self, where: str) -> None:
        if importlib.util.find_spec("rerun") is None:
            raise ConfigError(
                "rerun: the package rerun-sdk is not in the environment that runs the workers",
                "install it there: pip install 'lerobot[viz]'; the preview in the terminal needs nothing",
            )
        self._place = place(where)
        self._fresh: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rerun", daemon=True)

    def __enter__(self) -> Self:
        # On this thread and before the arm's drivers: two threads that import LeRobot at once may see half of it.
        from lerobot.utils.rerun_visualization import init_rerun

        _look_for(*self._place)
        init_rerun("zk0d", *self._place)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(5.0)

    def offer(self, joints: tuple[str, ...], state: Any, action: Any, images: dict[str, Any]) -> None:
        """The row of now; shown if there is time for it."""
        self._fresh = (
            {**dict(zip(joints, state.tolist(), strict=True)), **images},
            dict(zip(joints, action.tolist(), strict=True)),
        )

    def _run(self) -> None:
        from lerobot.utils.rerun_visualization import log_rerun_data, shutdown_rerun

        # The end waits for the viewer, and for ever if it has gone: this thread may, the recorder's own end may not.
        importlib.import_module("rerun").unregister_shutdown()
        while True:
            over = self._over.wait(EVERY_S)
            if self._fresh is not None:
                (observation, action), self._fresh = self._fresh, None
                log_rerun_data(observation, action, compress_images=True)
            if over:
                break
        shutdown_rerun()


def _look_for(host: str | None, port: int | None) -> None:
    """Raises ConfigError when nobody listens there; the SDK would say nothing and show nothing."""
    if host is None or port is None:
        return
    try:
        socket.create_connection((host, port), timeout=3.0).close()
    except OSError as error:
        raise ConfigError(
            f"rerun: no viewer answers at {host}:{port}: {error.strerror or error}",
            f"start one there first: rerun --bind 0.0.0.0 --port {port} (a recorder of the packages has no network)",
        ) from error
