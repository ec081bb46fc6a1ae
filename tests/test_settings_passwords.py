from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from stream.errors import SettingsError
from stream.settings import FeedSettings, Settings, load_settings
from tests.settings_file import SHIPPED, mistakes, written


def test_the_password_is_read_from_its_file_each_time(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(" päss wörd\n", encoding="utf-8")
    feed = FeedSettings(url="udp://:5000", password_file=secret)
    password = feed.password()
    assert password is not None
    assert password.get_secret_value() == " päss wörd"
    assert "päss" not in repr(password)
    secret.unlink()
    with pytest.raises(SettingsError, match=r"password file .*secret: No such file"):
        feed.password()


def test_the_password_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIER_PASSWORD", "hush")
    password = FeedSettings(url="udp://:5000", password_env="PIER_PASSWORD").password()
    assert password is not None
    assert password.get_secret_value() == "hush"


def test_a_feed_without_a_password_has_none() -> None:
    assert FeedSettings(url="udp://:5000").password() is None


def test_a_feed_may_replace_where_the_default_password_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIER_PASSWORD", "hush")
    (tmp_path / "secret").write_text("common")
    text = '[defaults]\npassword_file = "secret"\n[feeds.pier]\nurl = "udp://:1"\npassword_env = "PIER_PASSWORD"'
    password = load_settings(written(tmp_path, text)).feeds["pier"].password()
    assert password is not None
    assert password.get_secret_value() == "hush"


@pytest.mark.parametrize(
    ("own", "username", "password"),
    [
        ('url = "rtsp://own:hush@h/s"', None, None),
        ('url = "rtsp://own@h/s"', None, "common"),
        ('url = "rtsp://own:hush@h/s"\nusername = "me"', "me", None),
        ('url = "rtsp://own:hush@h/s"\npassword_file = "secret"', None, "common"),
        ('url = "rtsp://h/s@1"', "relay", "common"),
    ],
)
def test_credentials_inside_a_feeds_address_stand_above_those_of_the_defaults(
    tmp_path: Path, own: str, username: str | None, password: str | None
) -> None:
    (tmp_path / "secret").write_text("common")
    text = f'[defaults]\nusername = "relay"\npassword_file = "secret"\n[feeds.pier]\n{own}'
    feed = load_settings(written(tmp_path, text)).feeds["pier"]
    found = feed.password()
    assert (feed.username, found and found.get_secret_value()) == (username, password)


def test_a_byte_order_mark_is_part_of_neither_settings_nor_password(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush\n", encoding="utf-8-sig")
    text = '[feeds.pier]\nurl = "udp://:1"\npassword_file = "secret"'
    (tmp_path / "config.toml").write_text(text, encoding="utf-8-sig")
    password = load_settings(tmp_path / "config.toml").feeds["pier"].password()
    assert password is not None
    assert password.get_secret_value() == "hush"


def test_a_missing_password_file_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    line = (
        f'password_file is "secret"; it must be a file that can be read ({tmp_path}/secret: No such file or directory)'
    )
    path = written(tmp_path, '[feeds.pier]\nurl = "udp://:1"\npassword_file = "secret"')
    assert mistakes(path) == [f"config.toml: [feeds.pier] {line}"]


def test_two_passwords_are_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIER_PASSWORD", "hush")
    text = '[feeds.pier]\nurl = "udp://:1"\npassword_file = "config.toml"\npassword_env = "PIER_PASSWORD"'
    line = "has both password_file and password_env; it must have one of them at most"
    assert mistakes(written(tmp_path, text)) == [f"config.toml: [feeds.pier] {line}"]


@pytest.mark.parametrize(
    "text",
    [
        '[feeds.pier]\nurl = "htp://relay:hu@sh/hush@10.0.0.7/s"',
        '[feeds.pier]\nurl = "relay:hush@10.0.0.7/s"',
        '[feeds.pier]\nurl = "rtsp://relay:hush@10.0.0.7/s\\n"',
        '[feeds.pier]\nurl = ["rtsp://relay:hush@10.0.0.7/s"]',
        '[feeds]\npier = "rtsp://relay:hush@10.0.0.7/s"',
        '[[feeds]]\nurl = "rtsp://relay:hush@10.0.0.7/s"',
        '[feeds."rtsp://relay:hush@10.0.0.7/s"]\nurl = "a"',
        '[feeds.pier]\nurl = "a"\npassword = "hush"',
        '[feeds.pier]\nurl = "a"\npassword_env = "hush"',
        '[feeds.pier]\nurl = "a"\npassword_env = ["hush"]',
        '[feeds.pier]\npassword = "hush',
        '[feeds.pier]\nurl = "rtsp://relay:hush@10.0.0.7/s"\nfps = 3',
    ],
)
def test_no_mistake_shows_a_password(tmp_path: Path, text: str) -> None:
    lines = mistakes(written(tmp_path, text))
    assert len(lines) == 1
    assert "hush" not in lines[0]


def test_neither_repr_nor_the_json_form_shows_credentials() -> None:
    feed = FeedSettings(url="rtsp://relay:hush@10.0.0.7/s")
    assert "hush" not in repr(feed)
    assert "hush" not in feed.model_dump_json()
    assert feed.url == "rtsp://relay:hush@10.0.0.7/s"


def test_the_json_form_reads_like_the_file() -> None:
    shown = Settings().model_dump(mode="json", exclude_none=True)
    assert shown == tomllib.loads(SHIPPED.read_text(encoding="utf-8")) | {"feeds": {}}
