"""The life of an installation: install, boot, upgrade, downgrade, remove (data stays), install again on old state, purge (recordings stay)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, install
from test_installed import show, wait_active

DATABASE = "/var/lib/zk0d/zk0d.db"
SETTINGS = "/etc/zk0d/conf.d/50-mine.toml"
RECORDED = "/var/lib/zk0d/datasets/cups/x"


@pytest.fixture(scope="module")
def house(boot: Callable[..., Any], debs: list[Path]) -> Iterator[Any]:
    """A bare system on which the packages were installed as an owner would; each test here goes on where the one before it ended."""
    with boot("bare") as system:
        said = install(system, debs)
        assert "usermod -aG zk0" in said
        wait_active(system, "zk0d.service")
        system.sh("useradd -m alice; usermod -aG zk0 alice")
        system.sh(
            f"install -d -o zk0d -g zk0d /var/lib/zk0d/datasets /var/lib/zk0d/datasets/cups; echo data >{RECORDED}"
        )
        system.sh(f"printf '[train]\\nniceness = 12\\n' >{SETTINGS}")
        yield system


def ask(system: Any) -> dict[str, Any]:
    done = system.run("zk0ctl", "status", "--json", user="alice", check=False)
    assert done.returncode in (0, 2), done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def schema(system: Any, version: int | None = None) -> int:
    """The version of the daemon's database; `version`: set it, as a program would that migrates."""
    order = "PRAGMA user_version" + (f"={version}" if version is not None else "")
    code = f"import sqlite3; d = sqlite3.connect({DATABASE!r}); r = d.execute({order!r}).fetchone(); d.commit(); print(r[0] if r else 0)"
    return int(system.run("python3", "-c", code, user="zk0d").stdout)


def test_it_starts_at_boot_without_anyone(house: Any) -> None:
    house.reboot()
    wait_active(house, "zk0d.service")
    assert house.sh("systemctl --failed --no-legend").strip() == ""
    assert ask(house)["schema_version"]


def test_an_upgrade_asks_nothing_and_leaves_workers_alone(house: Any, newer_debs: list[Path]) -> None:
    """Settings that were edited raise no question, where nobody said that there is no terminal; the daemon restarts, a worker goes on."""
    before, pid = ask(house), wait_active(house, "zk0d.service")
    _worker(house)
    worker = show(house, "zk0d-record@t1.service", "MainPID")
    said = install(house, newer_debs, environment="-u DEBIAN_FRONTEND")
    assert "conffile" not in said.lower() and "?" not in said.replace("[Y/n]", ""), said
    assert wait_active(house, "zk0d.service", not_pid=pid) != pid
    assert show(house, "zk0d-record@t1.service", "MainPID") == worker
    assert "niceness = 12" in house.sh(f"cat {SETTINGS}")
    assert ask(house)["schema_version"] == before["schema_version"]


def test_an_older_program_refuses_a_newer_database(house: Any, debs: list[Path], newer_debs: list[Path]) -> None:
    """A downgrade: apt does its work, the daemon says why it does not start, stays down, changes nothing; the newer program goes on."""
    current = schema(house)
    house.sh("systemctl stop zk0d.service")
    schema(house, 99)
    install(house, debs, "--allow-downgrades")
    house.until(lambda: show(house, "zk0d.service", "ActiveState") == "failed", 90, "zk0d to give up")
    said = house.sh("journalctl --sync; journalctl -q -o cat -u zk0d.service -n 20")
    assert "99" in said and "newer" in said and "Traceback" not in said, said
    assert show(house, "zk0d.service", "NRestarts") == "0"  # the refusal is final: it is not tried again and again
    assert schema(house) == 99
    schema(house, current)
    install(house, newer_debs)
    wait_active(house, "zk0d.service")
    ask(house)


def test_removed_everything_stops_and_data_and_settings_stay(house: Any) -> None:
    house.sh("apt-get remove -y zk0d zk0-hub zk0-common </dev/null")
    assert house.sh("pgrep -u zk0d -a || true").strip() == ""
    left = "systemctl list-units --all --no-legend 'zk0d-*' 'zk0-*.slice' | grep -w active || true"
    assert house.sh(left).strip() == ""
    assert house.sh("ls /usr/lib/zk0 /usr/bin/zk0* /run/zk0d/control.sock 2>/dev/null || true").strip() == ""
    assert house.sh(f"cat {RECORDED}").strip() == "data"
    house.sh(f"test -f {DATABASE} && test -f {SETTINGS}")


def test_installed_again_it_goes_on_with_its_old_state(house: Any, debs: list[Path]) -> None:
    before = house.sh(f"sha256sum {SETTINGS}; ls -ld /var/lib/zk0d /var/lib/zk0d/datasets")
    install(house, debs, "--allow-downgrades")
    wait_active(house, "zk0d.service")
    ask(house)
    assert (
        house.sh(f"sha256sum {SETTINGS}; ls -ld /var/lib/zk0d /var/lib/zk0d/datasets").split()[:1] == before.split()[:1]
    )
    assert house.sh(f"cat {RECORDED}").strip() == "data"


def test_purged_everything_goes_but_what_was_recorded(house: Any) -> None:
    said = house.sh("apt-get purge -y zk0d zk0-hub zk0-common </dev/null")
    assert "/var/lib/zk0d/datasets" in said
    assert house.sh("find /var/lib/zk0d -type f").split() == [RECORDED]
    left = house.sh(
        "find / -xdev ! -path '/proc/*' ! -path '/sys/*' ! -path '/var/lib/zk0d*' ! -path '/root/debs*' ! -path '/var/log/*'"
        " ! -path '/var/cache/*' ! -path '/tmp/*' ! -path '/etc/apt/apt.conf.d/90zk0' ! -path '/etc/*-' -iname '*zk0*' | sort"
    )
    assert left.strip() == "", left
    assert house.sh("systemctl --failed --no-legend").strip() == ""


def _worker(system: Any) -> None:
    """Start a recorder unit with `sleep` in the worker's place: the subject is what the packages do to it."""
    system.sh(
        "d=/run/systemd/system/zk0d-record@.service.d; mkdir -p $d; printf '[Service]\\nExecStart=\\nExecStart=/bin/sleep 600\\n' >$d/s.conf;"
        "install -d -o zk0d -g zk0d /var/lib/zk0d/work /var/lib/zk0d/work/t1; systemctl daemon-reload; systemctl start zk0d-record@t1.service"
    )


def test_the_autopkgtests_pass(boot: Callable[..., Any], debs: list[Path], tmp_path: Path) -> None:
    """autopkgtest itself, with its null runner, in a booted system: it installs the packages and runs debian/tests."""
    archive = tmp_path / "source.tar"
    subprocess.run(["tar", "-C", REPOSITORY / "packaging/deb", "-cf", archive, "debian"], check=True)
    with boot() as system:
        system.sh("mkdir /root/debs /root/source; rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*")
        for deb in debs:
            system.put(deb, f"/root/debs/{deb.name}")
        system.put(archive, "/root/source.tar")
        head = "zk0 (0) unstable; urgency=medium\n\n  * Tests.\n\n -- zk0 <z@zk0.invalid>  Thu, 01 Jan 2026 00:00:00 +0000\n"
        system.sh(f"cd /root/source; tar -xf ../source.tar; printf '{head}' >debian/changelog")
        said = system.sh(
            "autopkgtest --quiet --summary-file=/root/summary /root/debs/*.deb /root/source -- null",
            check=False,
            timeout=300,
        )
        summary = system.sh("cat /root/summary")
        assert sorted(line.split()[:2] for line in summary.splitlines()) == [
            ["commands", "PASS"],
            ["installed", "PASS"],
        ], said
