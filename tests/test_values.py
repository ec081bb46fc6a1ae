from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import pytest
from pydantic import TypeAdapter, ValidationError

from stream.settings.values import Address, BitRate, Duration, HostPort, Memory, bits_from, read_from, redact

DURATION = TypeAdapter(Duration)
BIT_RATE = TypeAdapter(BitRate)
MEMORY = TypeAdapter(Memory)
ADDRESS = TypeAdapter[str](Address)
HOST_PORT = TypeAdapter(HostPort)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("10s", 10), ("1.5s", 1.5), ("2m", 120), ("1ms", 0.001), ("30m", 1800)]
)
def test_a_duration_is_seconds(text: str, seconds: float) -> None:
    assert DURATION.validate_python(text) == seconds


def test_a_number_is_seconds_in_python_and_no_duration_in_a_file(tmp_path: Path) -> None:
    for number in (5, 5.0):
        assert DURATION.validate_python(number) == 5
        with read_from(tmp_path), pytest.raises(ValidationError, match="a duration"):
            DURATION.validate_python(number)


@pytest.mark.parametrize(
    "text", ["", "5", "5 s", "-5s", "5sec", "0s", "31m", "1e3s", "nan", "fast", 0, -1.0, True, None]
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValidationError, match='a duration such as "500ms", "10s" or "2m"'):
        DURATION.validate_python(text)


@pytest.mark.parametrize(("text", "bits"), [("800k", 800_000), ("2M", 2_000_000), ("1.5M", 1_500_000), (9_001, 9_001)])
def test_a_bit_rate_is_bits_a_second(text: object, bits: int) -> None:
    assert BIT_RATE.validate_python(text) == bits


@pytest.mark.parametrize("text", ["", "2", "2m", "2 M", "-2M", "0k", "2G", "fast", 0, 2.5, True, None])
def test_what_is_no_bit_rate_is_refused(text: object) -> None:
    with pytest.raises(ValidationError, match='a bit rate such as "800k" or "2M"'):
        BIT_RATE.validate_python(text)


def test_the_lowest_bit_rate_is_told() -> None:
    at_least = TypeAdapter[int](Annotated[int, bits_from(12_000)])
    assert at_least.validate_python("12k") == 12_000
    with pytest.raises(ValidationError, match='a bit rate such as "800k" or "2M", from 12k to 1000M'):
        at_least.validate_python("11.9k")
    with pytest.raises(ValidationError, match="from 4k to 1000M"):
        BIT_RATE.validate_python("3k")


@pytest.mark.parametrize(("text", "count"), [("128MB", 128_000_000), ("1.5GB", 1_500_000_000), (4_000_000, 4_000_000)])
def test_memory_is_bytes(text: object, count: int) -> None:
    assert MEMORY.validate_python(text) == count


@pytest.mark.parametrize("text", ["", "128", "128M", "128 MB", "0MB", "100GB", "much", 0, 2.5, True, None])
def test_what_is_no_memory_is_refused(text: object) -> None:
    with pytest.raises(ValidationError, match=r"an amount of memory .* from 1MB to 64GB"):
        MEMORY.validate_python(text)


@pytest.mark.parametrize("text", ["128MB", "1.5MB", "2000MB"])
def test_memory_is_shown_in_megabytes(text: str) -> None:
    assert MEMORY.dump_python(MEMORY.validate_python(text), mode="json") == text


@pytest.mark.parametrize("text", ["127.0.0.1:9560", "localhost:0", "[::1]:65535"])
def test_where_to_listen_is_a_host_and_a_port(text: str) -> None:
    assert HOST_PORT.validate_python(text) == text


@pytest.mark.parametrize("text", ["", "9560", ":9560", "::1:9560", "http://localhost:9560", "a:123456", "a:-1", "a:٣"])
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match=r'HOST:PORT such as "127\.0\.0\.1:9560"'):
        HOST_PORT.validate_python(text)


@pytest.mark.parametrize("text", ["127.0.0.1:65536", "[::1]:99999"])
def test_a_port_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="HOST:PORT with a port from 0 to 65535"):
        HOST_PORT.validate_python(text)


@pytest.mark.parametrize("text", ["10.0.0..1:9560", f"{'a' * 64}:9560"])
def test_a_host_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="HOST:PORT with a host whose parts have 1 to 63 letters"):
        HOST_PORT.validate_python(text)


@pytest.mark.parametrize("url", ["rtsp://", "rtsp:///x", "rtsp://host:port/x", "rtsp://a b/x"])
def test_an_address_without_meaning_is_told(url: str) -> None:
    with pytest.raises(ValidationError, match=r"rtsp://HOST\[:PORT\]\[/PATH\]"):
        ADDRESS.validate_python(url)


def test_the_form_of_an_address_is_told_for_its_own_scheme() -> None:
    with pytest.raises(ValidationError, match=r"http://HOST\[:PORT\]\[/PATH\]"):
        ADDRESS.validate_python("http://host:99999/")


@pytest.mark.parametrize("text", ["500ms", "10s", "2m", "90s", "1ms", "33.333ms", "30m"])
def test_a_duration_is_shown_as_it_is_written(text: str) -> None:
    assert DURATION.dump_python(DURATION.validate_python(text), mode="json") == text


@pytest.mark.parametrize("text", ["800k", "2M", "1500k", 9_001])
def test_a_bit_rate_is_shown_as_it_is_written(text: object) -> None:
    assert BIT_RATE.dump_python(BIT_RATE.validate_python(text), mode="json") == text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://10.0.0.7:554/stream1", "rtsp://10.0.0.7:554/stream1"),
        ("rtsp://relay:pa@ss:w/o?r#d@10.0.0.7:554/s?channel=1", "rtsp://***@10.0.0.7:554/s?channel=1"),
        ("rtsp://relay@10.0.0.7/s", "rtsp://***@10.0.0.7/s"),
        ("rtsp://10.0.0.7/s?user=relay&password=x/y&channel=1", "rtsp://10.0.0.7/s?user=***&password=***&channel=1"),
        ("rtsp://10.0.0.7/user=relay_password=x_channel=1", "rtsp://10.0.0.7/user=***"),
        ("udp://@239.1.2.3:5000?pkt_size=1316", "udp://@239.1.2.3:5000?pkt_size=1316"),
        ("relay:secret@10.0.0.7/s", "***@10.0.0.7/s"),
        ("http://10.0.0.7/s?usr=admin&psw=x&channel=1", "http://10.0.0.7/s?usr=***&psw=***&channel=1"),
        ("rtsp://10.0.0.7/s?u=admin&p=x&stream=2", "rtsp://10.0.0.7/s?u=***&p=***&stream=2"),
        ("http://10.0.0.7/s.cgi?user=admin&pw=x&channel=1", "http://10.0.0.7/s.cgi?user=***&pw=***&channel=1"),
        ("http://10.0.0.7/s.cgi?_sid=x&sid=y&SessionID=z", "http://10.0.0.7/s.cgi?_sid=***&sid=***&SessionID=***"),
        ("https://h/s.m3u8?X-Amz-Signature=ab&X-Amz-Date=1", "https://h/s.m3u8?X-Amz-Signature=***&X-Amz-Date=1"),
        ("/missions/night@pier key=5.mkv", "/missions/night@pier key=5.mkv"),
    ],
)
def test_a_url_is_shown_without_credentials(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_no_password_in_a_url_is_ever_shown() -> None:
    chance = random.Random(7)
    for _ in range(2_000):
        password = "".join(chance.choices(string.ascii_letters + "@:/?#&=%[]!$ ", k=chance.randint(1, 20)))
        for written in (f"~{password}~", quote(f"~{password}~", safe="")):
            for url in (f"rtsp://relay:{written}@10.0.0.7:554/s?channel=1", f"relay:{written}@10.0.0.7/s"):
                assert written not in redact(url)
                assert redact(url).endswith(("@10.0.0.7:554/s?channel=1", "@10.0.0.7/s"))
