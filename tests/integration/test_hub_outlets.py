"""Pushes to a server that stands in for the Hugging Face Hub, by the real client; WandB in its offline mode."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from zk0d.errors import ConfigError, UsageError, WorkerError
from zk0d.hub import tables
from zk0d.hub.config import HUB, Config, parse, parse_federation
from zk0d.hub.outlets import ATTEMPTS, Outlets
from zk0d.hub.store import Store
from zk0d.hub.wandb_log import values

OID = "a" * 40


class Service(ThreadingHTTPServer):
    """As much of the Hub's HTTP interface as a push uses; everything a client says is kept."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.said: list[tuple[str, str, bytes]] = []
        self.tokens: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.refuse = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else b"".join(self._chunks())
        self.server.said.append((self.command, self.path, body))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if self.server.refuse:
            self._answer(403, {"error": "no write token"})
        elif self.path == "/api/repos/create":
            self._answer(200, {"url": f"{self.server.url}/us/cubes", "id": "us/cubes"})
        elif "/preupload/" in self.path:
            names = [f["path"] for f in json.loads(body)["files"]]
            self._answer(200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(200, {"commitUrl": f"{self.server.url}/us/cubes/commit/{OID}", "commitOid": OID})
        else:
            self._answer(200, {})

    do_GET = do_POST

    def _chunks(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


class Case:
    """A hub's folder with a federation of three evaluated versions (the second is the best) and their folders."""

    def __init__(self, folder: Path, endpoint: str, publish: str) -> None:
        self.folder = folder
        self.store = Store(folder / "hub.db")
        text = f'[runtime]\npython = "{sys.executable}"\n[outlets]\nhf_endpoint = "{endpoint}"\n'
        configs: dict[str, Config] = {
            "fed": parse_federation(f'[model]\npolicy = "act"\n[publish]\n{publish}\n', "fed.toml")
        }
        with self.store.write() as db:
            db.execute("INSERT INTO federations (name, phase, config, draft_spec, base, exchange, created_at)"
                       " VALUES ('fed', 'open', '', '', '', '', 1.0)")  # fmt: skip
            for number, loss in enumerate((3.0, 1.0, 2.0)):
                db.execute(
                    "INSERT INTO versions (federation, number, digest, master, size, created_at, merge_s, updates,"
                    " samples, evaluation, loss) VALUES ('fed', ?, '', '', 1, 1.0, 0, 1, 1, 'done', ?)", (number, loss)
                )  # fmt: skip
                made = folder / "federations" / "fed" / "versions" / f"{number:04d}"
                (made / "vlm").mkdir(parents=True)
                (made / "README.md").write_text(f"---\nlicense: mit\n---\n# {number}")
                (made / "vlm" / "config.json").write_text("{}")
                (made / "model.safetensors").write_bytes(bytes([number]) * 5000)
                (made / ".hidden").write_text("not for anybody")
                (made / "link").symlink_to("/etc/passwd")
        (folder / "keys").mkdir()
        (folder / "keys" / "hf_token").write_text("hf_secret\n")
        (folder / "keys" / "hf_token").chmod(0o600)
        self.outlets = Outlets(folder, parse(text, HUB, "hub.toml"), self.store, configs)

    async def play(self, until: Callable[[], bool]) -> None:
        """Let the loop run until something holds."""
        self.outlets.start()
        async with asyncio.timeout(180):
            while not until():
                await asyncio.sleep(0.02)
        await self.outlets.close()

    def pushed(self) -> list[tuple[int, str]]:
        return [(r["version"], r["state"]) for r in self.store.all("SELECT * FROM pushes ORDER BY version")]


def test_the_best_version_is_pushed_and_is_what_the_dry_run_said(tmp_path: Path, service: Service) -> None:
    case = Case(tmp_path, service.url, 'repo = "us/cubes"\nkeep_last = 1')
    plan = asyncio.run(case.outlets.plan("fed", None))
    assert service.said == [] and plan["version"] == 1 and plan["private"] is True
    told = tables.push_plan(plan)
    assert "us/cubes (private), branch main, tag v0001: 3 files" in told and told.endswith("nothing was sent")
    asyncio.run(case.play(lambda: bool(case.pushed())))
    assert case.pushed() == [(1, "done")] and case.outlets.problems == {}
    assert service.tokens == {"Bearer hf_secret"}
    assert {n: hashlib.sha256(d).hexdigest() for n, d in service.files.items()} == {
        f["path"]: f["sha256"] for f in plan["files"]
    }
    assert set(service.files) == {"README.md", "model.safetensors", "vlm/config.json"}
    paths = [re.sub(r"\?.*", "", path) for _, path, _ in service.said]
    assert paths[0] == "/api/repos/create" and "/api/models/us/cubes/commit/main" in paths
    assert paths[-1].startswith("/api/models/us/cubes/tag/") and b"v0001" in service.said[-1][2]
    assert b"private" in service.said[0][2]
    assert b"hf_secret" not in (tmp_path / "work" / "push" / "job.json").read_bytes()
    assert case.outlets.due("fed") is None
    for version in (7, None):
        case.outlets._configs["fed"] = parse_federation('[model]\npolicy = "act"\n', "f") if version is None else (
            case.outlets._configs["fed"])  # fmt: skip
        with pytest.raises((UsageError, ConfigError), match=r"no such version|publish\.repo"):
            asyncio.run(case.outlets.plan("fed", version))
    case.store.close()


def test_a_refused_push_is_told_and_has_an_end(tmp_path: Path, service: Service) -> None:
    case = Case(tmp_path, service.url, 'repo = "us/cubes"\npush = "every"')
    assert case.outlets.due("fed") == 0
    service.refuse = True
    with pytest.raises(WorkerError, match="us/cubes does not take it: "):
        asyncio.run(case.outlets.push("fed", 0, "admin:me"))
    assert "version 0 is not pushed to us/cubes" in case.outlets.problems["fed"]
    assert case.pushed() == [(0, "failed")]
    acts = [(r["actor"], r["action"]) for r in case.store.all("SELECT * FROM audit")]
    assert acts == [("admin:me", "push.failed")]
    with case.store.write() as db:
        db.execute("UPDATE pushes SET attempts = ?", (ATTEMPTS,))
    assert case.outlets.due("fed") == 1, "one that is given up does not hold up the others"
    (tmp_path / "keys" / "hf_token").chmod(0o644)
    with pytest.raises(ConfigError, match="read by others"):
        asyncio.run(case.outlets.push("fed", 0, "admin:me"))
    case.store.close()


def test_of_every_version_none_is_pushed_below_one_that_is(tmp_path: Path, service: Service) -> None:
    """A restored hub has the newest folder first: an old version that followed would be what the repository shows."""
    case = Case(tmp_path, service.url, 'repo = "us/cubes"\npush = "every"')
    shutil.move(tmp_path / "federations/fed/versions/0000", tmp_path / "away")
    asyncio.run(case.outlets.push("fed", 1, "hub"))
    (tmp_path / "away").rename(tmp_path / "federations/fed/versions/0000")
    assert case.outlets.due("fed") == 2
    case.outlets._configs["fed"] = parse_federation(
        '[model]\npolicy = "act"\n[publish]\nrepo = "us/other"\npush = "every"\n', "fed.toml"
    )
    assert case.outlets.due("fed") == 0, "another repository has none yet"
    case.store.close()


def test_wandb_offline_has_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    case = Case(tmp_path, "", 'wandb_project = "cubes"\nwandb_mode = "offline"')
    line = {
        "version": 0, "heldout_loss": 2.5, "bytes_up": 10, "bytes_down": 20, "datasets": {"held": {"loss": 2.5}},
        "train_loss": {"node-1": {"first": 2.0, "last": 1.5}}, "norms": {"node-1": 0.5}, "staleness": {"node-1": 1},
        "weights": {"node-1": 1.0}, "seconds": {"merge": 0.1, "evaluation": None}, "samples": 40,
    }  # fmt: skip
    assert values(line)["nodes/node-1/loss"] == 1.5 and "seconds/evaluation" not in values(line)
    metrics = tmp_path / "federations" / "fed" / "metrics.jsonl"
    metrics.write_text(json.dumps(line) + "\n")
    state = tmp_path / "work" / "wandb" / "fed.json"
    asyncio.run(case.play(state.is_file))
    assert case.outlets.problems == {} and json.loads(state.read_text())["last"] == 0
    runs = list((tmp_path / "federations" / "fed" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 1
    raw = runs[0].read_bytes()
    assert b"heldout/loss" in raw and b"nodes/node-1/loss" in raw
    assert not list(tmp_path.rglob("wandb-metadata.json")), "nothing is told of this machine"
    assert len(socket.gethostname()) < 6 or socket.gethostname().encode() not in raw
    assert str(Path.home()).encode() not in raw or len(str(Path.home())) < 6
    case.store.close()
