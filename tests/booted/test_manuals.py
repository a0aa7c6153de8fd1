"""Man pages and completions as a person meets them: read with `man`, completed by the three shells themselves."""

from __future__ import annotations

from typing import Any

import pytest

PAGES = ("zk0ctl.1", "zk0d.8", "zk0-hub.8", "zk0d.toml.5")
CASES = [("zk0ctl run", "runtime"), ("zk0ctl --state /tmp runtime install --whe", "--wheels"), ("zk0ctl dataset show cups --j", "--json"),
         ("zk0-hub nodes app", "approve"), ("zk0d --fore", "--foreground")]  # fmt: skip

BASH = """
source /usr/share/bash-completion/bash_completion
line=$1 COMP_LINE=$1 COMP_POINT=${#1}
COMP_WORDS=($line) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_comp_load "${COMP_WORDS[0]}"
declare -F "$(complete -p "${COMP_WORDS[0]}" | sed 's/.* -F \\([^ ]*\\) .*/\\1/')" >/dev/null
"$(complete -p "${COMP_WORDS[0]}" | sed 's/.* -F \\([^ ]*\\) .*/\\1/')"
printf '%s\\n' "${COMPREPLY[@]}"
"""

ZSH = """
import os, pty, select, sys, time
line, wanted = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    os.environ["TERM"] = "dumb"
    os.execvp("zsh", ["zsh", "-f", "-i"])
seen = ""
def until(word, start=0):
    global seen
    end = time.monotonic() + 60
    while word not in seen[start:]:
        if time.monotonic() > end or not select.select([terminal], [], [], 60)[0]:
            sys.exit(f"no {word!r} in {seen!r}")
        seen += os.read(terminal, 4096).decode()
os.write(terminal, b"PS1=; autoload -Uz compinit; compinit -u -D; echo re''ady\\n")
until("ready\\r\\n")
start = len(seen)
os.write(terminal, line.encode() + b"\\t")
until(wanted, start)
print(seen[start:])
os.kill(pid, 9)
"""


@pytest.mark.parametrize("page", PAGES)
def test_a_man_page_is_read_without_a_warning(system: Any, page: str) -> None:
    name, _, section = page.rpartition(".")
    read = system.run("env", "MANWIDTH=80", "man", "--warnings", section, name)
    assert read.stderr == "" and name in read.stdout
    assert "SEE ALSO" in read.stdout and "\\f" not in read.stdout
    assert f"{name} ({section})" in system.sh(f"whatis -s {section} {name}")


@pytest.mark.parametrize(("line", "wanted"), CASES)
def test_bash_completes(system: Any, line: str, wanted: str) -> None:
    assert wanted in system.run("bash", "-c", BASH, "bash", line).stdout.split()


@pytest.mark.parametrize(("line", "wanted"), CASES)
def test_zsh_completes(system: Any, line: str, wanted: str) -> None:
    system.run("python3", "-c", ZSH, line, wanted)


@pytest.mark.parametrize(("line", "wanted"), CASES)
def test_fish_completes(system: Any, line: str, wanted: str) -> None:
    said = system.run("fish", "-c", f"complete -C '{line}'").stdout
    assert wanted in [one.partition("\t")[0] for one in said.splitlines()], said
