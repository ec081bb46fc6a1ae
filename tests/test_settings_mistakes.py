from __future__ import annotations

from pathlib import Path

import pytest

from stream.settings import load_settings
from stream.wire.keys import make_keys
from tests.settings_file import mistakes, written

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
            '[engine] cache is "/dev/null/x"; it must be a folder, '
            "or where one can be made (/dev/null is not a folder)",
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
        ('[relay]\nendpoint = "ipc://wire"', f'[relay] endpoint is "ipc://wire"; it must be {ENDPOINT}'),
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
        ('[feeds.Pier]\nurl = "a"', f"[feeds.Pier] is not a valid feed name; it must be {NAME}"),
        ('[feeds."a/b"]\nurl = "a"', f'[feeds."a/b"] is not a valid feed name; it must be {NAME}'),
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
        (b"a = " + b"[" * 3000, "brackets are nested too deeply"),
    ],
)
def test_a_file_that_is_no_toml_is_one_line(tmp_path: Path, text: bytes, line: str) -> None:
    (tmp_path / "config.toml").write_bytes(text)
    assert mistakes(tmp_path / "config.toml") == [f"config.toml: {line}"]


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    assert mistakes(tmp_path / "config.toml") == ["config.toml: No such file or directory"]
