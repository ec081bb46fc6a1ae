"""`nightbridge keys`: what it writes, and that relay and viewer can use it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import zmq.auth

from stream.publish import Publisher
from stream.settings import CurveSettings, RelaySettings
from stream.subscribe import Subscriber, ViewerKeys
from stream.wire.keys import make_keys
from stream.wire.messages import Header
from tests.command import nightbridge
from tests.waiting import wait_until


def test_keys_are_made_for_each_name_and_the_secret_is_for_its_owner_alone(tmp_path: Path) -> None:
    done = nightbridge(tmp_path, "keys", "relay", "bridge")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "relay.key is public; relay.key_secret is for relay alone",
        "bridge.key is public; bridge.key_secret is for bridge alone",
    ]
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes["relay.key_secret"] == modes["bridge.key_secret"] == 0o600
    pairs = [zmq.auth.load_certificate(tmp_path / f"{name}.key_secret") for name in ("relay", "bridge")]
    assert [zmq.auth.load_certificate(tmp_path / f"{name}.key") for name in ("relay", "bridge")] == [
        (public, None) for public, _ in pairs
    ]
    assert len({key for pair in pairs for key in pair}) == 4


@pytest.mark.parametrize("kept", ["relay.key", "relay.key_secret"])
def test_a_key_that_is_there_is_kept_and_named(tmp_path: Path, kept: str) -> None:
    (tmp_path / kept).write_text("mine")
    done = nightbridge(tmp_path, "keys", "relay")
    assert (done.returncode, done.stderr) == (1, f"nightbridge: {kept}: File exists\n")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {kept: "mine"}


def test_keys_that_are_there_keep_no_others_from_being_made(tmp_path: Path) -> None:
    (tmp_path / "relay.key").write_text("mine")
    (tmp_path / "harbour.key_secret").write_text("mine, too")
    done = nightbridge(tmp_path, "keys", "relay", "bridge", "harbour")
    told = "nightbridge: relay.key: File exists\nnightbridge: harbour.key_secret: File exists\n"
    assert (done.returncode, done.stderr) == (1, told)
    assert done.stdout == "bridge.key is public; bridge.key_secret is for bridge alone\n"
    made = {"bridge.key", "bridge.key_secret"}
    assert {path.name for path in tmp_path.iterdir()} == {"relay.key", "harbour.key_secret", *made}


@pytest.mark.parametrize("full", ["relay.key", "relay.key_secret"])
def test_a_pair_that_finds_no_room_leaves_nothing_and_can_be_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    write = Path.write_bytes

    def write_where_there_is_room(path: Path, content: bytes) -> int:
        if path.name == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_where_there_is_room)
        with pytest.raises(OSError, match=rf"No space left on device: '.*/{full}'"):
            make_keys("relay", tmp_path)
    assert list(tmp_path.iterdir()) == []
    make_keys("relay", tmp_path)


@pytest.mark.parametrize("name", ["../relay", ".relay", "a b", "x" * 65])
def test_a_name_that_is_no_file_name_is_wrong_use(tmp_path: Path, name: str) -> None:
    assert nightbridge(tmp_path, "keys", name).returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_relay_and_viewer_talk_with_the_keys_that_were_made(tmp_path: Path) -> None:
    (tmp_path / "viewers").mkdir()
    assert nightbridge(tmp_path, "keys", "relay").returncode == 0
    assert nightbridge(tmp_path, "keys", "--out", "viewers", "bridge").returncode == 0
    curve = CurveSettings(server_secret_key_file=tmp_path / "relay.key_secret", client_keys_folder=tmp_path / "viewers")
    keys = ViewerKeys(tmp_path / "relay.key", tmp_path / "viewers" / "bridge.key_secret")
    with (
        Publisher(RelaySettings(endpoint="tcp://127.0.0.1:*", curve=curve), "run-1") as publisher,
        Subscriber(publisher.endpoint, "pier", keys=keys) as viewer,
    ):
        wait_until(lambda: publisher.take_join("pier"), "the viewer")
        publisher.publish("pier", "video", Header(key=True), b"unit")
        message = viewer.receive(10)
        assert message is not None
        assert message.payload == b"unit"
