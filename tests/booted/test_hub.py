"""A hub under its own unit, and a node that enrols at it: both programs as they are installed, in one booted system."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_installed import show, wait_active

ADDRESS = "127.0.0.1:7730"


def hub(system: Any, *arguments: str) -> str:
    return str(system.run("zk0-hub", *arguments, user="zk0-hub").stdout)


@pytest.fixture(scope="module")
def serving(system: Any) -> Any:
    """The system with a hub that was made and started as docs/install.md says."""
    assert show(system, "zk0-hub.service", "ActiveState") == "inactive"  # before there is a hub: skipped, not failed
    hub(system, "init", "--listen", ADDRESS, "--name", "booted hub")
    system.sh("systemctl start zk0-hub.service")
    wait_active(system, "zk0-hub.service")
    return system


def test_a_hub_serves_as_its_unit(serving: Any) -> None:
    status = json.loads(hub(serving, "status", "--json"))
    assert isinstance(status, dict)
    assert "/zk0-hub.service" in show(serving, "zk0-hub.service", "ControlGroup")
    assert show(serving, "zk0-hub.service", "NRestarts") == "0"


def test_a_node_enrols_and_is_connected(serving: Any) -> None:
    wait_active(serving, "zk0d.service")
    token = json.loads(hub(serving, "invite", "--label", "alice", "--address", ADDRESS, "--json"))["token"]
    said = serving.run("zk0ctl", "enroll", token, user="alice").stdout
    assert "enrolled" in said
    done = serving.run("zk0ctl", "status", "--wait", "connected", "--json", user="alice", check=False)
    assert done.returncode in (0, 2), done.stdout + done.stderr
    assert json.loads(done.stdout)["link"]["phase"] == "connected"
    assert "alice" in hub(serving, "nodes", "list")


def test_killed_the_hub_comes_back_and_the_node_with_it(serving: Any) -> None:
    pid = wait_active(serving, "zk0-hub.service")
    serving.sh(f"kill -9 {pid}")
    wait_active(serving, "zk0-hub.service", not_pid=pid)
    done = serving.run("zk0ctl", "status", "--wait", "connected", "--json", user="alice", check=False)
    assert json.loads(done.stdout)["link"]["phase"] == "connected"


def test_nobody_but_the_hub_reaches_its_keys_or_its_admin_socket(serving: Any) -> None:
    for user in ("alice", "mallory", "zk0d"):
        assert serving.run("ls", "/var/lib/zk0-hub", user=user, check=False).returncode != 0
        done = serving.run("zk0-hub", "status", user=user, check=False)
        assert done.returncode not in (0, 2)
        assert "Traceback" not in done.stdout + done.stderr
