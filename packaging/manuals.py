"""Writes the man pages and the shell completions from the declarations of commands and settings.

    python packaging/manuals.py [--check]

They are committed, because a package is built where our Python does not run; a test fails when they are not as this
would write them. Not for guides, which people write (docs/).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from zk0d.ctl.parser import COMMANDS, build  # noqa: E402
from zk0d.daemon import main as daemon  # noqa: E402
from zk0d.daemon.config import SETTINGS  # noqa: E402
from zk0d.errors import EXIT_CODES  # noqa: E402
from zk0d.hub import main as hub  # noqa: E402
from zk0d.hub.config import FEDERATION, HUB, reference  # noqa: E402

PAGES = {"zk0ctl": "1", "zk0d": "8", "zk0-hub": "8", "zk0d.toml": "5"}
FILES = {
    "zk0ctl": (("/run/zk0d/control.sock", "where zk0d listens; members of group zk0 may use it"),
               ("/var/lib/zk0-runtime", "the managed packages for recording and training")),
    "zk0d": (("/etc/zk0d/conf.d/*.toml", "settings, read in order of name; see zk0d.toml(5)"),
             ("/var/lib/zk0d", "state, keys and recorded datasets"), ("/run/zk0d/control.sock", "the control socket"),
             ("/var/lib/zk0-runtime", "the managed packages for recording and training")),
    "zk0-hub": (("/var/lib/zk0-hub", "settings (hub.toml), keys, versions and ledger"),),
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """A command of a parser: the words that lead to it, its parser and its commands."""

    words: tuple[str, ...]
    parser: argparse.ArgumentParser
    help: str
    below: tuple[Node, ...]


def walk(parser: argparse.ArgumentParser, words: tuple[str, ...] = (), help: str = "") -> Node:
    below: list[Node] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {c.dest: c.help or "" for c in action._choices_actions}
            below += [walk(p, (*words, name), told.get(name, "")) for name, p in action.choices.items()]
    return Node(words, parser, help, tuple(below))


def every(node: Node) -> Iterator[Node]:
    yield node
    for sub in node.below:
        yield from every(sub)


def options(node: Node) -> list[argparse.Action]:
    """The options and arguments of one command, without help and without those of all commands."""
    return [
        a
        for a in node.parser._actions
        if not isinstance(a, argparse._SubParsersAction)
        and not (node.words and {"--socket", "--state"} & set(a.option_strings))
        and "--help" not in a.option_strings
    ]


def placeholder(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    name = action.metavar if isinstance(action.metavar, str) else ""
    return name or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())


# -- man pages ---------------------------------------------------------------------------------------------------------


def roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in text.splitlines())


def item(term: str, text: str) -> str:
    return f".TP\n{term}\n{roff(text) or '.'}\n"


def term(action: argparse.Action) -> str:
    value = placeholder(action)
    shown = f" \\fI{roff(value)}\\fR" if value else ""
    if not action.option_strings:
        return f"\\fI{roff(value)}\\fR"
    return ", ".join(f"\\fB{roff(o)}\\fR" for o in action.option_strings) + shown


def explain(action: argparse.Action) -> str:
    text = action.help or ""
    return text if action.help != argparse.SUPPRESS else ""


def head(name: str, what: str) -> str:
    section = PAGES[name]
    return (
        f'.\\" Written by packaging/manuals.py from the declarations in the code: change those.\n'
        f'.TH {name.upper()} {section} "" "zk0d" "zk0d"\n.SH NAME\n{roff(name)} \\- {roff(what)}\n'
    )


def tail(name: str) -> str:
    page = ""
    if name in FILES:
        page += ".SH FILES\n" + "".join(item(f"\\fI{roff(f)}\\fR", t) for f, t in FILES[name])
    if name != "zk0d.toml":
        page += ".SH EXIT STATUS\n" + "".join(item(str(code), t) for code, t in EXIT_CODES)
    others = ", ".join(f"\\fB{roff(n)}\\fR({s})" for n, s in PAGES.items() if n != name)
    return page + f".SH SEE ALSO\n{others}\n"


def page(name: str, what: str, parser: argparse.ArgumentParser) -> str:
    top = walk(parser)
    text = head(name, what)
    text += f".SH SYNOPSIS\n\\fB{roff(name)}\\fR [\\fIOPTION\\fR...]" + (
        " \\fICOMMAND\\fR ...\n" if top.below else "\n"
    )
    text += f".SH DESCRIPTION\n{roff(parser.description or what)}\n"
    text += ".SH OPTIONS\n" + "".join(item(term(a), explain(a)) for a in options(top))
    if top.below:
        text += ".SH COMMANDS\n"
        for node in every(top):
            if not node.words or node.below:
                continue
            line = " ".join([name, *node.words])
            positional = " ".join(placeholder(a) for a in options(node) if not a.option_strings)
            text += f".SS {roff(line)}{' ' + roff(positional) if positional else ''}\n{roff(node.help)}\n"
            text += "".join(item(term(a), explain(a)) for a in options(node))
    return text + tail(name)


def settings_page() -> str:
    text = head("zk0d.toml", "settings of zk0d")
    text += ".SH SYNOPSIS\n\\fI/etc/zk0d/conf.d/*.toml\\fR\n.SH DESCRIPTION\n"
    text += roff("TOML files, read in order of name; a later value wins. A wrong value stops the start and names file, key "
                 "and what is accepted; zk0d --check looks without starting. See also [robot] in the operator's guide.")  # fmt: skip
    table = ""
    for setting in SETTINGS:
        if setting.table != table:
            table = setting.table
            text += f"\n.SH [{table}]"
        default = '""' if setting.default == "" else str(setting.default)
        text += (
            "\n"
            + item(
                f"\\fB{roff(setting.key)}\\fR", f"{setting.help}. Default: {default}. Accepted: {setting.accepts}."
            ).rstrip()
        )
    return text + "\n" + tail("zk0d.toml")


def defaults() -> str:
    """The defaults as a settings file, every line of it a comment: /usr/share/zk0d/zk0d.toml."""
    text = "# The defaults of zk0d, written by packaging/manuals.py. What differs on this machine goes, with the [table] above it, into a\n"
    text += "# file of /etc/zk0d/conf.d, such as 50-mine.toml; then: zk0d --check; sudo systemctl restart zk0d. See zk0d.toml(5).\n"
    table = ""
    for setting in SETTINGS:
        if setting.table != table:
            table = setting.table
            text += f"\n#[{table}]\n"
        value = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        text += f"# {setting.help} ({setting.accepts})\n#{setting.key} = {json.dumps(value)}\n"
    return text


# -- completions -------------------------------------------------------------------------------------------------------


def flags(node: Node) -> list[str]:
    return sorted({o for a in options(node) for o in a.option_strings if o.startswith("--")} | {"--help"})


def files(node: Node) -> list[str]:
    """Options whose value is a path."""
    return [o for a in options(node) for o in a.option_strings if placeholder(a) in ("FILE", "DIR", "PATH")]


def bash(name: str, parser: argparse.ArgumentParser) -> str:
    function = "_" + re.sub(r"\W", "_", name)
    top = walk(parser)
    cases = ""
    for node in every(top):
        words = " ".join([*(n.words[-1] for n in node.below), *flags(node)])
        cases += f'        "{" ".join(node.words)}") words="{words}" ;;\n'
    values = valued(top)
    paths = (
        "|".join(
            sorted({o for n in every(top) for o in files(n)} | ({"--socket", "--state"} if name == "zk0ctl" else set()))
        )
        or "--none"
    )
    return f"""# bash completion for {name}; written by packaging/manuals.py
{function}() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} path="" word skip="" words=""
    case $prev in {paths}) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;; esac
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        if [ -n "$skip" ]; then skip=""; continue; fi
        case $word in {values}) skip=1; continue ;; -*) continue ;; esac
        case "${{path:+$path }}$word" in {known(top)}) path="${{path:+$path }}$word" ;; esac
    done
    case $path in
{cases}    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}}
complete -o default -F {function} {name}
"""


def valued(top: Node) -> str:
    """The options that take a value, as a pattern of `case`."""
    taking = {o for n in every(top) for a in options(n) if a.nargs != 0 for o in a.option_strings}
    return "|".join(sorted(taking)) or "--none"


def known(top: Node) -> str:
    """The commands, as a pattern of `case`: words after them are arguments."""
    return "|".join(f'"{" ".join(n.words)}"' for n in every(top) if n.words) or '"?"'


def zsh(name: str, parser: argparse.ArgumentParser) -> str:
    def quote(text: str) -> str:
        return text.replace("'", "’").replace(":", " -").replace("[", "(").replace("]", ")")

    top = walk(parser)
    cases = ""
    for node in every(top):
        words = " ".join(f"'{n.words[-1]}:{quote(n.help)}'" for n in node.below)
        cases += f"        '{' '.join(node.words)}') commands=({words}); flags=({' '.join(flags(node))}) ;;\n"
    # Not "path" and "words": zsh has given those a meaning.
    return f"""#compdef {name}
# written by packaging/manuals.py
local -a commands flags
local said='' skip='' word
for word in ${{words[2,CURRENT-1]}}; do
    if [[ -n $skip ]]; then skip=''; continue; fi
    case $word in {valued(top)}) skip=1; continue ;; -*) continue ;; esac
    case "${{said:+$said }}$word" in {known(top)}) said="${{said:+$said }}$word" ;; esac
done
case $said in
{cases}esac
if [[ $PREFIX == -* ]]; then compadd -- $flags
elif (( $#commands )); then _describe command commands
else _files
fi
"""


def fish(name: str, parser: argparse.ArgumentParser) -> str:
    def quote(text: str) -> str:
        return text.replace("\\", "").replace("'", "\\'")

    text = f"# fish completion for {name}; written by packaging/manuals.py\n"
    for node in every(walk(parser)):
        if node.words:
            siblings = (
                "__fish_use_subcommand" if len(node.words) == 1 else f"__fish_seen_subcommand_from {node.words[-2]}"
            )
            text += f"complete -c {name} -f -n '{siblings}' -a {node.words[-1]} -d '{quote(node.help)}'\n"
        seen = f" -n '__fish_seen_subcommand_from {node.words[-1]}'" if node.words else ""
        for action in options(node):
            for option in action.option_strings:
                if option.startswith("--"):
                    needs = "" if action.nargs == 0 else " -r"
                    path = " -F" if option in files(node) else ""
                    text += f"complete -c {name}{seen} -l {option[2:]}{needs}{path} -d '{quote(explain(action))}'\n"
    return text


def written() -> dict[str, str]:
    """Every file: path in the repository → text."""
    parsers = {"zk0ctl": build(COMMANDS), "zk0d": daemon.parser(), "zk0-hub": hub.parser()}
    what = {
        "zk0ctl": "control zk0d, the operator's daemon",
        "zk0d": "the operator's daemon",
        "zk0-hub": "the broker of a federation",
    }
    made = {f"docs/man/{n}.{PAGES[n]}": page(n, what[n], p) for n, p in parsers.items()}
    made["docs/man/zk0d.toml.5"] = settings_page()
    made["docs/zk0d.toml"] = defaults()
    made["docs/hub-settings.md"] = (
        "# Settings of a hub and of a federation\n\nWritten by packaging/manuals.py from the declarations in "
        "zk0d/hub/config.py: change those.\n\n## hub.toml\n\n"
        f"{reference(HUB)}\n## A federation's TOML\n\n{reference(FEDERATION)}"
    )
    for name, parser in parsers.items():
        made[f"packaging/completions/{name}.bash"] = bash(name, parser)
        made[f"packaging/completions/_{name}"] = zsh(name, parser)
        made[f"packaging/completions/{name}.fish"] = fish(name, parser)
    return made


def main() -> int:
    stale = {n: t for n, t in written().items() if not (ROOT / n).exists() or (ROOT / n).read_text() != t}
    if "--check" in sys.argv[1:]:
        print("\n".join(f"{n} is not as packaging/manuals.py writes it" for n in stale))
        return 1 if stale else 0
    for name, text in stale.items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(text)
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
