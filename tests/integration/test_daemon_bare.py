"""A daemon without the runtime: it enrols, joins, and fetches versions, and says what it cannot do and what mends that."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from daemon_process import CONFIG, Daemon, loads, wait_until
from hub_cast import JOINTS, HubProcess, make_parts


def folder_of_a_dataset(root: Path) -> None:
    """What zk0d reads of a dataset: its meta files."""
    vector = {"dtype": "float32", "shape": [6], "names": list(JOINTS)}
    camera = {"dtype": "video", "shape": [96, 96, 3], "names": None}
    features = {"observation.state": vector, "action": vector, "observation.images.front": camera}
    info = {"codebase_version": "v3.0", "total_episodes": 2, "total_frames": 60, "fps": 30, "features": features}
    one = {"mean": [0.0] * 6, "std": [2.0] * 6, "min": [-9.0] * 6, "max": [9.0] * 6, "count": [60]}
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/stats.json").write_text(json.dumps({"observation.state": one, "action": one}))


def test_without_a_runtime_everything_else_works(tmp_path: Path) -> None:
    make_parts(tmp_path / "parts")
    bare = tmp_path / "bare" / "bin" / "python"
    (tmp_path / "bare" / "lib" / "python3.12" / "site-packages").mkdir(parents=True)
    bare.parent.mkdir()
    bare.symlink_to(sys.executable)
    hub = HubProcess(tmp_path / "hub")
    hub.start()
    hub.create("pick", tmp_path / "parts", nodes=1)
    folder_of_a_dataset(tmp_path / "cubes")
    try:
        with Daemon(tmp_path / "node", f'{CONFIG}\n[runtime]\npython = "{bare}"\n') as node:
            assert node.ctl("enroll", hub.ask("invite", label="bare")["token"]).code == 0
            assert node.ctl("dataset", "add", str(tmp_path / "cubes"), "--units", "degrees", "--task", "lift").code == 0
            assert node.ctl("federation", "join", "pick").code == 0
            wait_until(lambda: [f["here"] for f in node.status()["federations"]] == [0], "version 0 is fetched")

            told = node.ctl("status")
            assert told.code == 2 and "has no torch and no lerobot" in told.out, told
            assert "no recording, rollout or training; status, enrolment and transfers work" in told.out
            assert "waits for [runtime] python to name a Python with torch and lerobot" in told.out
            for words in (("record", "--task", "lift", "--dataset", "new", "--episodes", "1"),
                          ("model", "export", "0", str(tmp_path / "out"))):  # fmt: skip
                refused = node.ctl(*words)
                assert refused.code == 1 and "no torch and no lerobot: no " in refused.err + refused.out, refused
            found = {f["check"]: f for f in loads(node.ctl("doctor", "--json"))["findings"]}
            assert found["hub"]["level"] == found["certificate"]["level"] == "ok", found
            assert "is good for" in found["certificate"]["message"] and found["daemon"]["level"] == "warning"
            hub.stop()
            wait_until(lambda: node.status()["link"]["phase"] != "connected", "the link is lost")
            away = node.ctl("doctor", "--json")
            found = {f["check"]: f for f in loads(away)["findings"]}
            assert away.code == 1 and found["hub"]["level"] == "error" and "firewall" in found["hub"]["mend"]
            assert node.status()["training"]["task"] is None  # none is taken from the nodes that can train
    finally:
        hub.stop()
