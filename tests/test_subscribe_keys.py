from pathlib import Path

import pytest
import zmq
import zmq.auth

from stream import subscribe
from stream.errors import WireError
from stream.publish import Publisher
from stream.settings import CurveSettings, RelaySettings
from stream.subscribe import Subscriber, ViewerKeys
from stream.wire.keys import make_keys
from tests.impostors import Impostor, hangs_up
from tests.published import Camera
from tests.waiting import DEADLINE, wait_until


def test_with_its_keys_a_viewer_reads_an_encrypted_relay(tmp_path: Path) -> None:
    for name in ("relay", "guest"):
        zmq.auth.create_certificates(tmp_path, name)
    curve = CurveSettings(server_secret_key_file=tmp_path / "relay.key_secret", client_keys_folder=tmp_path)
    keys = ViewerKeys(tmp_path / "relay.key", tmp_path / "guest.key_secret")
    with (
        Publisher(RelaySettings(endpoint="tcp://127.0.0.1:*", curve=curve), "run-1") as publisher,
        Subscriber(publisher.endpoint, "pier", keys=keys) as subscriber,
    ):
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show()
        assert subscriber.receive(DEADLINE) is not None
    with pytest.raises(WireError, match=r"guest\.key holds no secret key"):
        Subscriber(publisher.endpoint, keys=ViewerKeys(tmp_path / "relay.key", tmp_path / "guest.key")).__enter__()


@pytest.mark.parametrize("text", ["public-key", 'public-key = "a"'])
def test_keys_that_are_cut_off_are_named_and_not_the_endpoint(tmp_path: Path, text: str) -> None:
    make_keys("guest", tmp_path)
    (tmp_path / "relay.key").write_text(text)
    keys = ViewerKeys(tmp_path / "relay.key", tmp_path / "guest.key_secret")
    with pytest.raises(WireError, match=r"^cannot read the CURVE keys: .*relay\.key"):
        Subscriber("tcp://127.0.0.1:5560", keys=keys).__enter__()


@pytest.mark.parametrize(
    ("encrypted", "shown", "reason"),
    [
        (True, None, "is encrypted and needs --relay-key and --secret-key"),
        (True, "stranger", "rejected this viewer: its public key must be in the relay's client_keys_folder"),
        (False, "guest", "is not encrypted: leave out --relay-key and --secret-key"),
    ],
)
def test_a_viewer_whose_keys_are_refused_is_told_why(
    tmp_path: Path, encrypted: bool, shown: str | None, reason: str
) -> None:
    for name in ("relay", "guest", "stranger"):
        make_keys(name, tmp_path)
    (tmp_path / "guests").mkdir()
    (tmp_path / "guest.key").rename(tmp_path / "guests" / "guest.key")
    curve = CurveSettings(server_secret_key_file=tmp_path / "relay.key_secret", client_keys_folder=tmp_path / "guests")
    keys = ViewerKeys(tmp_path / "relay.key", tmp_path / f"{shown}.key_secret") if shown else None
    settings = RelaySettings(endpoint="tcp://127.0.0.1:*", curve=curve if encrypted else CurveSettings())
    with (
        Publisher(settings, "run-1") as publisher,
        Subscriber(publisher.endpoint, "pier", keys=keys) as subscriber,
        pytest.raises(WireError, match=reason),
    ):
        subscriber.receive(DEADLINE)


def test_a_viewer_without_keys_whose_connections_all_end_at_once_is_told_of_encryption(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Impostor(hangs_up) as impostor, Subscriber(f"tcp://127.0.0.1:{impostor.port}", "pier") as subscriber:
        wait_until(lambda: caplog.messages, "a word about the connections")
        assert subscriber.trouble == (
            f"connections to {subscriber.endpoint} fail in the handshake: what listens there is not a relay, "
            "or an encrypted relay, which needs --relay-key and --secret-key (docs/deploy.md)"
        )
        assert subscriber.receive(0) is None
    assert caplog.messages == [f"{subscriber.trouble}; still retrying"]


def test_who_asks_only_how_feeds_do_is_not_warned_of_connections_that_end(caplog: pytest.LogCaptureFixture) -> None:
    with Impostor(hangs_up) as impostor:
        with Subscriber(f"tcp://127.0.0.1:{impostor.port}", "pier", ("status", "feeds")) as subscriber:
            wait_until(lambda: impostor.accepted > subscribe.BROKEN_MOST + 1, "more connections than it is told after")
            assert subscriber.trouble is not None
        assert caplog.messages == []
