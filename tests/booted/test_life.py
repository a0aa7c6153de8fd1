"""The life of an installation: install, remove (data stays), install again on old state, upgrade, downgrade, purge (recordings stay)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import install
from test_installed import show, wait_active


def test_install_remove_reinstall_upgrade_purge(
    boot: Callable[..., Any], debs: list[Path], newer_debs: list[Path]
) -> None:
    with boot("bare") as system:
        said = install(system, debs)
        assert "usermod -aG zk0" in said
        pid = wait_active(system, "zk0d.service")
        system.sh("useradd -m alice; usermod -aG zk0 alice")
        before = json.loads(system.run("zk0ctl", "status", "--json", user="alice", check=False).stdout)
        system.sh(
            "install -d -o zk0d -g zk0d /var/lib/zk0d/datasets /var/lib/zk0d/datasets/cups; echo data >/var/lib/zk0d/datasets/cups/x"
        )
        system.sh("printf '[train]\\nniceness = 12\\n' >/etc/zk0d/conf.d/50-mine.toml")
        _worker(system)

        # Upgrade: settings that were edited raise no question, the daemon restarts, clients wait, a worker goes on.
        worker = show(system, "zk0d-record@t1.service", "MainPID")
        said = install(system, newer_debs)
        assert "conffile" not in said.lower()
        assert wait_active(system, "zk0d.service", not_pid=pid) != pid
        assert show(system, "zk0d-record@t1.service", "MainPID") == worker
        assert "niceness = 12" in system.sh("cat /etc/zk0d/conf.d/50-mine.toml")
        after = json.loads(system.run("zk0ctl", "status", "--json", user="alice", check=False).stdout)
        assert after["schema_version"] == before["schema_version"]

        # Remove: everything stops, also what runs in templates; data and settings stay.
        system.sh("apt-get remove -y zk0d zk0-hub zk0-common </dev/null")
        assert system.sh("pgrep -u zk0d -a || true").strip() == ""
        assert (
            system.sh("systemctl list-units --all --no-legend 'zk0d-*' 'zk0-*.slice' | grep -w active || true").strip()
            == ""
        )
        assert system.sh("ls /usr/lib/zk0 /usr/bin/zk0* /run/zk0d/control.sock 2>/dev/null || true").strip() == ""
        assert system.sh("cat /var/lib/zk0d/datasets/cups/x").strip() == "data"
        system.sh("test -f /var/lib/zk0d/zk0d.db && test -f /etc/zk0d/conf.d/50-mine.toml")

        # Install again on the old state.
        install(system, debs, "--allow-downgrades")
        wait_active(system, "zk0d.service")
        assert system.run("zk0ctl", "status", "--json", user="alice", check=False).returncode in (0, 2)

        # Purge: everything goes but what was recorded, and it says where that is.
        said = system.sh("apt-get purge -y zk0d zk0-hub zk0-common </dev/null")
        assert "/var/lib/zk0d/datasets" in said
        assert system.sh("find /var/lib/zk0d -type f").split() == ["/var/lib/zk0d/datasets/cups/x"]
        left = system.sh(
            "find / -xdev ! -path '/proc/*' ! -path '/sys/*' ! -path '/var/lib/zk0d*' ! -path '/root/debs*' ! -path '/var/log/*'"
            " ! -path '/var/cache/*' ! -path '/tmp/*' ! -path '/etc/apt/apt.conf.d/90zk0' ! -path '/etc/*-' -iname '*zk0*' | sort"
        )
        assert left.strip() == "", left
        assert system.sh("systemctl --failed --no-legend").strip() == ""


def _worker(system: Any) -> None:
    """Start a recorder unit with `sleep` in the worker's place: the subject is what the packages do to it."""
    system.sh(
        "d=/run/systemd/system/zk0d-record@.service.d; mkdir -p $d; printf '[Service]\\nExecStart=\\nExecStart=/bin/sleep 600\\n' >$d/s.conf;"
        "install -d -o zk0d -g zk0d /var/lib/zk0d/work /var/lib/zk0d/work/t1; systemctl daemon-reload; systemctl start zk0d-record@t1.service"
    )


def test_an_older_program_refuses_a_newer_database(boot: Callable[..., Any], debs: list[Path]) -> None:
    with boot() as system:
        install(system, debs)
        wait_active(system, "zk0d.service")
        system.sh(
            "systemctl stop zk0d.service; python3 -c \"import sqlite3; d=sqlite3.connect('/var/lib/zk0d/zk0d.db'); d.execute('PRAGMA user_version=99')\""
        )
        system.sh("systemctl start zk0d.service", check=False)
        system.until(lambda: show(system, "zk0d.service", "ActiveState") == "failed", 30, "zk0d to give up")
        said = system.sh("journalctl --sync; journalctl -q -o cat -u zk0d.service -n 20")
        assert "99" in said and "newer" in said, said
        # The refusal is final: it is not started again and again.
        assert show(system, "zk0d.service", "NRestarts") == "0"


def test_without_a_terminal_nothing_is_asked(
    boot: Callable[..., Any], debs: list[Path], newer_debs: list[Path]
) -> None:
    with boot() as system:
        system.sh("unset DEBIAN_FRONTEND")
        install(system, debs)
        system.sh(
            "echo '# mine' >>/usr/share/zk0d/zk0d.toml 2>/dev/null; printf '[log]\\nlevel = \"debug\"\\n' >/etc/zk0d/conf.d/10-a.toml"
        )
        said = install(system, newer_debs)
        assert "?" not in said.replace("[Y/n]", ""), said


def test_the_autopkgtest_passes(boot: Callable[..., Any], debs: list[Path]) -> None:
    """The test that the packages carry (debian/tests), run as `autopkgtest -- null` in a booted system runs it."""
    script = Path(__file__).resolve().parents[2] / "packaging/deb/debian/tests/installed"
    with boot() as system:
        install(system, debs)
        system.put(script, "/root/installed")
        system.sh("sh -x /root/installed")
