"""What the zk0-hub command prints for people: plain text, no colour, fit for a pipe. Not for `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zk0d.hub.rounds import counted, duration


def table(head: Sequence[str], rows: Sequence[Sequence[str]], nothing: str) -> str:
    """Columns aligned to the left, two spaces between; `nothing` where there are no rows."""
    if not rows:
        return nothing
    shown = [[_plain(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in shown]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """What a terminal would obey, or a line's end, is shown instead: the audit keeps what older hubs let in."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(count: float | None) -> str:
    """Bytes for people; a dash where they are not known."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def status(v: dict[str, Any]) -> str:
    n = v["nodes"]
    waiting = f", {n['pending']} wait for approval" if n["pending"] else ""
    lines = [
        f"{v['hub']}: {v['state']} since {v['since']}; {n['linked']} of {n['approved']} nodes linked{waiting}",
        f"listens on {v['listen']} (port {v['port']}), authority {v['ca_fingerprint']}",
    ]
    lines += [f"federation {f['name']}: {f['headline']}{_loss(f)}" for f in v["federations"]]
    lines += [_transfer(t) for t in v["transfers"]]
    if v["evaluating"]:
        lines.append(f"evaluating {v['evaluating']}")
    lines += [f"problem: {text}" for text in v["health"]]
    return "\n".join(lines)


def _transfer(t: dict[str, Any]) -> str:
    way = "from" if t["direction"] == "down" else "to"
    share = f" ({100 * t['done'] // t['size']}%)" if t["size"] else ""
    left = "" if t["remaining_s"] is None else f", {duration(t['remaining_s'])} left"
    done = f"{size(t['done'])} of {size(t['size'])}{share}, {size(t['rate'])}/s{left}"
    return f"transfer {way} {t['node']}, {t['digest'].partition(':')[2][:8]}: {done}"


def _loss(f: dict[str, Any]) -> str:
    return "" if f["heldout_loss"] is None else f", held-out loss {f['heldout_loss']:.4g}"


def nodes(v: list[dict[str, Any]]) -> str:
    rows = [
        (n["node"], n["label"], "linked" if n["linked"] else n["state"], n["last_seen"] or "-",
         n["certificate_until"][:10] or "-", n["phrase"]) for n in v
    ]  # fmt: skip
    return table(("NODE", "LABEL", "STATE", "LAST SEEN", "CERTIFICATE UNTIL", "PHRASE"), rows, "no nodes")


def invitations(v: list[dict[str, Any]]) -> str:
    rows = [
        (i["invitation"], i["label"], i["state"], i["made_at"], i["expires_at"], i["used_by"] or "-",
         f"of {i['replaces']}" if i["replaces"] else "-") for i in v
    ]  # fmt: skip
    return table(("INVITATION", "LABEL", "STATE", "MADE", "UNTIL", "USED BY", "NEW KEY"), rows, "no invitations")


def federations(v: list[dict[str, Any]]) -> str:
    rows = [(f["name"], f["phase"], str(f["members"]), f["headline"]) for f in v]
    return table(("FEDERATION", "PHASE", "NODES", "STATE"), rows, "no federations")


def federation(v: dict[str, Any]) -> str:
    lines = [f"{v['name']}: {v['headline']}"]
    if v["problem"]:
        lines.append(f"problem: {v['problem']}")
    if "policy" in v:
        lines += [
            f"policy {v['policy']}, {v['tensors']} tensors in {v['dtype']}, {size(v['payload_bytes'])} per update",
            f"spec {v['spec_digest'] or 'not fixed yet'}, base {v['base_digest']}",
            *_privacy(v["privacy"]),
            *([] if v["best_version"] is None else [f"best version {v['best_version']}"]),
            *(["new settings hold from the next version ([rounds] already)"] if v["settings_waiting"] else []),
            f"members: {', '.join(v['member_ids']) or 'none'}",
        ]
        lines += [
            f"update {b['update'][7:19]} from {b['node']} on version {b['base_version']}, {b['samples']} samples"
            for b in v["buffer"]
        ]
    return "\n".join(lines)


def _privacy(p: dict[str, Any] | None) -> list[str]:
    if p is None:
        return []
    told = p["problem"] or f"epsilon {p['epsilon']:.3f} at delta {p['delta']:g}"
    return [f"client-level differential privacy over {counted(p['versions'], 'version')}: {told}"]


def versions(v: list[dict[str, Any]]) -> str:
    rows = []
    for line in v:
        loss = line["heldout_loss"]
        told = {"waiting": "waits", "failed": "failed"}.get(line["evaluation"], "-") if loss is None else f"{loss:.4f}"
        rows.append(
            (str(line["version"]), str(line["updates"]), str(line["samples"]), told, size(line["bytes_up"]),
             size(line["bytes_down"]), line["created_at"], line["folder"])
        )  # fmt: skip
    return table(("VERSION", "UPDATES", "SAMPLES", "HELD-OUT", "UP", "DOWN", "MADE", "FOLDER"), rows, "no versions yet")


def lost(v: list[dict[str, Any]]) -> str:
    return "\n".join(f"  {one['federation']}: {one['what']} ({one['digest']})" for one in v)


def audit(v: list[dict[str, Any]]) -> str:
    rows = [
        (a["at"], a["actor"], a["action"], a["subject"], ", ".join(f"{k}={w}" for k, w in a["detail"].items()))
        for a in v
    ]
    return table(("AT", "WHO", "WHAT", "SUBJECT", "DETAIL"), rows, "nothing yet")


def quarantine(v: list[dict[str, Any]]) -> str:
    rows = [(q["update"][7:19], q["at"], q["node"], q["federation"], size(q["bytes"]), q["reason"]) for q in v]
    return table(("UPDATE", "AT", "NODE", "FEDERATION", "BYTES", "REASON"), rows, "nothing was refused")


def quarantined(v: dict[str, Any]) -> str:
    lines = [f"update {v['update']} of {v['node']} to {v['federation']}, {v['at']}", f"refused: {v['reason']}"]
    lines.append(f"header: {v['header_problem']}" if v["header_problem"] else f"header: {len(v['tensors'])} tensors")
    lines += [f"  {t['name']!a} {t['dtype']} {t['shape']}" for t in v["tensors"][:50]]
    return "\n".join(lines)


def push_plan(v: dict[str, Any]) -> str:
    lines = [
        f"{v['message']!r} to {v['repo']} ({'private' if v['private'] else 'public'}), branch {v['revision']},"
        f" tag {v['tag']}: {len(v['files'])} files, {size(v['bytes'])}"
    ]
    rows = [(f["path"], str(f["size"]), f["sha256"]) for f in v["files"]]
    return "\n".join([*lines, table(("FILE", "BYTES", "SHA-256"), rows, ""), "nothing was sent"])
