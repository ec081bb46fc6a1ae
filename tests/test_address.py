from __future__ import annotations

import pytest

from stream.address import RemoteAddress
from stream.errors import SourceUnsupported


@pytest.mark.parametrize(
    ("url", "host", "port", "location", "username", "password"),
    [
        ("rtsp://host/path", "host", 554, "host/path", None, None),
        ("rtsps://host", "host", 322, "host", None, None),
        ("RTSP://10.0.0.7:8554/a?b=c#d", "10.0.0.7", 8554, "10.0.0.7:8554/a?b=c#d", None, None),
        ("http://[fe80::1]:81/x", "fe80::1", 81, "[fe80::1]:81/x", None, None),
        ("rtsp://[fe80::1%eth0.10]:81/x", "fe80::1%eth0.10", 81, "[fe80::1%eth0.10]:81/x", None, None),
        ("rtsp://[fe80::1%br-lan]/x", "fe80::1%br-lan", 554, "[fe80::1%br-lan]/x", None, None),
        ("https://me@host/", "host", 443, "host/", "me", None),
        ("rtsp://me:secret@host/path", "host", 554, "host/path", "me", "secret"),
        ("rtsp://me:@host", "host", 554, "host", "me", ""),
        ("rtsp://me:p%40ss%2f@host/path", "host", 554, "host/path", "me", "p@ss/"),
        ("rtsp://me:100%@host/path", "host", 554, "host/path", "me", "100%"),
        ("rtsp://user:p@ss:w/ord@host/path", "host", 554, "host/path", "user", "p@ss:w/ord"),
        ("rtsp://user:p#a?b/c@host:99/path", "host", 99, "host:99/path", "user", "p#a?b/c"),
        ("rtsp://user:a@b@host/path", "host", 554, "host/path", "user", "a@b"),
        ("rtsp://host/stream@1", "host", 554, "host/stream@1", None, None),
        ("rtsp://me:pw@host/live?to=a@b.c", "host", 554, "host/live?to=a@b.c", "me", "pw"),
    ],
)
def test_an_address_is_taken_apart(
    url: str, host: str, port: int, location: str, username: str | None, password: str | None
) -> None:
    address = RemoteAddress.of(url)
    assert (address.host, address.port, address.location) == (host, port, location)
    assert (address.username, address.password) == (username, password)


@pytest.mark.parametrize("url", ["rtsp://", "rtsp://:554/x", "rtsp://host:0/", "rtsp://host:65536/", "rtsp://h h/"])
def test_an_address_without_a_host_or_with_an_impossible_port_is_malformed(url: str) -> None:
    with pytest.raises(SourceUnsupported, match=r"malformed; must be rtsp://HOST\[:PORT\]\[/PATH\]") as wrong:
        RemoteAddress.of(url)
    assert wrong.value.reason == "address"


@pytest.mark.parametrize("nasty", ["@/:?#%&= ", "\\\"'[]{}<>^`", "|~äß€", "%41", "%%%", ""])
def test_credentials_of_any_characters_survive_the_way_to_ffmpeg(nasty: str) -> None:
    written = RemoteAddress.of("rtsp://host/path").with_credentials(nasty.replace(":", ""), nasty)
    read = RemoteAddress.of(written)
    assert (read.username, read.password, read.location) == (nasty.replace(":", ""), nasty, "host/path")


def test_a_password_that_is_no_utf_8_reaches_ffmpeg_byte_for_byte() -> None:
    address = RemoteAddress.of("rtsp://me:k%FCche@host/x")
    assert address.with_credentials(None, None) == "rtsp://me:k%FCche@host/x"
    assert address.with_credentials(None, "k\udcfcche") == "rtsp://me:k%FCche@host/x"  # as os.environ gives it


def test_credentials_in_their_own_keys_stand_above_those_in_the_address() -> None:
    address = RemoteAddress.of("rtsp://me:one@host/x")
    assert address.with_credentials(None, None) == "rtsp://me:one@host/x"
    assert address.with_credentials("you", None) == "rtsp://you:one@host/x"
    assert address.with_credentials(None, "two") == "rtsp://me:two@host/x"
    assert RemoteAddress.of("rtsp://host/x").with_credentials(None, None) == "rtsp://host/x"


@pytest.mark.parametrize(("user", "password"), [("a:b", "x"), ("me", "x" * 126), ("me", "%" * 42)])
def test_credentials_that_cannot_be_sent_are_told_and_not_shown(user: str, password: str) -> None:
    with pytest.raises(SourceUnsupported, match="must") as wrong:
        RemoteAddress.of("rtsp://host/x").with_credentials(user, password)
    assert wrong.value.reason == "address"
    assert password not in str(wrong.value).replace("rtsp://host/x", "")


def test_nothing_secret_is_in_what_an_address_looks_like() -> None:
    assert "secret" not in repr(RemoteAddress.of("rtsp://me:secret@host/x"))
