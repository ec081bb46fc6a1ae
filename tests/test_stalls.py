import resource
import signal
import time
from itertools import count, pairwise
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest

from stream import publish
from stream.subscribe import Subscriber
from stream.wire.messages import Header
from tests.link import thin_link
from tests.live import Live, Viewer, stall
from tests.published import relay
from tests.waiting import DEADLINE, wait_until


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_a_viewer_that_was_stopped_goes_on_with_fresh_pictures_at_once(transport: str, tmp_path: Path) -> None:
    endpoint = "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{tmp_path}/wire"
    with relay(endpoint=endpoint, high_water_mark=64) as publisher, Viewer(publisher.endpoint) as viewer:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        with Live(publisher) as feed:
            wait_until(lambda: len(viewer.seen) >= 30, "the first pictures")
            moment = stall(viewer, 2.5)
            wait_until(lambda: len(viewer.since(moment)) >= 10, "pictures after the stall")
    fresh = viewer.since(moment)
    assert fresh[0].key
    assert viewer.holes() == 1
    assert max(each.age for each in fresh) <= 0.5
    assert fresh[0].at - moment < 1.0, "a key frame was not asked for"
    assert len(feed.keys) == 2


def test_a_viewer_that_stalls_or_dies_changes_nothing_for_another_or_for_the_relay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    clock = SimpleNamespace(monotonic=time.monotonic, time_ns=time.time_ns, sleep=waits.append)
    with relay(high_water_mark=16) as publisher, Viewer(publisher.endpoint) as steady:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        monkeypatch.setattr(publish, "time", clock)
        with Live(publisher, size=100_000):
            wait_until(lambda: len(steady.seen) >= 5, "pictures")
            with Viewer(publisher.endpoint) as doomed, Viewer(publisher.endpoint) as stalling:
                wait_until(lambda: doomed.seen and stalling.seen, "pictures of the others")
                before = resident_octets()
                stalling.process.send_signal(signal.SIGSTOP)
                doomed.process.kill()
                moment = time.monotonic()
                wait_until(lambda: steady.since(moment + 2.0), "two seconds of pictures")
                grown = resident_octets() - before
                stalling.process.send_signal(signal.SIGCONT)
                moment = time.monotonic()
                wait_until(lambda: stalling.since(moment), "pictures after the stall")
                assert max(each.age for each in stalling.since(moment)) <= 0.5
    assert steady.holes() == 0
    assert waits == [], "the relay waits for no viewer"
    assert grown < 30e6, "16 messages of 0.1 MB may wait for one viewer"


def resident_octets() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_on_a_link_that_is_too_thin_pictures_come_with_holes_but_never_old() -> None:
    with (
        relay(high_water_mark=64) as publisher,
        thin_link(publisher.endpoint, octets_per_second=60_000) as endpoint,
        Viewer(endpoint) as viewer,
    ):
        assert publisher.wait_for_viewer("pier", DEADLINE)
        with Live(publisher, size=4_000):  # 100,000 octets a second
            wait_until(lambda: viewer.seen and viewer.seen[-1].at > viewer.seen[0].at + 4, "four seconds of pictures")
    assert max(each.age for each in viewer.seen) < 1.0
    assert viewer.holes() >= 2, "the connection was made anew"


def test_on_a_link_that_is_too_thin_ever_fewer_key_frames_are_made_at_the_cost_of_all_others() -> None:
    with (
        relay(high_water_mark=64) as publisher,
        thin_link(publisher.endpoint, octets_per_second=50_000) as endpoint,
        Viewer(endpoint) as viewer,
    ):
        assert publisher.wait_for_viewer("pier", DEADLINE)
        with Live(publisher, size=4_000) as feed:  # 100,000 octets a second
            wait_until(lambda: any(after - before > 4 for before, after in pairwise(feed.keys)), "a long pause")
    assert viewer.holes() >= 2, "the connection was made anew"


def test_on_a_link_that_carries_the_stream_pictures_go_on_though_each_key_frame_takes_longer_than_the_highest_age() -> (
    None
):
    with (
        relay(high_water_mark=64) as publisher,
        thin_link(publisher.endpoint, octets_per_second=62_500) as endpoint,
        Subscriber(endpoint, "pier", ("source",)) as subscriber,
    ):
        assert publisher.wait_for_viewer("pier", DEADLINE)
        ended = Event()

        def show() -> None:
            for number in count():
                key = number % 50 == 0
                publisher.publish("pier", "source", Header(key=key), bytes(40_000 if key else 900))
                if ended.wait(0.04):
                    return

        thread = Thread(target=show)
        thread.start()
        groups: set[int | None] = set()

        def sees_a_fourth_group() -> bool:
            message = subscriber.receive(0.1)
            groups.update([message.header.gop] if message else [])
            return len(groups) == 4

        try:
            wait_until(sees_a_fourth_group, "a picture of a fourth group")
        finally:
            ended.set()
            thread.join()
    assert len(groups) == 4


def test_a_relay_that_restarts_gives_its_viewer_a_key_frame_at_once() -> None:
    with relay("run-1") as publisher, Viewer(publisher.endpoint) as viewer:
        endpoint = publisher.endpoint
        assert publisher.wait_for_viewer("pier", DEADLINE)
        with Live(publisher):
            wait_until(lambda: len(viewer.seen) >= 10, "pictures of the first run")
        last = publisher.publish("pier", "video", Header(), b"")
        wait_until(lambda: viewer.seen[-1].seq == last, "the last picture of the first run")
        viewer.process.send_signal(signal.SIGSTOP)
        publisher.__exit__(None, None, None)
        with relay("run-2", endpoint) as again, Live(again) as feed:
            wait_until(lambda: feed.keys, "a key frame before anybody listens")
            moment = time.monotonic()
            viewer.process.send_signal(signal.SIGCONT)
            wait_until(lambda: viewer.since(moment), "a picture of the second run")
    first = viewer.since(moment)[0]
    assert first.key
    assert len(feed.keys) == 2
    assert first.at - feed.keys[1] < 0.5
