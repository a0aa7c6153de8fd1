"""`zk0ctl doctor`: the whole installation checked in one go, each finding with the command that mends it.

The checks are in checkup.py. Exit code 0 when all is good, 2 with warnings, 1 with errors.
"""

from __future__ import annotations

from dataclasses import asdict

from zk0d.ctl.command import Args, Command, Context, arg
from zk0d.ctl.render import paint, safe, show_json

_MARKS = {"ok": ("ok", "green"), "note": ("note", "dim"), "warning": ("problem", "yellow"), "error": ("error", "red")}


def run(context: Context, args: Args) -> int:
    from zk0d.ctl.checkup import CHECKS
    from zk0d.ctl.findings import examine

    findings = examine(context, CHECKS)
    levels = {f.level for f in findings}
    code = 1 if "error" in levels else 2 if "warning" in levels else 0
    if args.json:
        show_json({"schema_version": 1, "exit_code": code, "findings": [asdict(f) for f in findings]})
        return code
    for finding in findings:
        mark, colour = _MARKS[finding.level]
        print(f"{paint(mark.ljust(8), colour)} {finding.check.ljust(12)} {safe(finding.message)}")
        if finding.mend:
            print(f"{' ' * 22}{safe(finding.mend)}")
    return code


COMMAND = Command("doctor", "check the whole installation and say what mends each finding",
                  (arg("--json", help="as JSON", action="store_true"),), run)  # fmt: skip
