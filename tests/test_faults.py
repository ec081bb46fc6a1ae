"""What goes wrong with one feed, or with the engine, is nobody else's trouble: real sockets, many feeds at once."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from random import Random

import pytest

from engines.door import Slot
from stream.enhance import Gather
from stream.feed import Feed
from stream.frame import Frame
from stream.publish import Publisher
from stream.relay import Relay
from stream.settings import FeedSettings, RelaySettings, Settings
from stream.sources import backoff
from tests.cameras import LiveCamera
from tests.clips import UdpSender, free_port, make_clip
from tests.doubling import DoublingEngine
from tests.relaying import decoded, pictures, watched
from tests.rtsp_server import RtspServer, camera
from tests.waiting import wait_until

RELAY = RelaySettings(endpoint="tcp://127.0.0.1:*")


def udp(**changes: object) -> FeedSettings:
    return FeedSettings(url=f"udp://127.0.0.1:{free_port()}", **changes)  # type: ignore[arg-type]


def port_of(feed: FeedSettings) -> int:
    return int(feed.url.rpartition(":")[2])


def adds_up(feed: Feed) -> bool:
    figures = feed.figures()
    gone = figures.published + sum(figures.dropped.values()) + sum(figures.lost.values())
    return figures.received == gone + figures.under_way


@contextmanager
def relayed(engine: DoublingEngine, **feeds: FeedSettings) -> Iterator[Relay]:
    """A relay with these feeds; at its end every access unit that came in has been accounted for."""
    with engine, Publisher(RELAY, "run") as publisher:
        with Relay(Settings(relay=RELAY, feeds=feeds), engine, publisher) as relay:
            yield relay
        assert relay.failure is None
    for name, feed in relay.feeds.items():
        assert adds_up(feed), (name, feed.figures())
        assert feed.figures().under_way == 0, (name, feed.figures())


@contextmanager
def garbage(port: int) -> Iterator[None]:
    """Somebody who sends nonsense, some of which looks like MPEG-TS."""
    random, stop = Random(1), threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not stop.wait(0.01):
                packet = random.randbytes(1316)
                if random.random() < 0.7:
                    packet = b"".join(b"\x47" + packet[start + 1 : start + 188] for start in range(0, 1316, 188))
                sender.sendto(packet, ("127.0.0.1", port))

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def mute_server() -> Iterator[int]:
    """The port of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "SHORTEST", 0.05)
    monkeypatch.setattr(backoff, "LONGEST", 0.1)


@pytest.mark.usefixtures("quick")
def test_of_eight_feeds_one_dead_one_mute_one_corrupt_and_one_huge_leave_the_others_fresh(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=100)
    huge = make_clip(tmp_path / "huge.ts", pictures=20, size=(1920, 1088))
    good = {f"good{number}": udp() for number in range(4)}
    dead, corrupt, large = udp(open_timeout=0.3), udp(open_timeout=1.0, read_timeout=1.0), udp(memory=100_000_000)
    with ExitStack() as cameras, mute_server() as port:
        mute = FeedSettings(url=f"rtsp://127.0.0.1:{port}/", open_timeout=0.5, read_timeout=0.5)
        for feed in good.values():
            cameras.enter_context(LiveCamera(clip, port_of(feed)))
        cameras.enter_context(LiveCamera(huge, port_of(large)))
        cameras.enter_context(garbage(port_of(corrupt)))
        bad = {"dead": dead, "mute": mute, "corrupt": corrupt, "large": large}
        with relayed(DoublingEngine(), **good, **bad) as relay:
            wait_until(lambda: all(relay.feeds[name].figures().published >= 125 for name in good), "five seconds")
            for name in ("dead", "mute", "corrupt", "large"):
                feed = relay.feeds[name]
                wait_until(lambda feed=feed: feed.state == "connecting" and feed.reason, f"the reason of {name}")
                assert feed.figures().published == 0
            assert "1920x1088" in str(relay.feeds["large"].reason)
            for name in good:
                age = relay.feeds[name].figures().age_ms(95)
                assert age is not None
                assert age < 500
                assert relay.feeds[name].figures().reconnects == {}


def test_a_feed_whose_size_and_clock_jump_goes_on_for_its_viewers(tmp_path: Path) -> None:
    """Three cameras one after another at one address, each with a clock of its own."""
    first = make_clip(tmp_path / "a.ts", pictures=60)
    second = make_clip(tmp_path / "b.ts", pictures=60, size=(176, 144), rate=10)
    third = make_clip(tmp_path / "c.ts", pictures=60, full_range=True)
    clip = tmp_path / "all.ts"
    clip.write_bytes(first.read_bytes() + second.read_bytes() + third.read_bytes())
    cam = udp(mode="replay", read_timeout=30.0)
    with DoublingEngine() as engine, Publisher(RELAY, "run") as publisher:
        with (
            watched(publisher, "cam") as messages,
            Relay(Settings(relay=RELAY, feeds={"cam": cam}), engine, publisher) as relay,
            UdpSender(clip, port_of(cam), bit_rate=1_000_000) as sender,
        ):
            feed = relay.feeds["cam"]
            assert sender.wait(30)
            wait_until(lambda: feed.figures().published >= 170, "the last pictures")
        figures = feed.figures()
        assert adds_up(feed)
        assert figures.reconnects == {}
        assert figures.timestamp_repairs >= 2
    headers = [message.header for message in pictures(messages)]
    times = [(header.pts or 0) * (header.time_base or 0) for header in headers]
    assert all(before < after for before, after in pairwise(times))
    assert max(after - before for before, after in pairwise(times)) < 1
    sizes = [(header.width, header.height) for header in headers]
    assert [size for size, _ in groupby(sizes)] == [(320, 240), (352, 288), (320, 240)]
    for number, (before, after) in enumerate(pairwise(sizes)):
        assert before == after or headers[number + 1].key
    assert len(decoded(messages)) == len(headers)


@pytest.mark.usefixtures("quick")
def test_a_camera_that_is_killed_and_comes_back_ten_times_is_relayed_again_each_time() -> None:
    server = RtspServer({"/cam": camera(size=(160, 120), key_interval=5)})
    with server:
        feed = FeedSettings(url=server.url("/cam"), transport="tcp", open_timeout=2.0, read_timeout=2.0)
    with relayed(DoublingEngine(), cam=feed) as relay:
        cam = relay.feeds["cam"]
        for number in range(10):
            with server:
                before = cam.figures().received
                wait_until(lambda before=before: cam.figures().received > before + 5, f"camera {number}")
            wait_until(lambda: cam.state == "connecting", f"loss {number}")
        assert cam.reason is not None
        assert cam.figures().published >= 10


class Slowed(DoublingEngine):
    """Takes 200 ms for every picture."""

    def _finish(self, slot: Slot) -> None:
        with self._one:
            time.sleep(0.2)
        super()._finish(slot)

    _one = threading.Lock()


def test_an_engine_of_five_pictures_a_second_keeps_a_fast_feed_within_its_age_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, ages = Gather.take, list[float]()

    def noting(gather: Gather[Feed], limit: int, depth: int, now_ns: Callable[[], int]) -> list[tuple[Feed, Frame]]:
        taken_ns = [0]

        def now() -> int:
            taken_ns.append(now_ns())
            return taken_ns[-1]

        batch = take(gather, limit, depth, now)
        ages.extend((taken_ns[-1] - frame.arrived_ns) / 1e9 for _, frame in batch)
        return batch

    monkeypatch.setattr(Gather, "take", noting)
    feed = udp(age_budget=1.0)
    clip = make_clip(tmp_path / "clip.ts", pictures=250)
    with LiveCamera(clip, port_of(feed)), relayed(Slowed(), cam=feed) as relay:
        meter = relay.feeds["cam"]
        end = time.monotonic() + 60
        wait_until(lambda: meter.figures().published, "the first picture")
        while time.monotonic() < end:
            assert not relay.wait(1)
            assert adds_up(meter)
        figures = meter.figures()
        assert figures.published >= 200
        assert figures.dropped["overload"] >= 800
        age = figures.age_ms(95)
    assert max(ages) <= 1.0, "no picture enters the engine late"
    assert age is not None
    assert age < 1000
