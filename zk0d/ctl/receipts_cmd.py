"""`zk0ctl receipts`: what the hub has confirmed of this node's work, and whether the evidence for it holds.

Reads the state file itself where it may, so that it works with the daemon down and the hub gone.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import plural, safe, show_json, size, table
from zk0d.errors import ProtocolError, UnknownStateError, UsageError
from zk0d.moments import clock


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
    if found["entries"]:
        head = ["STORED", "FEDERATION", "BASE", "STATE", "WEIGHT", "CLAIMED", "VERIFIED", "LOG ENTRY"]
        print(table(head, [_row(e) for e in found["entries"]]))
    else:
        print("the hub has confirmed nothing of this node yet")
    for no in found.get("refusals", []):
        value = json.loads(bytes.fromhex(no["refusal"]))
        print(f"refused {clock(no['stored_at'])}, federation {safe(value.get('federation'))}: {safe(value['reason'])}")
    return 0


def _verify(context: Context, args: Args) -> int:
    from zk0d.daemon.evidence import check_refusal, verify
    from zk0d.daemon.receipt_tables import Entry, Head, split_hashes

    found = _load(context)
    if not found["key"]:
        print("this node is not enrolled at a hub: there is nothing to verify")
        return 0
    entries = [
        Entry(e["leaf"], e["update"], bytes.fromhex(e["receipt"]), bytes.fromhex(e["signature"]), e["stored_at"],
              e["position"], e["size"], split_hashes(bytes.fromhex(e["path"])), e.get("set_aside"))
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
    for no in found.get("refusals", []):
        try:
            check_refusal(
                found["key"].encode(), bytes.fromhex(no["refusal"]), bytes.fromhex(no["signature"]), no["update"]
            )
        except ProtocolError as error:
            problems.append(f"refusal of {no['update']}: {error.message}")
    if found["log"].get("state") == "refused":
        problems.append(f"the hub's last word on its log was refused: {found['log']['text']}")
    logged = sum(v.logged for v in verdicts)
    result = {
        "receipts": len(verdicts),
        "signatures_good": len(verdicts) - len(bad),
        "in_log": logged,
        "lost_by_log": sum(v.entry.set_aside is not None for v in verdicts),
        "refusals": len(found.get("refusals", [])),
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
        if result["lost_by_log"]:
            text += f"; {result['lost_by_log']} that the log has lost and the operator accepted so"
    elif log.get("state") == "absent":
        text += f"; {safe(log['text'])}"
    return text


_WARNING = """The hub shows a receipt log that does not continue the one it has signed before.
That is what a hub restored from an older backup does, and what a hub that rewrites its history does.
Ask the maintainer, by another way than the hub, whether it was restored. Accepting means:
  - this node believes the hub's log from its present head on;
  - receipts which that log has lost stay here, good by their signatures alone;
  - versions that the hub has lost, or may have made anew since, are forgotten here: `zk0ctl model export` keeps one;
  - the former heads and the contradiction stay in the state file as evidence."""


def _accept(context: Context, args: Args) -> int:
    if not args.yes:
        if _load(context)["log"].get("state") != "refused":
            raise UsageError("the hub's log is believed: there is nothing to accept", "zk0ctl receipts verify")
        print(_WARNING)
        raise UsageError("nothing was changed", "zk0ctl receipts accept-head --yes")
    done = context.call("receipts_accept_head")
    if "accepted" in done:
        print(f"accepted: a log of {done['accepted']} entries in place of {done['kept']}")
    if done.get("versions"):
        print(f"{plural(done['versions'], 'version')} that the hub has lost, or may have made anew, forgotten here too")
    return 0


COMMAND = Command(
    "receipts",
    "what the hub has confirmed of this node's work",
    default="list",
    subs=(
        Command("list", "all receipts, with claimed and verified work",
                (arg("--json", help="as JSON", action="store_true"),), _list),
        Command("verify", "check all signatures and the proofs of the hub's log again, without the hub",
                (arg("--json", help="as JSON", action="store_true"),), _verify),
        Command("accept-head", "believe a restored hub's log again, though it is shorter than what was signed before",
                (arg("--yes", help="accept: the maintainer has confirmed it", action="store_true"),), _accept),
    ),
)  # fmt: skip
