"""`zk0ctl receipts`: what the hub has confirmed of this node's work, and whether the evidence for it holds.

Reads the state file itself where it may, so that it works with the daemon down and the hub gone.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import clock, plural, safe, show_json, size, table
from zk0d.errors import UnknownStateError


def _load(context: Context) -> dict[str, Any]:
    """{key, hub, entries, heads, log, conflict}, from the state file or, where that is not ours to read, the daemon."""
    from zk0d.daemon.ops import receipts_document
    from zk0d.daemon.store import Store

    try:
        store = Store.read(Path(context.state) / "zk0d.db")
    except UnknownStateError:
        return dict(context.call("receipts"))
    with contextlib.closing(store):
        return receipts_document(store)


def _row(entry: dict[str, Any]) -> list[str]:
    value = json.loads(bytes.fromhex(entry["receipt"]))
    claimed, verified = value.get("claimed", {}), value.get("verified", {})
    merged = value.get("new_version")
    weight = value.get("weight")
    said = f"{claimed.get('samples', value.get('samples'))} samples"
    measured = size(verified["bytes"]) if isinstance(verified.get("bytes"), int) else "-"
    if isinstance(verified.get("norm"), int | float):
        measured += f", norm {verified['norm']:.4g}"
    return [
        clock(entry["stored_at"]), safe(value.get("federation")), str(value.get("base_version")),
        "admitted" if merged is None else f"merged into {merged}",
        "-" if not isinstance(weight, int | float) else f"{weight:.3f}", safe(said), measured,
        "-" if entry["position"] is None else str(entry["position"]),
    ]  # fmt: skip


def _list(context: Context, args: Args) -> int:
    found = _load(context)
    if args.json:
        show_json([
            {**json.loads(bytes.fromhex(e["receipt"])), "stored_at": e["stored_at"], "log_entry": e["position"]}
            for e in found["entries"]
        ])  # fmt: skip
        return 0
    if not found["entries"]:
        print("the hub has confirmed nothing of this node yet")
        return 0
    head = ["STORED", "FEDERATION", "BASE", "STATE", "WEIGHT", "CLAIMED", "VERIFIED", "LOG ENTRY"]
    print(table(head, [_row(e) for e in found["entries"]]))
    return 0


def _verify(context: Context, args: Args) -> int:
    from zk0d.daemon.evidence import verify
    from zk0d.daemon.receipt_tables import Entry, Head, split_hashes

    found = _load(context)
    if not found["key"]:
        print("this node is not enrolled at a hub: there is nothing to verify")
        return 0
    entries = [
        Entry(e["leaf"], e["update"], bytes.fromhex(e["receipt"]), bytes.fromhex(e["signature"]), e["stored_at"],
              e["position"], e["size"], split_hashes(bytes.fromhex(e["path"])))
        for e in found["entries"]
    ]  # fmt: skip
    heads = [
        Head(h["size"], bytes.fromhex(h["head"]), bytes.fromhex(h["signature"]),
             split_hashes(bytes.fromhex(h["consistency"])), h["stored_at"])
        for h in found["heads"]
    ]  # fmt: skip
    verdicts, problems = verify(found["key"].encode(), entries, heads)
    bad = [v for v in verdicts if v.problem]
    problems += [f"receipt of {v.entry.update}: {v.problem}" for v in bad]
    if found["log"].get("state") == "refused":
        problems.append(f"the hub's last word on its log was refused: {found['log']['text']}")
    logged = sum(v.logged for v in verdicts)
    result = {
        "receipts": len(verdicts),
        "signatures_good": len(verdicts) - len(bad),
        "in_log": logged,
        "log_entries": heads[-1].size if heads else 0,
        "problems": problems,
        "conflict": found["conflict"],
    }
    if args.json:
        show_json(result)
    else:
        print(_sentence(result, found["log"]))
        for problem in problems:
            print(f"problem: {safe(problem)}")
    return 1 if problems else 0


def _sentence(result: dict[str, Any], log: dict[str, Any]) -> str:
    count = result["receipts"]
    text = f"{plural(count, 'receipt')}: {result['signatures_good']} good signatures of the hub"
    if result["log_entries"]:
        text += f", {result['in_log']} proved to be in its log of {result['log_entries']} entries"
    elif log.get("state") == "absent":
        text += f"; {safe(log['text'])}"
    return text


COMMAND = Command(
    "receipts",
    "what the hub has confirmed of this node's work",
    default="list",
    subs=(
        Command("list", "all receipts, with claimed and verified work",
                (arg("--json", help="as JSON", action="store_true"),), _list),
        Command("verify", "check all signatures and the proofs of the hub's log again, without the hub",
                (arg("--json", help="as JSON", action="store_true"),), _verify),
    ),
)  # fmt: skip
