"""The daemon's settings: defaults, files over each other, and errors that say what to write instead."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zk0d.daemon import config
from zk0d.daemon.config import SETTINGS, Config, find_files
from zk0d.daemon.main import main
from zk0d.errors import ConfigError, UnknownStateError
from zk0d.link.rates import parse_rate


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_default_passes_its_own_check() -> None:
    config = Config.load([])
    assert set(config.values) == {(s.table, s.key) for s in SETTINGS}
    assert config["link", "max_upload"].at(0.0) == 20e6
    assert config["link", "max_download"].at(0.0) is None


def test_later_files_win(tmp_path: Path) -> None:
    first = write(tmp_path / "1.toml", '[train]\ndevice = "cpu"\ntries = 2\n[robot]\nfollower = "/dev/ttyACM0"\n')
    second = write(tmp_path / "2.toml", '[train]\ntries = 3\n[robot]\nleader = "/dev/ttyACM1"\n')
    config = Config.load([first, second])
    assert (config["train", "device"], config["train", "tries"]) == ("cpu", 3)
    assert (config.robot["follower"], config.robot["leader"], config.robot["type"]) == (
        "/dev/ttyACM0",
        "/dev/ttyACM1",
        "so101",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\ndevice = 3", ["train.device", "3", '"cuda"']),
        ("[train]\ntries = true", ["train.tries", "True", "1 … 100"]),
        ('[link]\nmax_upload = "fast"', ["link.max_upload", "fast", "20 MB/s"]),
        ('[link]\nmax_download = [{from="8", to="20:00", rate="2 MB/s"}]', ["link.max_download", "'8'", "08:00"]),
        ("[train]\ndevcie = 'cpu'", ["unknown key train.devcie", "device"]),
        ("[trian]\ndevice = 'cpu'", ["unknown table [trian]", "train"]),
        ("train = 3", ["train = 3", "[train]"]),
        ("[train", ["not TOML"]),
        (f"[train]\ntries = {'9' * 5000}", ["not TOML"]),
        ('hours = ["Sat"]', ["hours stands in no table", "write [idle] above it"]),
        ("[robot]\ntype = 'so102'", ["robot.type", "so102", "'so101' or 'so100'"]),
        ("[robot]\nport = '/dev/ttyACM0'", ["unknown key robot.port", "follower"]),
        ("[robot.cameras]\nfront = 3", ["robot.cameras", "height"]),
        ("robot = 1", ["robot = 1"]),
    ],
)
def test_an_error_names_file_key_value_and_what_is_accepted(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path / "zk0d.toml", text)
    with pytest.raises(ConfigError) as caught:
        Config.load([path])
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_which_files(tmp_path: Path) -> None:
    own = write(tmp_path / "zk0d.toml", "")
    assert find_files(tmp_path, None) == [own]
    assert find_files(tmp_path, Path("/x.toml")) == [Path("/x.toml")]
    with pytest.raises(ConfigError, match="No such file"):
        Config.load([tmp_path / "missing.toml"])


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that another user may enter, as whom the test goes on where it began as root."""
    with tempfile.TemporaryDirectory(prefix="zk0-config-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextmanager
def another_user() -> Iterator[None]:
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("closed", ["state", "conf.d", "conf.d/50-mine.toml"])
def test_settings_that_may_not_be_read(
    closed: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an operator meets them who asks `zk0d --check` without sudo: told with what to do, never taken for none."""
    (place / "state").mkdir()
    (place / "conf.d").mkdir()
    write(place / "conf.d/50-mine.toml", "[train]\nniceness = 12\n")
    monkeypatch.setattr(config, "CONF_D", place / "conf.d")
    check = ["--state", str(place / "state"), "--check"]
    with another_user():
        assert main(check) == 0
    (place / closed).chmod(0)
    with another_user():
        assert main(check) == UnknownStateError.exit_code
    (place / closed).chmod(0o755)
    said = capsys.readouterr()
    assert "50-mine.toml" in said.out and f"{place / closed.removesuffix('.d')}" in said.err
    assert "may not read these settings" in said.err and "sudo -u zk0d zk0d --check" in said.err


def test_rates() -> None:
    assert parse_rate("20 MB/s") == 20e6
    assert parse_rate("500kB/s") == 5e5
    assert parse_rate("unlimited") is None
    for wrong in ("0 MB/s", "20", 20, "-1 MB/s"):
        with pytest.raises(ValueError):
            parse_rate(wrong)
