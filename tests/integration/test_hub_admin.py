"""The admin socket of a real hub: who may use it, and that every act done over it is in the audit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hub_cast import TOML, HubProcess, TestNode, make_parts, until

from zk0d.errors import RefusedError, UsageError, WorkerError
from zk0d.hub.admin import READS, Admin
from zk0d.hub.main import main
from zk0d.invitation import Invitation
from zk0d.link.enroll import enroll

PUBLISH = '[publish]\nrepo = "us/cubes"\npush = "never"\n'


def evaluated(hub: HubProcess) -> bool:
    return all(v["evaluation"] != "waiting" for v in hub.ask("versions", name="fed"))


async def a_hub_with_a_past(hub: HubProcess, folder: Path) -> TestNode:
    """A federation with two versions, a node in it, and two strangers who apply."""
    spec = make_parts(folder / "parts", 1000)
    toml = TOML.format(nodes=1, versions=0, dtype="bfloat16", deadline_s=600)
    toml += PUBLISH
    await asyncio.to_thread(hub.ask, "federation_create", name="fed", toml=toml, parts=str(folder / "parts"))
    node = TestNode(folder, "a")
    await node.enrol(hub)
    await node.connect()
    await node.join("fed")
    task = await node.task("fed", 0)
    await node.give(node.prepare(spec, task, node.delta(spec, task)), lambda r: r["new_version"] == 1)
    await asyncio.to_thread(hub.ask, "federation_create", name="held", toml=toml, parts=str(folder / "parts"))
    await node.join("held")
    task = await node.task("held", 0)
    await asyncio.to_thread(hub.ask, "federation_freeze", name="held")
    await node.give(node.prepare(spec, task, node.delta(spec, {"version": 1})))
    for name in ("stranger", "other"):
        csr = TestNode(folder, name).identity.csr()
        await enroll(node.invitation.host, node.invitation.port, {"csr": csr, "label": name}, node.invitation.ca)
    await node.close()

    def evaluated() -> bool:
        return all(v["evaluation"] == "failed" for name in ("fed", "held") for v in hub.ask("versions", name=name))

    await until(evaluated, "the hub has given up both evaluations, and says no more of them")
    with sqlite3.connect(hub.folder / "hub.db", timeout=30) as db:  # as if it had been evaluated
        db.execute("UPDATE versions SET evaluation = 'done', loss = 1.0 WHERE number = 1")
    db.close()
    published = hub.folder / "federations" / "fed" / "versions" / "0001"
    published.mkdir(parents=True)
    (published / "config.json").write_text("{}")
    kept = hub.folder / "quarantine"
    kept.mkdir(exist_ok=True)
    record = {"update": "sha256:" + "ab" * 32, "node": "n", "federation": "fed", "payload": "p", "reason": "r"}
    (kept / f"{'ab' * 32}.json").write_text(json.dumps(record))
    return node


def test_every_act_is_in_the_audit(hub: HubProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(a_hub_with_a_past(hub, tmp_path))
    toml = TOML.format(nodes=1, versions=0, dtype="bfloat16", deadline_s=600)
    acts: dict[str, tuple[str, dict[str, Any]]] = {
        "invite": ("invite", {"label": "nobody yet"}),
        "invitation_cancel": ("invitation.cancel", {"invitation": "nobody yet"}),
        "approve": ("approve", {"node": "stranger"}),
        "refuse": ("refused", {"node": "other"}),
        "reenrol": ("reenrol", {"node": "a"}),
        "revoke": ("revoked", {"node": "stranger"}),
        "federation_create": ("federation.create", {"name": "two", "toml": toml, "parts": str(tmp_path / "parts")}),
        "federation_remove": ("federation.remove", {"name": "two"}),
        "federation_freeze": ("federation.freeze", {"name": "fed"}),
        "federation_thaw": ("federation.thaw", {"name": "fed"}),
        "federation_drain": ("federation.drain", {"name": "fed"}),
        "federation_drop": ("update.refused", {"name": "held", "which": "a"}),
        "federation_rollback": ("federation.rollback", {"name": "fed", "version": 0}),
        "evaluate": ("evaluation.again", {"name": "fed", "version": 0}),
        "push": ("push.failed", {"name": "fed"}),  # this hub's workers cannot run
        "federation_set": ("federation.settings", {"name": "fed", "toml": toml.replace("600", "700") + PUBLISH}),
        "federation_finish": ("federation.finish", {"name": "fed"}),
        "quarantine_drop": ("quarantine.drop", {"update": "abab"}),
    }
    operations = set(Admin(object())._operations)  # type: ignore[arg-type]
    assert operations - READS == set(acts), "an operation that changes something needs its act here"
    user = hub.ask("audit")[-1]["actor"]
    for op, (action, fields) in acts.items():
        before = len(hub.ask("audit", count=1000))
        with contextlib.suppress(WorkerError):
            hub.ask(op, **fields)
        new = hub.ask("audit", count=1000)[before:]
        assert [(a["actor"], a["action"]) for a in new] == [(user, action)], op
    asyncio.run(until(lambda: evaluated(hub), "what was evaluated again is given up again"))
    before = len(hub.ask("audit", count=1000, all=True))
    capsys.readouterr()
    assert main(["--dir", str(hub.folder), "push", "fed", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "us/cubes (private), branch main, tag v0001: 1 files, 2 B" in told and "\nconfig.json  2 " in told
    kept = {"update": "abab"}
    for op in READS - {"quarantine_show"}:
        hub.ask(op, name="fed", **kept)
    assert len(hub.ask("audit", count=1000, all=True)) == before


def test_invitations_are_listed_without_their_secrets(
    hub: HubProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*words: str) -> str:
        assert main(["--dir", str(hub.folder), *words]) == 0
        return capsys.readouterr().out

    capsys.readouterr()
    assert say("invitations", "list") == "no invitations\n"
    token = Invitation.parse(say("invite", "--label", "alice\x1b[31m, lab 2").strip())
    csr = TestNode(tmp_path, "a").identity.csr()
    reply = asyncio.run(enroll(token.host, token.port, {"csr": csr, "secret": token.secret}, token.ca))
    leaked = Invitation.parse(say("invite", "--label", "bob").strip())
    again = json.loads(say("nodes", "reenrol", reply["node_id"], "--json"))
    head, alice, bob, key = say("invitations", "list").splitlines()
    assert head.split()[:3] == ["INVITATION", "LABEL", "STATE"]
    assert "alice[31m, lab 2  used" in alice and reply["node_id"] in alice and "bob" in bob and "open" in bob
    assert key.startswith(again["invitation"]) and key.endswith(f"of {reply['node_id']}")
    assert say("invitations", "cancel", "bob").endswith(" bob: cancelled\n")
    shown = say("invitations", "list", "--json")
    assert [i["state"] for i in json.loads(shown)] == ["used", "cancelled", "open"]
    assert not any(secret in shown for secret in (token.secret, leaked.secret, Invitation.parse(again["token"]).secret))
    csr = TestNode(tmp_path, "b").identity.csr()
    with pytest.raises(RefusedError, match="the invitation was cancelled"):
        asyncio.run(enroll(leaked.host, leaked.port, {"csr": csr, "secret": leaked.secret}, leaked.ca))


def test_a_number_that_no_database_holds_is_refused(hub: HubProcess, tmp_path: Path) -> None:
    make_parts(tmp_path / "parts", 1000)
    hub.create("fed", tmp_path / "parts", nodes=1)
    for op, fields in (("audit", {"count": 10**20}), ("federation_rollback", {"version": 10**20}),
                       ("push", {"version": 10**20}), ("audit", {"count": "many"})):  # fmt: skip
        with pytest.raises(UsageError, match="is not a whole number of at least"):
            hub.ask(op, name="fed", **fields)


def test_the_audit_prints_nothing_that_a_terminal_obeys(hub: HubProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever older hubs let in: nothing is ever taken out of an audit."""
    with sqlite3.connect(hub.folder / "hub.db", timeout=30) as db:
        db.execute("INSERT INTO audit (at, actor, action, subject, detail) VALUES (1, 'admin:me', 'invite', ?, ?)",
                   ("a\x1b[31m\nb", json.dumps({"reason": "c\x1b[2J"})))  # fmt: skip
    db.close()
    capsys.readouterr()
    assert main(["--dir", str(hub.folder), "audit", "--count", "1"]) == 0
    told = capsys.readouterr().out
    assert "a\\x1b[31m\\nb" in told and "reason=c\\x1b[2J" in told and "\x1b" not in told


def test_the_socket_is_its_users_alone(hub: HubProcess) -> None:
    path = hub.folder / "admin.sock"
    assert path.stat().st_mode & 0o777 == 0o600 and hub.folder.stat().st_mode & 0o777 == 0o700
    assert (hub.folder / "run").stat().st_mode & 0o777 == 0o700
    if os.geteuid() != 0:
        pytest.skip("another user can be tried by root only")
    hub.folder.chmod(0o755)  # even where somebody opened the folder
    pid = os.fork()
    if pid == 0:  # as another user; nothing of pytest may run here
        status = 1
        try:
            os.chdir(hub.folder)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path.name)
        except PermissionError:
            status = 42
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
