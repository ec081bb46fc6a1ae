from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from engines.cards import SHIPPED as WEIGHTS_FOLDER
from stream.errors import SettingsError
from stream.settings import EncoderSettings, EngineSettings, FeedSettings, Settings, load_settings, require_weights
from stream.wire.keys import make_keys

SHIPPED = Path(__file__).parents[1] / "config.toml"


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(path: Path) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert caught.value.__cause__ is None
    return [line.removeprefix(f"{path.parent}/") for line in str(caught.value).split("\n")]


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
    with pytest.raises(SettingsError, match=rf"^config\.toml: \[engine\] {card} is no card: "):
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


# Mistakes

DURATION = 'a duration such as "500ms", "10s" or "2m", from 1ms to 30m'
BIT_RATE = 'a bit rate such as "800k" or "2M", from 4k to 1000M'
ENDPOINT = 'an endpoint such as "tcp://127.0.0.1:5560" or "ipc:///run/nightbridge"'
ADDRESS = "a path, or an address that begins with one of file://, http://, https://, rtsp://, rtsps://, udp://"
NAME = "1 to 64 of a-z, 0-9, _ and -, beginning with a letter or a digit"
RUNTIME = "one of auto, tensorrt, torch, openvino"
WEIGHTS = "one of field, field-lite, paper, or a folder of weights"
SECRET_KEY = "a file with a secret key, as `nightbridge keys` makes them"
UDP = (
    "udp://HOST:PORT, for multicast also ?localaddr=ADDRESS of an interface, of IPv6 also its name, "
    "and SOURCE@ in front of an IPv4 group"
)
ENGINE_KEYS = "runtime, weights, precision, batch, threads, parallel, cache"
TABLES = "[relay], [engine], [defaults], [feeds]"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[engine]\nruntime = "tensort"', f'[engine] runtime is "tensort"; it must be {RUNTIME}'),
        ("[engine]\nruntime = 3", f"[engine] runtime is 3; it must be {RUNTIME}"),
        ("[engine.runtime]", f"[engine.runtime] is a table; it must be {RUNTIME}"),
        ("[engine]\nbatch = 0", "[engine] batch is 0; it must be a whole number from 1 to 32"),
        ('[engine]\nbatch = "8"', '[engine] batch is "8"; it must be a whole number from 1 to 32'),
        ("[engine]\nthreads = true", "[engine] threads is true; it must be a whole number from 0 to 1024"),
        ("[engine]\nthreads = [1]", "[engine] threads is a list; it must be a whole number from 0 to 1024"),
        ('[engine]\nweights = ""', f'[engine] weights is ""; it must be {WEIGHTS}'),
        ('[engine]\nweights = "feild"', f'[engine] weights is "feild"; it must be {WEIGHTS}'),
        (
            '[engine]\nruntime = "openvino"\nprecision = "fp16"',
            "[engine] has runtime openvino with precision fp16; "
            "with that runtime it must be one of auto, fp32, bf16, int8",
        ),
        (
            '[engine]\ncache = "/dev/null/x"',
            '[engine] cache is "/dev/null/x"; it must be a folder, or where one can be made (/dev/null is none)',
        ),
        (
            '[relay]\nendpoint = "tcp://0.0.0.0:99999"',
            '[relay] endpoint is "tcp://0.0.0.0:99999"; it must be tcp://HOST:PORT with a port from 0 to 65535',
        ),
        (
            '[relay.curve]\nserver_secret_key_file = "/dev/null"',
            f'[relay.curve] server_secret_key_file is "/dev/null"; it must be {SECRET_KEY}',
        ),
        ('[feeds.pier]\nurl = "udp://0.0.0.0"', f'[feeds.pier] url is "udp://0.0.0.0"; it must be {UDP}'),
        *(
            (f'[feeds.pier]\nurl = "{url}"', f'[feeds.pier] url is "{url}"; it must be {UDP}')
            for url in ("udp://239.1.2.3:5000?localaddr=eth0", "udp://[ff05::5]:5011?localaddr=10.0.0.1")
        ),
        ('[feeds.pier]\nurl = "udp://:70000"', f'[feeds.pier] url is "udp://:70000"; it must be {UDP}'),
        (
            '[feeds.pier]\nurl = "rtsp://10.0.0.7:0/s"',
            '[feeds.pier] url is "rtsp://10.0.0.7:0/s"; it must be rtsp://HOST[:PORT][/PATH]',
        ),
        (
            '[feeds.pier]\nurl = "udp://127.0.0.1:5004"\n[feeds.mole]\nurl = "udp://:5004"',
            "[feeds] has pier and mole at UDP port 5004; each must have a port or an address of its own",
        ),
        (
            '[feeds.pier]\nurl = "udp://239.1.1.1:5004"\n[feeds.mole]\nurl = "udp://0.0.0.0:5004"',
            "[feeds] has pier and mole at UDP port 5004; each must have a port or an address of its own",
        ),
        ("[engine]\ncache = 3", "[engine] cache is 3; it must be a path"),
        ("engine = 3", "engine is 3; it must be a table"),
        ('[relay]\nendpoint = "localhost"', f'[relay] endpoint is "localhost"; it must be {ENDPOINT}'),
        ('[relay]\nlog_level = "loud"', '[relay] log_level is "loud"; it must be one of debug, info, warning, error'),
        *(
            (
                f'[relay]\nendpoint = "tcp://{host}:5590"\nmetrics = "{other}:5590"',
                "[relay] has endpoint and metrics at TCP port 5590; each must have a port or an address of its own",
            )
            for host, other in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("10.0.0.2", "[::]"))
        ),
        (
            '[relay.curve]\nclient_keys_folder = "/"',
            "[relay.curve] has client_keys_folder alone; it must have server_secret_key_file too",
        ),
        (
            '[relay.curve]\nclient_keys_folder = "/no"',
            '[relay.curve] client_keys_folder is "/no"; '
            "it must be a folder that can be read (/no: No such file or directory)",
        ),
        ("[defaults]\npublish_data = 1", "[defaults] publish_data is 1; it must be true or false"),
        ('[defaults]\nread_timeout = "5 s"', f'[defaults] read_timeout is "5 s"; it must be {DURATION}'),
        ("[defaults]\nread_timeout = 5.0", f"[defaults] read_timeout is 5.0; it must be {DURATION}"),
        ('[defaults.encoder]\nbit_rate = "2k"', f'[defaults.encoder] bit_rate is "2k"; it must be {BIT_RATE}'),
        ('[defaults.encoder]\nbit_rate = "2G"', f'[defaults.encoder] bit_rate is "2G"; it must be {BIT_RATE}'),
        ("[defaults]\nusername = 3", "[defaults] username is 3; it must be text"),
        ("[feeds.pier]", "[feeds.pier] url is missing"),
        ('[feeds.pier]\nurl = ""', f'[feeds.pier] url is ""; it must be {ADDRESS}'),
        ('[feeds.pier]\nurl = "srt://camera"', f'[feeds.pier] url is "srt://camera"; it must be {ADDRESS}'),
        ('[relay]\nmetrics = "9560"', '[relay] metrics is "9560"; it must be HOST:PORT such as "127.0.0.1:9560"'),
        ("[defaults]\nspeed = 0", "[defaults] speed is 0; it must be a number from 0.01 to 100"),
        (
            '[defaults]\nmemory = "9"',
            '[defaults] memory is "9"; it must be an amount of memory such as "128MB" or "1.5GB", from 1MB to 64GB',
        ),
        ('[defaults]\ntransport = "quic"', '[defaults] transport is "quic"; it must be one of auto, udp, tcp'),
        ('[defaults]\ndecoder = "cuda"', '[defaults] decoder is "cuda"; it must be one of software, nvdec, auto'),
        (
            '[feeds.pier]\nurl = "udp://:1"\nencoder.hardware = "nvdec"',
            '[feeds.pier.encoder] hardware is "nvdec"; it must be one of none, nvenc, auto',
        ),
        ('[feeds]\npier = "udp://:5000"', '[feeds] pier is "udp://:5000"; it must be a table'),
        ("[[feeds]]", "feeds is a list; it must be a table"),
        ('[feeds.Pier]\nurl = "a"', f"[feeds.Pier] is no name for a feed; it must be {NAME}"),
        ('[feeds."a/b"]\nurl = "a"', f'[feeds."a/b"] is no name for a feed; it must be {NAME}'),
        ('[defaults]\nread_timout = "5s"', "[defaults] read_timout is not a key; did you mean read_timeout?"),
        ('[defaults]\nbit_rate = "1M"', "[defaults] bit_rate is not a key; did you mean [defaults.encoder] bit_rate?"),
        ("[relay.curves]", "[relay.curves] is not a table; did you mean [relay.curve]?"),
        ("[engine]\nfps = 3", f"[engine] fps is not a key; it must be one of {ENGINE_KEYS}"),
        ("[feed.pier]", "[feed] is not a table; did you mean [feeds]?"),
        ("batch = 3", "batch is not a key; did you mean [engine] batch?"),
        ('"a\\nb" = 3', f'"a\\nb" is not a key; it must be one of {TABLES}'),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    assert mistakes(written(tmp_path, text)) == [f"config.toml: {line}"]


@pytest.mark.parametrize(
    ("table", "key"), [("engine", "cache"), ("engine", "weights"), ("relay.curve", "client_keys_folder")]
)
def test_a_path_that_the_system_does_not_take_is_a_mistake_like_any_other(tmp_path: Path, table: str, key: str) -> None:
    path = f"/{'a' * 256}"
    [line] = mistakes(written(tmp_path, f'[{table}]\n{key} = "{path}"'))
    assert line.startswith(f"config.toml: [{table}] {key} is")
    assert line.endswith(f"({path}: File name too long)")


@pytest.mark.parametrize("text", ["secret-key", 'public-key = "a"\nsecret-key = "b"'])
def test_keys_that_are_cut_off_are_a_mistake_like_any_other(tmp_path: Path, text: str) -> None:
    (tmp_path / "relay.key_secret").write_text(text)
    (tmp_path / "guests").mkdir()
    (tmp_path / "guests" / "guest.key").write_text(text.replace("secret", "public"))
    secret = '[relay.curve]\nserver_secret_key_file = "relay.key_secret"'
    wrong = f'[relay.curve] server_secret_key_file is "relay.key_secret"; it must be {SECRET_KEY}'
    assert mistakes(written(tmp_path, secret)) == [f"config.toml: {wrong}"]
    make_keys("good", tmp_path)
    guests = '[relay.curve]\nserver_secret_key_file = "good.key_secret"\nclient_keys_folder = "guests"'
    [line] = mistakes(written(tmp_path, guests))
    assert 'client_keys_folder is "guests"; it must be a folder whose .key files hold public keys' in line
    assert "guest.key" in line


def test_feeds_may_share_a_port_by_addresses_of_their_own_and_by_groups(tmp_path: Path) -> None:
    urls = ("udp://127.0.0.1:5004", "udp://127.0.0.2:5004", "udp://239.1.1.1:5004", "udp://239.1.1.2:5004")
    urls += ("udp://0.0.0.0:5005", "udp://[::1]:5005", "udp://[ff02::5]:5005")
    tables = "".join(f'[feeds.f{number}]\nurl = "{url}"\n' for number, url in enumerate(urls))
    assert len(load_settings(written(tmp_path, tables)).feeds) == 7


def test_all_mistakes_are_told_and_those_of_the_defaults_once(tmp_path: Path) -> None:
    text = """
        [defaults]
        read_timeout = "soon"
        [feeds.pier]
        url = "udp://:5000"
        fps = 25
        [feeds.mole]
        mode = "alive"
        """
    lines = mistakes(written(tmp_path, text))
    assert [line.split(" ", 3)[1:3] for line in lines] == [
        ["[defaults]", "read_timeout"],
        ["[feeds.pier]", "fps"],
        ["[feeds.mole]", "mode"],
        ["[feeds.mole]", "url"],
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"[engine]\nbatch = \n", "Invalid value (at line 2, column 9)"),
        (b"[engine]\n[engine]\n", "Cannot declare ('engine',) twice (at line 2, column 8)"),
        (b"# \xff\n", "it must be UTF-8 text"),
        (b"a = " + b"[" * 3000, "too many brackets inside one another"),
    ],
)
def test_a_file_that_is_no_toml_is_one_line(tmp_path: Path, text: bytes, line: str) -> None:
    (tmp_path / "config.toml").write_bytes(text)
    assert mistakes(tmp_path / "config.toml") == [f"config.toml: {line}"]


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    assert mistakes(tmp_path / "config.toml") == ["config.toml: No such file or directory"]


# Passwords


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
