"""The packages' parts that need no booted system: man pages and completions as declared, units, deb scripts, the hub's container."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree
from pathlib import Path

import pytest

from zk0d.daemon.config import SETTINGS, Config
from zk0d.daemon.units import TEMPLATES
from zk0d.daemon.workers import KINDS

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "packaging" / "docker"


def test_man_pages_and_completions_are_as_declared() -> None:
    done = subprocess.run(
        [sys.executable, "packaging/manuals.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun: python packaging/manuals.py"


def test_every_setting_is_in_its_man_page() -> None:
    page = (ROOT / "docs/man/zk0d.toml.5").read_text().replace("\\-", "-")
    for setting in SETTINGS:
        assert f"\\fB{setting.key}\\fR" in page and setting.help in page


def test_the_defaults_that_are_shipped_are_the_programs(tmp_path: Path) -> None:
    """/usr/share/zk0d/zk0d.toml says nothing as it is, and with its lines taken in just what holds without it."""
    shipped = ROOT / "docs/zk0d.toml"
    assert tomllib.loads(shipped.read_text()) == {}
    (tmp_path / "mine.toml").write_text(re.sub(r"(?m)^#(?! )", "", shipped.read_text()))
    told = tomllib.loads((tmp_path / "mine.toml").read_text())
    assert {(s.table, s.key) for s in SETTINGS} == {(t, k) for t, keys in told.items() for k in keys}
    assert Config.load([tmp_path / "mine.toml"]).values == Config.load([]).values


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("st", "status"),
        ("model e", "export"),
        ("--state /x runtime install --w", "--wheels"),
        ("dataset list --j", "--json"),
        ("dataset show cups --j", "--json"),
    ],
)
def test_bash_completes(words: str, expected: str) -> None:
    script = (
        "source packaging/completions/zk0ctl.bash; COMP_WORDS=(zk0ctl $1); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _zk0ctl;"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script, "x", words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert expected in done.stdout.split()


def test_scripts_are_shell_and_name_no_host() -> None:
    scripts = [*ROOT.glob("packaging/**/*.sh"), *ROOT.glob("packaging/deb/debian/*.p*[tr][im]*"), DOCKER / "start"]
    for path in scripts:
        shell = path.read_text().splitlines()[0].rpartition("/")[2].split()[-1]
        assert subprocess.run([shell, "-n", path], capture_output=True, check=False).returncode == 0, path
        assert not re.search(r"https?://", path.read_text()), path


def test_packaged_programs_parse_on_the_oldest_python() -> None:
    for path in ROOT.glob("packaging/deb/bin/*"):
        ast.parse(path.read_text(), feature_version=(3, 12))


def test_the_bus_policy_gives_only_freeze_and_thaw() -> None:
    tree = xml.etree.ElementTree.parse(ROOT / "systemd/dbus/org.zk0.zk0d.conf")
    policies = tree.getroot().findall("policy")
    assert [p.attrib for p in policies] == [{"user": "zk0d"}]
    allowed = [a.attrib for a in policies[0]]
    assert {a["send_member"] for a in allowed} == {"FreezeUnit", "ThawUnit"}
    assert {a["send_destination"] for a in allowed} == {"org.freedesktop.systemd1"}


def test_worker_units_name_modules_that_exist() -> None:
    units = sorted(ROOT.glob("systemd/zk0d-*@.service"))
    assert [u.name for u in units] == ["zk0d-record@.service", "zk0d-rollout@.service", "zk0d-train@.service"]
    shim = ast.parse((ROOT / "packaging/deb/bin/worker").read_text())
    (modules,) = (
        ast.literal_eval(node.value)
        for node in shim.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODULES"
    )
    for unit in units:
        template = re.search(r"^ExecStart=/usr/libexec/zk0/worker (\S+) %I$", unit.read_text(), re.MULTILINE)
        assert (
            "\nInaccessiblePaths=-/var/lib/zk0d/keys\n" in unit.read_text()
        )  # what people give it to read may be a link
        assert template is not None and unit.name == f"zk0d-{template[1]}@.service"
        for kind, module in modules[template[1]].items():
            assert (TEMPLATES[kind], KINDS[kind].module) == (f"zk0d-{template[1]}", module)
            assert (ROOT / (module.replace(".", "/") + ".py")).exists()
    assert {kind for kinds in modules.values() for kind in kinds} == set(TEMPLATES) == set(KINDS)


# -- the hub's container -----------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", (DOCKER / "Dockerfile").read_text())
    return [
        (w[0], w[2])
        for line in text.splitlines()
        if line.strip() and not line.startswith("#")
        if (w := line.partition(" "))
    ]


def test_the_container_runs_as_nobody_special_with_a_health_check() -> None:
    found = instructions()
    names = [n for n, _ in found]
    assert names[0] in ("ARG", "FROM") and names.count("ENTRYPOINT") == 1
    users = [v for n, v in found if n == "USER"]
    assert users and users[-1].isdigit() and users[-1] != "0"
    assert "HEALTHCHECK" in names and "VOLUME" in names
    assert not [v for n, v in found if n == "ADD"]
    for _, source in [(n, v) for n, v in found if n == "COPY"]:
        for name in [w for w in source.split()[:-1] if not w.startswith("--")]:
            assert (ROOT / name).exists(), f"{name} is copied but not there"


def test_the_compose_file_is_read_only_and_gives_no_privileges() -> None:
    yaml = pytest.importorskip("yaml")
    service = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["hub"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
    assert any(v.startswith("state:") for v in service["volumes"]) and service["tmpfs"]
    assert "privileged" not in service and "network_mode" not in service
