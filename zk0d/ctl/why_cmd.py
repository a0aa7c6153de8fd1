"""`zk0ctl why`: the arbiter's decision, the rule that fired, and every signal it saw."""

from __future__ import annotations

from typing import Any

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import paint, safe, show_json
from zk0d.moments import clock


def _value(key: str, value: Any) -> str:
    if value is None or value in ("", [], ()):
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_value(k, v)}" for k, v in value.items() if v not in (None, "", 0, 0.0))
    if isinstance(value, list):
        return "; ".join(_value(key, v) for v in value)
    if isinstance(value, float) and value > 1e9:
        return clock(value)
    return safe(value)


def run(context: Context, args: Args) -> int:
    found = context.call("why")
    if args.json:
        show_json(found)
        return 0
    decision = found["decision"]
    print(paint(safe(decision["sentence"]), "bold"))
    print(f"  {'action'.ljust(16)} {decision['action']} (rule: {decision['rule']})")
    for key, value in found["signals"].items():
        if key == "readings" or (key == "runtime_hint" and not found["signals"]["runtime_missing"]):
            continue
        print(f"  {key.replace('_', ' ').ljust(16)} {_value(key, value)}")
    print(paint("machine", "dim"))
    for r in found["signals"]["readings"]:
        print(f"  {safe(r['name']).ljust(16)} {safe(r['says'])}")
    print(paint("policy", "dim"))
    for key, value in found["policy"].items():
        print(f"  {key.replace('_', ' ').ljust(16)} {_value(key, value)}")
    print(paint("lately", "dim"))
    for event in found["events"]:
        print(f"  {clock(event['at'])}  {safe(event['text'])}")
    return 0


COMMAND = Command("why", "the decision, every signal, and the rule that fired",
                  (arg("--json", help="as JSON", action="store_true"),), run)  # fmt: skip
