"""Whom an encrypted relay lets in, and what it and its viewers tell of the others."""

from __future__ import annotations

import os
import resource
from errno import EMFILE
from pathlib import Path

import pytest
import zmq.auth

from stream.errors import WireError
from stream.publish import Publisher
from stream.settings import CurveSettings, RelaySettings
from stream.subscribe import Subscriber, ViewerKeys
from stream.wire import doorkeeper
from stream.wire.doorkeeper import AllowedViewers
from stream.wire.keys import make_keys, read_keys
from tests.published import Camera
from tests.waiting import DEADLINE, wait_until


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the key files of a relay, a guest and a stranger, and a folder of guests."""
    for name in ("relay", "guest", "stranger"):
        make_keys(name, tmp_path)
    (tmp_path / "guests").mkdir()
    (tmp_path / "guest.key").rename(tmp_path / "guests" / "guest.key")
    return tmp_path


def encrypted(keys: Path, guests: bool = True) -> RelaySettings:
    curve = CurveSettings(
        server_secret_key_file=keys / "relay.key_secret", client_keys_folder=keys / "guests" if guests else None
    )
    return RelaySettings(endpoint="tcp://127.0.0.1:*", curve=curve)


def viewer(publisher: Publisher, keys: Path, name: str, relay_key: str = "relay.key") -> Subscriber:
    return Subscriber(publisher.endpoint, "pier", keys=ViewerKeys(keys / relay_key, keys / f"{name}.key_secret"))


def public_key(path: Path) -> bytes:
    key, _ = zmq.auth.load_certificate(path)
    return key


def assert_sees(publisher: Publisher, subscriber: Subscriber) -> None:
    camera = Camera(publisher)
    camera.wait_for_viewer()
    camera.show()
    assert subscriber.receive(DEADLINE) is not None


def assert_turned_away(subscriber: Subscriber) -> None:
    with pytest.raises(WireError, match="rejected this viewer"):
        subscriber.receive(DEADLINE)


def test_only_the_viewers_whose_keys_lie_in_the_folder_are_let_in(keys: Path) -> None:
    with Publisher(encrypted(keys), "run-1") as publisher:
        with viewer(publisher, keys, "stranger") as stranger:
            assert_turned_away(stranger)
        with viewer(publisher, keys, "guest") as guest:
            assert_sees(publisher, guest)


def test_without_a_folder_all_that_know_the_relays_key_are_let_in(keys: Path) -> None:
    with (
        Publisher(encrypted(keys, guests=False), "run-1") as publisher,
        viewer(publisher, keys, "stranger") as stranger,
    ):
        assert_sees(publisher, stranger)


def test_keys_that_are_added_and_taken_away_count_from_the_next_connection_on(keys: Path) -> None:
    with Publisher(encrypted(keys), "run-1") as publisher:
        (keys / "stranger.key").rename(keys / "guests" / "stranger.key")
        (keys / "guests" / "guest.key").unlink()
        with viewer(publisher, keys, "stranger") as stranger:
            assert_sees(publisher, stranger)
        with viewer(publisher, keys, "guest") as guest:
            assert_turned_away(guest)


def test_a_key_in_a_hidden_file_lets_nobody_in(keys: Path) -> None:
    (keys / "guests" / "guest.key").rename(keys / "guests" / ".guest.key")
    guests = AllowedViewers(keys / "guests")
    public, _ = read_keys(keys / "guests" / ".guest.key")
    assert not guests.callback("global", public)
    (keys / "guests" / ".guest.key").rename(keys / "guests" / "guest.key")
    assert guests.callback("global", public)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nothing", "No public key found in {}"),
        ("public-key", "{} names a key without its value"),
        ('public-key = "a"', "{} holds an invalid key; it must be 40 characters of Z85"),
    ],
)
def test_a_key_that_is_damaged_later_lets_nobody_in_and_is_told_once(
    keys: Path, caplog: pytest.LogCaptureFixture, text: str, reason: str
) -> None:
    with Publisher(encrypted(keys), "run-1") as publisher:
        (keys / "guests" / "broken.key").write_text(text)
        for _ in range(2):
            with viewer(publisher, keys, "stranger") as stranger:
                assert_turned_away(stranger)
        with viewer(publisher, keys, "guest") as guest:
            assert_sees(publisher, guest)
    told = [line for line in caplog.messages if "broken.key" in line]
    path = keys / "guests" / "broken.key"
    assert told == [f"ignoring a viewer's key that cannot be read: {reason.format(path)}"]


def test_keys_that_are_damaged_before_the_relay_starts_are_named(keys: Path) -> None:
    settings = encrypted(keys)
    (keys / "guests" / "broken.key").write_text("nothing")
    with pytest.raises(WireError, match=r"broken\.key"):
        Publisher(settings, "run-1").__enter__()
    (keys / "guests" / "broken.key").unlink()
    (keys / "relay.key").replace(keys / "relay.key_secret")
    with pytest.raises(WireError, match=r"relay\.key_secret holds no secret key"):
        Publisher(settings, "run-1").__enter__()


def test_the_relay_tells_whom_it_turned_away(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Publisher(encrypted(keys), "run-1") as publisher, viewer(publisher, keys, "stranger") as stranger:
        assert_turned_away(stranger)
    key = public_key(keys / "stranger.key").decode()
    assert caplog.messages == [f"a viewer was turned away: its public key {key} is not in {keys / 'guests'}"]


def test_many_viewers_that_are_turned_away_are_counted_and_told_in_one_line(
    keys: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests = AllowedViewers(keys / "guests")
    for now in (100.0, 101.0, 109.9, 110.0):
        monkeypatch.setattr(doorkeeper, "monotonic", lambda now=now: now)
        assert not guests.callback("*", public_key(keys / "stranger.key"))
        assert guests.callback("*", public_key(keys / "guests" / "guest.key"))
    one, other = caplog.messages
    assert one.startswith("a viewer was turned away: its")
    assert other.startswith("a viewer was turned away, after 2 others: its")


def test_in_a_time_without_file_descriptors_no_viewer_is_judged_and_it_is_got_over(
    keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guests, key = AllowedViewers(keys / "guests"), public_key(keys / "guests" / "guest.key")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            guests.callback("*", key)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert guests.callback("*", key)
    assert caplog.messages == [
        f"viewers cannot be checked and will retry: {keys / 'guests'} cannot be read: Too many open files"
    ]


def test_a_file_that_cannot_be_opened_for_want_of_descriptors_is_not_taken_for_one_without_a_key(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> tuple[bytes, bytes | None]:
        raise OSError(EMFILE, os.strerror(EMFILE), str(path))

    guests, key = AllowedViewers(keys / "guests"), public_key(keys / "guests" / "guest.key")
    with monkeypatch.context() as patched:
        patched.setattr(doorkeeper, "read_keys", fail)
        with pytest.raises(OSError, match="Too many open files"):
            guests.callback("*", key)
    assert guests.callback("*", key)


def test_a_viewer_that_comes_while_the_keys_cannot_be_read_tries_on_and_is_let_in_later(
    keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Publisher(encrypted(keys), "run-1") as publisher:
        (keys / "guests").rename(keys / "away")
        with viewer(publisher, keys, "guest") as guest:
            wait_until(lambda: bool(caplog.messages), "a word about the keys")
            (keys / "away").rename(keys / "guests")
            assert_sees(publisher, guest)
    assert caplog.messages[0] == (
        f"viewers cannot be checked and will retry: {keys / 'guests'} cannot be read: No such file or directory"
    )


def test_a_viewer_with_the_key_of_another_relay_is_told_and_tries_on(
    keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Publisher(encrypted(keys), "run-1") as publisher,
        viewer(publisher, keys, "guest", relay_key="stranger.key") as misled,
    ):
        wait_until(lambda: bool(caplog.messages), "a word about the key")
        assert misled.receive(0) is None
    assert caplog.messages == [
        f"connections to {publisher.endpoint} fail in the handshake: what listens there is not a relay, "
        f"or its key is not the one in {keys / 'stranger.key'}, "
        "or it cannot read its viewers' keys at the moment; still retrying"
    ]
