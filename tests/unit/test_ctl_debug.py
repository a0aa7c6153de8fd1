"""The debug bundle carries nothing that says something about a home: names, tasks, addresses, keys and paths are replaced."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from zk0d.ctl.debug_cmd import Redactor, private_words
from zk0d.ctl.main import main

SECRETS = {
    "pick up grandma's pills": {"task_text": "pick up grandma's pills"},
    "bathroom-cups": {"datasets": [{"name": "bathroom-cups"}]},
    "alice": {"session": {"by": "alice"}},
    "hub.example.org:7730": {"hub": {"address": "hub.example.org:7730"}},
}


@pytest.mark.parametrize("secret", SECRETS)
def test_what_the_status_says_of_a_home_goes_from_the_logs_too(secret: str) -> None:
    redact = Redactor(private_words(SECRETS[secret]))
    assert secret not in json.dumps(redact.value(SECRETS[secret]))
    assert secret not in redact.text(f"saved an episode: {secret} (7 frames)")


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nMC4CAQ",
        "zk0-" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo",
        "/home/alice/robot/x.parquet",
        "/var/lib/zk0d/datasets/bathroom/meta",
        "192.168.1.77",
        "fe80:1:2:3:4::1",
        "aa:bb:cc:dd:ee:0f",
        "/dev/zk0/arm-5A68012345",
        "alice@example.org",
        "123e4567-e89b-42d3-a456-426614174000",
    ],
)
def test_patterns_of_private_things_are_replaced(text: str) -> None:
    said = Redactor(set()).text(f"error near {text} at step 3")
    assert "error near" in said and "<" in said
    for part in ("MC4CAQ", "QUJDREVG", "alice", "bathroom", "192.168", "fe80", "aa:bb", "5A68012345", "123e4567"):
        assert part not in said


def test_names_in_the_history_go_also_when_nobody_knows_them_any_more() -> None:
    row = {"event": "record", "text": "recording of 'grandmas-pills' by root done: 3 episodes saved", "frames": 7}
    said = Redactor(set()).value(row)
    assert said == {**row, "text": "recording of '<private>' by root done: 3 episodes saved"}


def test_numbers_and_reasons_stay() -> None:
    value = {"step": 12, "loss": 0.5, "state": "paused", "reason": "the battery is low"}
    assert Redactor({"alice"}).value(value) == value


def test_a_bundle_is_written_even_when_the_daemon_is_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "zk0d.log").write_text(
        json.dumps({"event": "saved", "dataset": "bathroom-cups", "path": "/home/alice/x", "frames": 7})
        + "\nplain /home/alice/y\n"
    )
    out = tmp_path / "bundle.tar.gz"
    assert main(["--state", str(tmp_path), "debug", "bundle", "--out", str(out)]) == 0
    assert out.stat().st_mode & 0o777 == 0o600
    with tarfile.open(out) as archive:
        texts = {m.name: archive.extractfile(m).read().decode() for m in archive.getmembers()}  # type: ignore[union-attr]
    log = texts["zk0d-debug/log/zk0d.log"]
    assert '"frames": 7' in log and "bathroom" not in log and "alice" not in log
    assert {"zk0d-debug/versions.json", "zk0d-debug/status.json", "zk0d-debug/doctor.json"} <= set(texts)
    assert "bundle.tar.gz" in capsys.readouterr().out
