"""A booted Debian system for tests: start it, run commands in it as any user, put files in, end it.

It is a throw-away overlay over the image that image.sh makes, under its own systemd (boot.sh). Not for production use.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent
BOOT_S = 60.0
"""How long a system may take to boot (it takes half a second on an idle machine)."""


def why_not() -> str:
    """Why no system can be booted here; empty when it can."""
    if os.geteuid() != 0:
        return "booting a system needs root"
    if shutil.which("unshare") is None:
        return "unshare (util-linux) is not installed"
    probe = ["unshare", "--mount", "--cgroup", "--pid", "--fork", "--kill-child", "--mount-proc", "true"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"new namespaces are not permitted here: {tried.stderr.strip()}" if tried.returncode else ""


def image(which: str = "ready") -> Path:
    """The system image, made when there is none ("bare" has not even Python). Raises RuntimeError with the script's own words when it cannot be made."""
    made = subprocess.run([HERE / "image.sh", which], capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(made.stderr.strip())
    if shutil.which("systemd-nspawn") is None:
        raise RuntimeError("systemd-nspawn is not installed: apt-get install systemd-container")
    return Path(made.stdout.strip())


class Container:
    """One booted system. `run` runs a command in it; `close` (or leaving `with`) ends everything inside."""

    def __init__(self, base: Path, shown: dict[Path, str] | None = None) -> None:
        """`shown`: folders of this machine that the system sees, read-only, and where."""
        flags = [f"--bind-ro={source}:{target}" for source, target in (shown or {}).items()]
        self._scratch = Path(tempfile.mkdtemp(prefix="zk0-booted-"))
        self._name = f"zk0-booted-{os.getpid()}-{time.monotonic_ns() % 10**9}"
        self._console = (self._scratch.parent / f"{self._scratch.name}.console").open("w+b")
        self._process = subprocess.Popen(
            [HERE / "boot.sh", base, self._scratch, self._name, *flags],
            stdin=subprocess.DEVNULL, stdout=self._console, stderr=self._console,
        )  # fmt: skip
        try:
            self._leader = self.until(self._find_leader, BOOT_S, "the system's first process")
            self.until(self._booted, BOOT_S, "the system to be up")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Container:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the system; nothing of it is left. May be called twice."""
        if self._process.poll() is None:
            self._process.kill()  # unshare --kill-child: its namespaces' first process goes too, and everything in them
            self._process.wait()
            self.until(self._cleaned, 10, "the control groups to be empty")
        self._console.close()
        Path(self._console.name).unlink(missing_ok=True)
        if self._scratch.is_dir():
            self._scratch.rmdir()  # empty: what was in it lived in the system's own mount namespace

    def reboot(self) -> None:
        """Shut the system down in order and boot it again, with what is on its disk."""
        before = self._leader
        self.run("systemctl", "--no-block", "reboot")
        self._leader = self.until(
            lambda: (found := self._find_leader()) != before and found, BOOT_S, "a new first process"
        )
        self.until(self._booted, BOOT_S, "the system to be up again")

    def _cleaned(self) -> bool:
        """Take away the control groups; they are busy while the kernel is still ending the processes in them."""
        return (
            subprocess.run([HERE / "boot.sh", "--clean", self._name], capture_output=True, check=False).returncode == 0
        )

    @property
    def console(self) -> str:
        """What the system printed while booting."""
        return Path(self._console.name).read_text(errors="replace")

    def _find_leader(self) -> int | None:
        """The pid, out here, of the process that is number 1 in there, once it is systemd itself."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the system did not boot: {self.console.strip()[-2000:]}")
        todo = [self._process.pid]
        while todo:
            pid = todo.pop()
            try:
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                numbers = next(
                    line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:")
                ).split()
            except (OSError, StopIteration):
                continue
            if name == "systemd" and len(numbers) > 3 and numbers[-1] == "1":
                return pid
            todo += map(int, children.split())
        return None

    def _booted(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    @staticmethod
    def until[T](probe: Callable[[], T | None], seconds: float, what: str | Callable[[], str]) -> T:
        """Call `probe` until it gives something true; fail after `seconds`, saying what was waited for (asked then)."""
        end = time.monotonic() + seconds
        while not (found := probe()):
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:.0f} s for {what if isinstance(what, str) else what()}")
            time.sleep(0.05)
        return found

    def run(
        self, *command: str, user: str = "root", check: bool = True, input: str | None = None, timeout: float = 90.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the system as `user`, with that user's groups. `check`: fail, with all output, unless it exits 0."""
        enter = [
            "nsenter",
            f"--target={self._leader}",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
            "--root",
            "--wd",
        ]
        plain = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "TERM=dumb", "DEBIAN_FRONTEND=noninteractive",
                 f"HOME={'/root' if user == 'root' else '/'}"]  # fmt: skip
        become = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
        done = subprocess.run(
            [*enter, *plain, *become, *command], input=input, capture_output=True, text=True, check=False, timeout=timeout,
            stdin=subprocess.DEVNULL if input is None else None,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(command)} (as {user}): exit {done.returncode}\n{done.stdout}{done.stderr}".strip()
            )
        return done

    def sh(self, script: str, user: str = "root", check: bool = True, timeout: float = 90.0) -> str:
        """Run a shell script in the system and return what it printed, both streams."""
        return self.run("bash", "-c", f"exec 2>&1\n{script}", user=user, check=check, timeout=timeout).stdout

    def put(self, source: Path, target: str) -> None:
        """Copy a file into the system."""
        enter = ["nsenter", f"--target={self._leader}", "--mount", "--root"]
        with source.open("rb") as file:
            subprocess.run([*enter, "/bin/sh", "-c", 'cat >"$1"', "put", target], stdin=file, check=True)
