"""`nightbridge replay` as its users have it, to viewers: processes, kills, sockets."""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

import av
import numpy as np
import pytest

from engines.cards import NUMBERS, Card, write_card
from stream.files.replay import Bookmark, Playlist, Position
from stream.settings import FeedSettings, load_settings
from stream.subscribe import Subscriber
from stream.wire.messages import Message
from tests.clips import klv_packet, make_clip, read_number
from tests.link import thin_link
from tests.replaying import Replay, finished, replay, result
from tools.replay_wire import ReplayRequest, feed_settings

BEGAN_NS = 1795361400_000_000_000
"""2026-11-22T15:30:00Z."""


def pictures(messages: list[Message]) -> list[int]:
    """The numbers of the pictures that these messages show."""
    decoder = av.CodecContext.create("h264", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    shown = [frame for message in messages for frame in decoder.decode(av.Packet(message.payload))]
    shown += decoder.decode(None)
    return [read_number(frame.to_ndarray()[: frame.height].astype(np.uint8)) for frame in shown]


def collect(viewer: Subscriber, running: Replay, enough: Callable[[list[Message]], bool]) -> list[Message]:
    """All messages until there are enough, or the replay has ended and nothing more comes."""
    came: list[Message] = []
    while not enough(came):
        message = viewer.receive(1)
        if message is not None:
            came.append(message)
        elif running.process.poll() is not None:
            break
    return came


def of_kind(messages: list[Message], kind: str) -> list[Message]:
    return [message for message in messages if message.kind == kind]


def test_at_full_speed_a_slow_viewer_gets_everything_with_the_time_of_the_recording(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a-20261122T153000.000Z.ts", "b-20261122T153004Z.ts"):
        make_clip(tmp_path / "in" / name, pictures=100, size=(96, 80), klv=True)
    words = ("in", "--speed", "max", "--endpoint", "tcp://127.0.0.1:*", "--json", "done.json")
    with replay(tmp_path, *words) as running:
        endpoint = running.endpoint()
        running.waits_for(lambda: "waiting for a viewer of replay" in running.said, "the wait")
        pace = threading.Event()
        with Subscriber(endpoint, "replay", ("video", "data"), max_age=None) as viewer:
            came = collect(viewer, running, lambda came: pace.wait(0.005) or len(came) == 400)
        assert running.code() == 0, running.said
    shown, data = of_kind(came, "video"), of_kind(came, "data")
    assert pictures(shown) == [*range(100), *range(100)]
    assert [message.payload for message in data] == [klv_packet(number) for number in (*range(100), *range(100))]
    assert {message.header.capture_clock for message in came} == {"recording"}
    starts = [message.header.capture_ns for message in (shown[0], shown[100])]
    assert starts == pytest.approx([BEGAN_NS, BEGAN_NS + 4_000_000_000], abs=1)
    done = result(tmp_path)
    assert (done["received"], done["published"], done["dropped"], done["lost"]) == (200, 200, {}, {})
    assert done["complete"]


def test_at_four_times_the_speed_it_takes_a_quarter_of_the_time(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mp4", pictures=401, size=(96, 80))
    with replay(tmp_path, "a.mp4", "--speed", "4", "--endpoint", "tcp://127.0.0.1:*") as running:
        with Subscriber(running.endpoint(), "replay", ("video",), max_age=None) as viewer:
            shown = collect(viewer, running, lambda _: False)
        assert running.code() == 0, running.said
    first, last = shown[0].header, shown[-1].header
    assert first.pts is not None
    assert last.pts is not None
    recorded = float((last.pts - first.pts) * first.time_base)
    assert recorded > 6  # the viewer came in time to see much of it
    assert recorded / 4 - 0.5 < (last.published_ns - first.published_ns) / 1e9 < recorded * 0.9


def test_what_was_killed_goes_on_from_a_key_frame_and_the_viewer_misses_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, name in enumerate(("a.mp4", "b.mp4")):
        make_clip(tmp_path / "in" / name, pictures=200 + number, size=(96, 80), key_interval=10, b_frames=2)
    marks = tmp_path / "state" / "nightbridge" / "replay"
    words = ("in", "--speed", "max", "--endpoint", "tcp://127.0.0.1:*", "--json", "done.json")

    def remembered() -> bool:
        texts = [mark.read_text() for mark in marks.glob("*.json")]
        return any("b.mp4" in text and '"unit":0' not in text for text in texts)

    with replay(tmp_path, *words, pictures=330) as first:
        with Subscriber(first.endpoint(), "replay", ("video",), max_age=None) as viewer:
            before = collect(viewer, first, lambda came: len(came) == 330 and remembered())
        first.kill()
    assert pictures(before) == [*range(200), *range(130)]
    with replay(tmp_path, *words) as second:
        with Subscriber(second.endpoint(), "replay", ("video",), max_age=None) as viewer:
            after = collect(viewer, second, lambda _: False)
        assert second.code() == 0, second.said
    assert "resuming in/b.mp4 at picture" in second.said
    seen = pictures(after)
    assert seen == list(range(seen[0], 201))
    assert 0 < seen[0] <= 130
    assert seen[0] % 10 == 0
    assert result(tmp_path)["went_on_from"] == {"file": "in/b.mp4", "picture": seen[0]}
    assert not list(marks.iterdir())


def test_a_position_can_be_forgotten_and_one_that_is_damaged_stops_nothing(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mp4", pictures=60, size=(96, 80), key_interval=5)
    marks = tmp_path / "state" / "nightbridge" / "replay"
    words = ("a.mp4", "--speed", "max", "--no-wait", "--endpoint", "tcp://127.0.0.1:*", "--json", "done.json")

    def stop_in_the_middle() -> Path:
        with replay(tmp_path, *words, pictures=50) as running:
            running.waits_for(lambda: any('"unit":0' not in m.read_text() for m in marks.glob("*.json")), "a note")
            running.kill()
        (mark,) = marks.glob("*.json")
        return mark

    stop_in_the_middle()
    assert finished(tmp_path, *words, "--from-start").code() == 0
    assert (result(tmp_path)["went_on_from"], result(tmp_path)["published"]) == (None, 60)
    stop_in_the_middle().write_text("{no mark")
    damaged = finished(tmp_path, *words)
    assert damaged.code() == 0
    assert "the saved position is ignored, since it cannot be read" in damaged.said
    assert result(tmp_path)["published"] == 60
    stop_in_the_middle()
    os.utime(tmp_path / "a.mp4", ns=(0, 0))
    foreign = finished(tmp_path, *words)
    assert foreign.code() == 0
    assert "a.mp4 has changed" in foreign.said
    assert result(tmp_path)["published"] == 60


def test_a_stop_while_it_plays_is_clean(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mp4", pictures=250, size=(96, 80))
    with replay(tmp_path, "a.mp4", "--endpoint", "tcp://127.0.0.1:*", "--json", "done.json") as running:
        with Subscriber(running.endpoint(), "replay", ("video",)) as viewer:
            assert viewer.receive(10) is not None
        running.process.send_signal(signal.SIGINT)
        assert running.code() == 1
    assert "run the same command again to resume" in running.said
    assert "Traceback" not in running.said
    done = result(tmp_path)
    assert not done["complete"]
    assert 0 < done["published"] == done["received"] < 250


@contextmanager
def thinly_viewed(folder: Path, octets_per_second: float) -> Iterator[tuple[Replay, Subscriber]]:
    """A replay of eight key frames, as many as may wait, and a viewer that has them over a thin link."""
    make_clip(folder / "a.mp4", pictures=8, size=(320, 240))
    encoder = '[defaults.encoder]\nbit_rate = "20M"\nkey_interval = "1ms"\n'
    (folder / "config.toml").write_text(f'[relay]\nstop_timeout = "100ms"\n{encoder}')
    words = ("a.mp4", "--speed", "max", "--config", "config.toml", "--endpoint", "tcp://127.0.0.1:*")
    with (
        replay(folder, *words, "--json", "done.json") as running,
        thin_link(running.endpoint(), octets_per_second) as endpoint,
        Subscriber(endpoint, "replay", ("video",), max_age=None) as viewer,
    ):
        yield running, viewer


def test_a_viewer_on_a_thin_link_gets_the_last_pictures_too(tmp_path: Path) -> None:
    with thinly_viewed(tmp_path, octets_per_second=50_000) as (running, viewer):
        shown = collect(viewer, running, lambda came: len(came) == 8)
        assert running.code() == 0, running.said
    assert pictures(shown) == list(range(8))
    assert result(tmp_path)["complete"]
    assert not list((tmp_path / "state" / "nightbridge" / "replay").iterdir())


def test_a_signal_while_the_last_pictures_leave_ends_the_replay_which_goes_on_from_there(tmp_path: Path) -> None:
    with thinly_viewed(tmp_path, octets_per_second=1_000) as (running, _):
        running.waits_for(lambda: "waiting until the viewers have the last pictures" in running.said, "the wait")
        running.process.send_signal(signal.SIGTERM)
        assert running.code() == 1
    assert "run the same command again to resume" in running.said
    assert "Traceback" not in running.said
    done = result(tmp_path)
    assert (done["published"], done["complete"]) == (8, False)
    assert len(list((tmp_path / "state" / "nightbridge" / "replay").iterdir())) == 1


def test_what_the_environment_says_of_another_feed_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTBRIDGE__FEEDS__PIER__READ_TIMEOUT", "10s")
    monkeypatch.setenv("NIGHTBRIDGE__DEFAULTS__ENCODER__BIT_RATE", "300k")
    config = tmp_path / "config.toml"
    config.write_text('[defaults]\nmemory = "50MB"\n[feeds.pier]\nurl = "udp://0.0.0.0:5000"\n')
    feed = feed_settings(load_settings(config), ReplayRequest([], [tmp_path / "a b.ts"], "replay", 4.0))
    assert (feed.url, feed.mode, feed.speed) == (f"file://{tmp_path}/a%20b.ts", "replay", 4.0)
    assert (feed.memory, feed.encoder.bit_rate) == (50_000_000, 300_000)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--weights", "field-lite"), 0, "8 received, 8 published"),
        ((), 2, "nightbridge: r.toml: [engine] weights paper ("),
        (("--weights", "./mine"), 2, "nightbridge: --weights: weights mine (mine) have no int8.xml; they have "),
    ],
)
def test_the_weights_that_replay_takes_must_have_the_file_of_the_precision(
    tmp_path: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    (tmp_path / "r.toml").write_text('[engine]\nweights = "paper"\nprecision = "int8"\n')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / NUMBERS).write_bytes(b"numbers")
    write_card(tmp_path / "mine", Card(name="mine", network="neid", files={}))
    make_clip(tmp_path / "a.mp4", pictures=8, size=(96, 80))
    done = finished(tmp_path, "a.mp4", "--config", "r.toml", *words, "--no-wait", "--endpoint", "tcp://127.0.0.1:*")
    assert done.code() == code
    assert told in done.said


# Playlist and bookmark

FEED = FeedSettings(url="a.mp4", mode="replay")


def test_a_playlist_tells_the_key_frame_from_which_nothing_is_missed(tmp_path: Path) -> None:
    files = [make_clip(tmp_path / f"{name}.ts", pictures=30, key_interval=10, size=(96, 80)) for name in "ab"]
    playlist = Playlist(files)
    for segment in playlist.open(FEED, threading.Event()):
        assert len(list(segment.packets())) == 30
    finished = {-5: (0, 0), 0: (0, 0), 9: (0, 0), 10: (0, 10), 29: (0, 20), 30: (1, 0), 41: (1, 10), 60: (1, 20)}
    assert {done: playlist.position(done) for done in finished} == {
        done: Position(*expected) for done, expected in finished.items()
    }
    assert playlist.bytes_read <= sum(playlist.sizes)
    second = Playlist(files, Position(0, 20))
    counts = [len(list(segment.packets())) for segment in second.open(FEED, threading.Event())]
    assert counts == [10, 30]
    assert [second.position(done) for done in (0, 9, 10, 25)] == [
        Position(0, 20),
        Position(0, 20),
        Position(1, 0),
        Position(1, 10),
    ]


def test_a_playlist_keeps_no_recording_that_it_has_played(tmp_path: Path) -> None:
    """Each holds a decoder with its pictures, and `record` makes hundreds a day."""
    files = [make_clip(tmp_path / f"{name}.ts", pictures=5, key_interval=2, size=(96, 80)) for name in "abc"]
    playlist = Playlist(files)
    played = []
    for segment in playlist.open(FEED, threading.Event()):
        assert len(list(segment.packets())) == 5
        played.append(weakref.ref(segment))
        assert playlist.bytes_read > sum(playlist.sizes[: len(played) - 1])
    del segment
    gc.collect()
    assert [each() is None for each in played] == [True, True, False]
    assert playlist.position(9) == Position(1, 4)


def test_a_recording_that_is_gone_is_told_and_the_others_are_played(tmp_path: Path) -> None:
    files = [make_clip(tmp_path / f"{name}.ts", pictures=3, size=(96, 80)) for name in "abc"]
    playlist = Playlist(files)
    files[1].unlink()
    assert [len(list(segment.packets())) for segment in playlist.open(FEED, threading.Event())] == [3, 3]
    assert list(playlist.failed) == [files[1]]


def test_the_position_in_a_recording_whose_name_is_no_utf_8_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    clip = make_clip(tmp_path / "a.ts", pictures=3, size=(96, 80)).rename(tmp_path / os.fsdecode(b"a\xff.ts"))
    Bookmark([clip], "replay").write([clip], Position(0, 2))
    assert Bookmark([clip], "replay").read([clip]) == Position(0, 2)


def test_who_plays_what_another_process_plays_leaves_its_position_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    clip = make_clip(tmp_path / "a.mp4", pictures=60, size=(96, 80), key_interval=5)
    words = ("a.mp4", "--speed", "max", "--no-wait", "--endpoint", "tcp://127.0.0.1:*", "--json", "done.json")
    with Bookmark([clip], "replay") as first:
        first.write([clip], Position(0, 20))
        for further in ((), ("--from-start",)):
            second = finished(tmp_path, *words, *further)
            assert second.code() == 0
            assert "another process is replaying these recordings" in second.said
            assert (result(tmp_path)["went_on_from"], result(tmp_path)["published"]) == (None, 60)
        assert first.read([clip]) == Position(0, 20)
    third = finished(tmp_path, *words)
    assert (third.code(), "another process" in third.said, result(tmp_path)["published"]) == (0, False, 40)
    assert not list(first.path.parent.iterdir())


def test_who_is_stopped_while_another_process_plays_the_same_is_not_told_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    clip = make_clip(tmp_path / "a.mp4", pictures=250, size=(96, 80))
    with (
        Bookmark([clip], "replay"),
        replay(tmp_path, "a.mp4", "--endpoint", "tcp://127.0.0.1:*", "--json", "done.json") as running,
    ):
        with Subscriber(running.endpoint(), "replay", ("video",)) as viewer:
            assert viewer.receive(10) is not None
        running.process.send_signal(signal.SIGINT)
        assert running.code() == 1
    assert "another process is replaying these recordings" in running.said
    assert "again to resume" not in running.said
    assert not result(tmp_path)["complete"]


def test_no_two_are_inside_where_one_leaves_while_another_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    clip = make_clip(tmp_path / "a.ts", pictures=3, size=(96, 80))
    flock = fcntl.flock
    with ExitStack() as first:
        first.enter_context(Bookmark([clip], "replay"))

        def leave_and_lock(file: FileIO, how: int) -> None:
            monkeypatch.setattr(fcntl, "flock", flock)
            first.close()
            flock(file, how)

        monkeypatch.setattr(fcntl, "flock", leave_and_lock)
        with Bookmark([clip], "replay") as second:
            with Bookmark([clip], "replay") as third:
                assert (second.kept, third.kept) == (True, False)
            assert second.path.with_suffix(".lock").exists()
    assert caplog.messages == [
        "another process is replaying these recordings: starting from the beginning without saving the position"
    ]
    assert not list(second.path.parent.iterdir())


def test_a_lock_that_cannot_be_removed_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with Bookmark([tmp_path / "a.ts"], "replay") as bookmark:
        lock = bookmark.path.with_suffix(".lock")
        lock.unlink()
        lock.mkdir()
    assert lock.is_dir()


def test_where_the_position_cannot_be_kept_it_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("no folder")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    clip = make_clip(tmp_path / "a.ts", pictures=3, size=(96, 80))
    bookmark = Bookmark([clip], "replay")
    for _ in range(3):
        bookmark.write([clip], Position(0, 0))
    assert len(caplog.messages) == 1
    assert "the position cannot be saved" in caplog.text


def test_a_full_disk_costs_the_position_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    clip = make_clip(tmp_path / "a.ts", pictures=3, size=(96, 80))
    bookmark = Bookmark([clip], "replay")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        bookmark.write([clip], Position(0, 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caplog.messages == [f"the position cannot be saved: {bookmark.path}: File too large"]
    assert not list(bookmark.path.parent.iterdir())
