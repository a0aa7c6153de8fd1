"""`zk0ctl enroll`: join a hub with an invitation, or by its address and fingerprint and the maintainer's approval."""

from __future__ import annotations

from typing import Any

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import Progress, paint, safe
from zk0d.errors import UsageError
from zk0d.invitation import PREFIX, Invitation

_HEX = set("0123456789abcdef")


def parse(where: str, fingerprint: str | None) -> dict[str, Any]:
    """The `enroll` request for an invitation or HOST:PORT. Raises UsageError saying what it should look like."""
    host, _, port = where.rpartition(":")
    if where.startswith(PREFIX) and not host:
        made = Invitation.parse(where)
        return {"host": made.host, "port": made.port, "ca_fingerprint": made.ca, "secret": made.secret}
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(
            f"{where[:60]!r} is neither an invitation nor HOST:PORT",
            f"an invitation begins with {PREFIX}: paste all of it",
        )
    digits = (fingerprint or "").strip().lower().removeprefix("sha256:").replace(":", "").replace(" ", "")
    if len(digits) != 64 or not set(digits) <= _HEX:
        raise UsageError(
            "an address needs --ca-fingerprint sha256:… (64 hexadecimal digits)",
            "the maintainer has it, or an invitation",
        )
    return {"host": host.strip("[]"), "port": int(port), "ca_fingerprint": "sha256:" + digits}


def run(context: Context, args: Args) -> int:
    progress = Progress()

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "pending":
            progress.say("asked the hub. Tell the maintainer these words, and that they must see the same:")
            progress.say(f"  {paint(safe(event['phrase']), 'bold')}")
            progress.say("this command waits for their approval; if it ends before, run it again once they have")
            progress.update("waiting for approval …")

    request = {**parse(args.where, args.ca_fingerprint), "new_key": bool(args.new_key)}
    result = context.call("enroll", on_event, timeout=None, **request)
    progress.say(f"enrolled at {safe(result['address'])} as {safe(result['node_id'])}; next: `zk0ctl federation list`")
    return 0


COMMAND = Command(
    "enroll",
    "enrol this node at a hub",
    (
        arg("where", help="the maintainer's invitation, or HOST:PORT", metavar="TOKEN|HOST:PORT"),
        arg("--ca-fingerprint", help="with HOST:PORT: the hub's fingerprint", metavar="sha256:…"),
        arg(
            "--new-key",
            help="make a new key, for a node whose old one was lost, stolen or revoked",
            action="store_true",
        ),
    ),
    run,
)
