from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from engines.cards import SHIPPED as WEIGHTS_FOLDER
from stream.errors import SettingsError
from stream.settings import EncoderSettings, EngineSettings, Settings, load_settings, require_weights
from tests.settings_file import SHIPPED, mistakes, written


def keys(model: type[BaseModel], table: str = "") -> Iterator[tuple[str, str, Any]]:
    """Table, key and default of every setting outside `[feeds]`."""
    for key, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from keys(type(field.default), f"{table}.{key}".lstrip("."))
        elif key != "feeds":
            yield table, key, field.default


# The weights


def test_weights_that_are_being_replaced_are_wrong_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(WEIGHTS_FOLDER / "field-lite", tmp_path / "mine")
    engine = load_settings(written(tmp_path, '[engine]\nweights = "./mine"\n')).engine
    require_weights(engine, "config.toml: [engine]")
    card = tmp_path / "mine" / "card.json"
    card.write_bytes(card.read_bytes()[:20])
    with pytest.raises(SettingsError, match=rf"^config\.toml: \[engine\] {card} is not a valid card: "):
        require_weights(engine, "config.toml: [engine]")
    card.unlink()
    card.mkdir()
    with pytest.raises(SettingsError, match=rf"^config\.toml: \[engine\] {card}: Is a directory$"):
        require_weights(engine, "config.toml: [engine]")


# The shipped file


def test_the_shipped_file_equals_the_defaults() -> None:
    assert load_settings(SHIPPED) == load_settings(None) == Settings()


@pytest.mark.parametrize(("table", "key", "default"), list(keys(Settings)))
def test_the_shipped_file_states_and_explains_every_setting(table: str, key: str, default: object) -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    section = text.partition(f"\n[{table}]\n")[2].partition("\n[")[0]
    mark = "# " if default is None else ""
    assert re.search(rf"^# .*\.\n{mark}{key} = \S", section, re.MULTILINE)


def test_the_example_feed_of_the_shipped_file_can_be_used(tmp_path: Path) -> None:
    example = SHIPPED.read_text(encoding="utf-8").partition("# [feeds.pier]\n")[2]
    lines = [line.removeprefix("# ") for line in example.splitlines() if re.match(r"# (\[|\w+ = )", line)]
    settings = load_settings(written(tmp_path, "\n".join(["[feeds.pier]", *lines])))
    assert settings.feeds["pier"].encoder.bit_rate == 800_000


# Reading


def test_a_feed_has_the_defaults_unless_it_says_otherwise(tmp_path: Path) -> None:
    settings = load_settings(
        written(
            tmp_path,
            """
            [defaults]
            read_timeout = "2500ms"
            age_budget = "3s"
            [defaults.encoder]
            codec = "hevc"
            bit_rate = "800k"
            [feeds.pier]
            url = "udp://:5000"
            age_budget = "4s"
            [feeds.pier.encoder]
            bit_rate = "1M"
            [feeds.mole]
            url = "udp://:5001"
            """,
        )
    )
    pier, mole = settings.feeds["pier"], settings.feeds["mole"]
    assert (pier.read_timeout, pier.age_budget, pier.open_timeout) == (2.5, 4, 5)
    assert pier.encoder == EncoderSettings(codec="hevc", bit_rate=1_000_000)
    assert mole.age_budget == 3
    assert mole.encoder == settings.defaults.encoder == EncoderSettings(codec="hevc", bit_rate=800_000)


def test_relative_paths_start_at_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "pier.secret").write_text("x")
    (tmp_path / "conf" / "mine.net").mkdir()
    (tmp_path / "conf" / "mine.net" / "card.json").write_text(
        '{"name": "mine", "network": "neid-live", "files": {"fp32.onnx": ""}}'
    )
    text = """
        [engine]
        cache = "cache"
        weights = "mine.net"
        [defaults]
        password_file = "pier.secret"
        [feeds.pier]
        url = "missions"
        [feeds.mole]
        url = "udp://:5000"
        """
    path = written(tmp_path / "conf", text)
    monkeypatch.chdir(tmp_path)
    for settings in (load_settings(path), load_settings(path.relative_to(tmp_path))):
        assert settings.engine.cache == path.parent / "cache"
        assert settings.engine.weights == str(path.parent / "mine.net")
        assert settings.feeds["pier"].url == str(path.parent / "missions")
        assert settings.feeds["pier"].password_file == path.parent / "pier.secret"
        assert settings.feeds["mole"].url == "udp://:5000"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        EngineSettings().batch = 3


# The environment


def test_variables_override_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[engine]\nruntime = "torch"\nbatch = 2\n[feeds.pier]\nurl = "udp://:1"\nusername = "relay"'
    monkeypatch.setenv("NIGHTBRIDGE__ENGINE__RUNTIME", "openvino")
    monkeypatch.setenv("NIGHTBRIDGE__ENGINE__THREADS", "3")
    monkeypatch.setenv("NIGHTBRIDGE__ENGINE__CACHE", "/cache")
    monkeypatch.setenv("NIGHTBRIDGE__DEFAULTS__PUBLISH_DATA", "false")
    monkeypatch.setenv("NIGHTBRIDGE__FEEDS__PIER__URL", "udp://:2")
    monkeypatch.setenv("NIGHTBRIDGE__FEEDS__PIER__READ_TIMEOUT", "2m")
    monkeypatch.setenv("NIGHTBRIDGE__FEEDS__PIER__ENCODER__BIT_RATE", "300k")
    monkeypatch.setenv("NIGHTBRIDGE__FEEDS__MOLE__URL", "udp://:3")
    monkeypatch.setenv("NIGHTBRIDGE__FEEDS__MOLE__USERNAME", "1234")
    monkeypatch.setenv("NIGHTBRIDGE__RELAY__ENDPOINT", "")
    settings = load_settings(written(tmp_path, text))
    assert settings.engine == EngineSettings(runtime="openvino", batch=2, threads=3, cache=Path("/cache"))
    pier, mole = settings.feeds["pier"], settings.feeds["mole"]
    assert (pier.url, pier.username, pier.read_timeout, pier.publish_data) == ("udp://:2", "relay", 120, False)
    assert pier.encoder.bit_rate == 300_000
    assert (mole.url, mole.username) == ("udp://:3", "1234")
    assert settings.relay == Settings().relay


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("ENGINE__RUNTIME", "tensort", 'is "tensort"; it must be one of auto, tensorrt, torch, openvino'),
        ("ENGINE__BATCH", "33", "is 33; it must be a whole number from 1 to 32"),
        ("ENGINE__RUNTINE", "x", "is not a key; did you mean NIGHTBRIDGE__ENGINE__RUNTIME?"),
        ("ENGINE", "x", 'is "x"; it must be a table'),
        ("FEEDS__PIER__PUBLISH_DATA", "perhaps", 'is "perhaps"; it must be true or false'),
    ],
)
def test_a_wrong_variable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, line: str
) -> None:
    monkeypatch.setenv(f"NIGHTBRIDGE__{name}", text)
    path = written(tmp_path, '[engine]\nruntime = "auto"\n[feeds.pier]\nurl = "udp://:1"')
    assert mistakes(path) == [f"environment: NIGHTBRIDGE__{name} {line}"]


def test_a_variable_of_an_unknown_table_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTBRIDGE__ENGIN__RUNTIME", "auto")
    line = "environment: NIGHTBRIDGE__ENGIN is not a table; did you mean NIGHTBRIDGE__ENGINE?"
    assert mistakes(written(tmp_path, "")) == [line]


@pytest.mark.parametrize("name", ["NIGHTBRIDGE__FEEDS__PIER__PASSWORD_FILE", "NIGHTBRIDGE__FEEDS__PIER__USERNAME"])
def test_a_variable_that_is_no_utf_8_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "k\udcfcche")
    path = written(tmp_path, '[feeds.pier]\nurl = "udp://:1"')
    assert mistakes(path) == [f"environment: {name} must be UTF-8 text"]


def test_a_feed_of_the_environment_alone_needs_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTBRIDGE__FEEDS__PIER__MODE", "live")
    file = written(tmp_path, "")
    assert mistakes(file) == [f"environment: NIGHTBRIDGE__FEEDS__PIER__URL is missing: {file} has no [feeds.pier]"]


def test_without_a_file_variables_of_feeds_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTBRIDGE__FEEDS__PIER__READ_TIMEOUT", "10s")
    monkeypatch.setenv("NIGHTBRIDGE__ENGINE__BATCH", "3")
    settings = load_settings(None)
    assert (settings.feeds, settings.engine.batch) == ({}, 3)
