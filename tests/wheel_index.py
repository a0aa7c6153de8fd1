"""A small index of stand-in wheels over loopback, for the managed environment: cuts lines, spoils files, counts bytes.

The wheels are tiny but real; the installer among them is this checkout's own uv. The index speaks PEP 691 (JSON).
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zk0d.ctl.runtime_lists import Lists

TORCH = """
__version__ = "{version}"
class version: cuda = None
class cuda:
    is_available = staticmethod(lambda: False)
class ones:
    def __init__(self, *size): pass
    def __matmul__(self, other): return self
    def sum(self): return self
    def item(self): return 1.0
"""
LEROBOT = {f"lerobot/{name}.py": "" for name in
           ("policies/__init__", "policies/factory", "datasets/__init__", "datasets/lerobot_dataset",
            "robots/__init__", "robots/so_follower")}  # fmt: skip


def wheel(folder: Path, name: str, version: str, files: dict[str, bytes | str], requires: str = "") -> Path:
    """Write a pure wheel (PEP 427) → its file."""
    info = f"{name}-{version}.dist-info"
    need = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{need}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    out = folder / f"{name}-{version}-py3-none-any.whl"
    rows = []
    with zipfile.ZipFile(out, "w") as archive:
        for path, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (0o100755 if "/scripts/" in path else 0o100644) << 16
            archive.writestr(entry, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{path},sha256={digest},{len(data)}\n")
        archive.writestr(f"{info}/RECORD", "".join(rows) + f"{info}/RECORD,,\n")
    return out


class WheelIndex:
    """Serves `folder`/*.whl while the context lasts.

    `cut`: file → bytes after which each transfer of it is cut; `held`: the same, but it goes on when `go` is set;
    `spoilt`: files of which another byte is sent; `refused`: file → status; `sizes`: what the index says of a file.
    `sent`: bytes of each file that left.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.cut: dict[str, int] = {}
        self.held: dict[str, int] = {}
        self.go = threading.Event()
        self.sizes: dict[str, int] = {}
        self.spoilt: set[str] = set()
        self.refused: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="wheel-index")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/simple/"

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.whl"))

    def lists(self, where: Path, *names: str) -> Lists:
        """Locks of these wheels (all but uv when none is named), and of the installer."""
        where.mkdir(exist_ok=True)
        lines = {f.name.split("-")[0]: _locked(f) for f in self.files()}
        (where / "bootstrap.txt").write_text(lines["uv"])
        (where / "runtime.txt").write_text(
            "".join(v for k, v in lines.items() if k in names or (not names and k != "uv"))
        )
        return Lists(where / "bootstrap.txt", where / "runtime.txt")

    def _handler(index) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = self.path.strip("/").split("/")
                if parts[0] == "simple":
                    self._simple(parts[1])
                else:
                    self._file(parts[-1])

            do_HEAD = do_GET

            def _simple(self, project: str) -> None:
                found: list[dict[str, Any]] = [
                    {"filename": f.name, "url": f"/files/{f.name}", "size": index.sizes.get(f.name, f.stat().st_size),
                     "hashes": {"sha256": hashlib.sha256(f.read_bytes()).hexdigest()}}
                    for f in index.files() if f.name.split("-")[0].replace("_", "-") == project
                ]  # fmt: skip
                body = json.dumps(
                    {"meta": {"api-version": "1.1"}, "name": project, "files": found, "versions": []}
                ).encode()
                self._reply(200 if found else 404, body, {"Content-Type": "application/vnd.pypi.simple.v1+json"})

            def _file(self, name: str) -> None:
                if name in index.refused:
                    self._reply(index.refused[name], b"", {})
                    return
                data = bytearray((index.folder / name).read_bytes())
                if name in index.spoilt:
                    data[-1] ^= 1
                begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0] or 0)
                headers = (
                    {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"} if "Range" in self.headers else {}
                )
                body = bytes(data[begin:])
                limit = index.cut.get(name, len(body))
                first = index.held.get(name, limit)
                try:
                    self._reply(206 if headers else 200, body[:first], headers, len(body))
                    if first < limit:
                        index.go.wait(120)
                        self.wfile.write(body[first:limit])
                except OSError:  # the other end was killed
                    self.close_connection = True
                index.sent[name] = index.sent.get(name, 0) + min(limit, len(body))
                if limit < len(body):
                    self.wfile.flush()
                    self.close_connection = True

            def _reply(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body) if length is None else length)}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _locked(file: Path) -> str:
    name, version = file.name.split("-")[:2]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return f"{name}=={version} \\\n    --hash=sha256:{digest}\n"


def installer(folder: Path) -> Path:
    """A wheel whose uv is this checkout's."""
    script = f'#!/bin/sh\nexec {Path(sys.executable).parent}/uv "$@"\n'
    return wheel(folder, "uv", "9.9.9", {"uv-9.9.9.data/scripts/uv": script})


def publish(folder: Path, version: str, size: int = 3_000_000) -> None:
    """torch and lerobot of this version; torch has `size` bytes that do not compress."""
    for old in folder.glob("*.whl"):
        if not old.name.startswith("uv-"):
            old.unlink()
    wheel(folder, "torch", version, {"torch/__init__.py": TORCH.format(version=version),
                                     "torch/lib.bin": hashlib.shake_256(version.encode()).digest(size)}, "triton")  # fmt: skip
    wheel(folder, "lerobot", version, {"lerobot/__init__.py": f'__version__ = "{version}"\n', **LEROBOT})
