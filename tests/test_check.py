from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.command import ROOT, nightbridge

SETTINGS = """
[engine]
batch = 3
[defaults.encoder]
bit_rate = "800k"
[feeds.pier]
url = "rtsp://relay:hu@sh@10.0.0.7/s?channel=1"
password_file = "secret"
read_timeout = "2500ms"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(SETTINGS, encoding="utf-8")
    (tmp_path / "secret").write_text("hush", encoding="utf-8")
    return tmp_path


def test_check_prints_the_effective_settings_as_toml_without_secrets(folder: Path) -> None:
    done = nightbridge(folder, "check", NIGHTBRIDGE__ENGINE__RUNTIME="torch")
    assert (done.returncode, done.stderr) == (0, "")
    assert not re.search("hush|hu@sh|relay:", done.stdout)
    shown = tomllib.loads(done.stdout)
    assert (shown["engine"]["batch"], shown["engine"]["runtime"]) == (3, "torch")
    pier = shown["feeds"]["pier"]
    assert pier["url"] == "rtsp://***@10.0.0.7/s?channel=1"
    assert (pier["read_timeout"], pier["open_timeout"], pier["encoder"]["bit_rate"]) == ("2500ms", "5s", "800k")
    assert "# username is not set" in done.stdout.partition("[feeds.pier]")[2]


def test_what_check_prints_are_settings_again(folder: Path) -> None:
    shown = nightbridge(folder, "check").stdout
    (folder / "again.toml").write_text(shown, encoding="utf-8")
    assert nightbridge(folder, "check", "again.toml").stdout == shown


def test_a_path_where_nothing_is_yet_is_told(folder: Path) -> None:
    (folder / "config.toml").write_text('[feeds.pier]\nurl = "10.0.0.7"\n[feeds.mole]\nurl = "secret"')
    done = nightbridge(folder, "check")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        f"nightbridge: config.toml: [feeds.pier] url is the path {folder / '10.0.0.7'}, which does not exist yet; "
        "the address of a camera begins with rtsp:// or udp://"
    ]


def test_a_path_where_nothing_can_be_seen_is_not_told_to_be_empty(folder: Path) -> None:
    (folder / "config.toml").write_text(f'[feeds.pier]\nurl = "/{"a" * 256}"')
    done = nightbridge(folder, "check")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("feeds", "told"),
    [
        (16, ""),
        (
            17,
            "nightbridge: config.toml: [relay] high_water_mark is 64; 17 feeds need 68, or viewers lose messages\n",
        ),
    ],
)
def test_a_high_water_mark_that_is_too_low_for_so_many_feeds_is_told(folder: Path, feeds: int, told: str) -> None:
    (folder / "config.toml").write_text(
        "".join(f'[feeds.f{number}]\nurl = "udp://:{5000 + number}"\n' for number in range(feeds))
    )
    done = nightbridge(folder, "check")
    assert (done.returncode, done.stderr) == (0, told)


def test_check_of_the_shipped_file_is_clean() -> None:
    assert nightbridge(ROOT, "check").returncode == 0


def test_wrong_settings_end_with_2_and_a_line_for_each_mistake(folder: Path) -> None:
    (folder / "config.toml").write_text('[engine]\nruntime = "tensort"\n[defaults]\nread_timout = "5s"')
    done = nightbridge(folder, "check")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        'nightbridge: config.toml: [engine] runtime is "tensort"; it must be one of auto, tensorrt, torch, openvino',
        "nightbridge: config.toml: [defaults] read_timout is not a key; did you mean read_timeout?",
    ]


def test_a_missing_file_ends_with_2(tmp_path: Path) -> None:
    done = nightbridge(tmp_path, "check")
    assert (done.returncode, done.stderr) == (2, "nightbridge: config.toml: No such file or directory\n")
