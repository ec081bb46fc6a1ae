from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from stream.publish import Publisher
from stream.relay import Relay
from stream.settings import FeedSettings, Settings
from tests.clips import UdpSender, free_port, make_clip
from tests.doubling import DoublingEngine
from tests.relaying import camera, holds, port_of, recording, settings
from tests.waiting import DEADLINE, wait_until


def test_a_stop_publishes_what_is_decoded_and_leaves_no_thread(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    wanted = settings(cam=FeedSettings(url=f"udp://127.0.0.1:{free_port()}"))
    port = int(wanted.feeds["cam"].url.rpartition(":")[2])
    clip = make_clip(tmp_path / "clip.ts", pictures=50)
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        with UdpSender(clip, port, repeat=True), Relay(wanted, engine, publisher) as relay:
            meter = relay.feeds["cam"].meter
            wait_until(lambda: meter.figures().published > 20, "pictures")
        figures = meter.figures()
        assert figures.under_way == 0
        assert holds(figures)
    assert {thread for thread in threading.enumerate() if thread.name.startswith("nightbridge")} <= threads


def stopped_within(wanted: Settings, seconds: float) -> Settings:
    """With this `stop_timeout`."""
    return wanted.model_copy(update={"relay": wanted.relay.model_copy(update={"stop_timeout": seconds})})


def test_a_relay_without_feeds_ends_by_itself() -> None:
    wanted = settings()
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher, Relay(wanted, engine, publisher) as r:
        assert r.wait(DEADLINE)
        r.publish_status()
    assert r.failure is None


def test_a_recording_that_has_ended_leaves_nothing_open_while_others_go_on(tmp_path: Path) -> None:
    wanted = settings(tape=recording(make_clip(tmp_path / "clip.mp4", pictures=10)), cam=camera().feeds["cam"])

    def stages() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "nightbridge-send_out"]

    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher, Relay(wanted, engine, publisher) as r:
        wait_until(lambda: r.feeds["tape"].state == "ended", "the end of the recording")
        assert r.feeds["tape"].meter.figures().published == 10
        wait_until(lambda: len(stages()) == 1, "the end of its encoder")


@pytest.mark.parametrize("after", [0.0, 0.005, 0.05, 0.1, 0.2, 0.3, 0.4])
def test_a_stop_at_any_moment_ends_everything_and_adds_up(tmp_path: Path, after: float) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=50)
    wanted = settings(
        cam=camera().feeds["cam"],
        silent=camera().feeds["cam"],
        tape=recording(clip),
        paced=recording(clip).model_copy(update={"mode": "live"}),
    )
    wanted = stopped_within(wanted, 20.0)
    threads = set(threading.enumerate())
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        with UdpSender(clip, port_of(wanted), repeat=True), Relay(wanted, engine, publisher) as relay:
            relay.wait(after)
            began = time.monotonic()
        assert time.monotonic() - began < 20, "nothing was waited for in vain"
        assert relay.failure is None
        for feed in relay.feeds.values():
            assert (feed.state, feed.meter.figures().under_way) == ("ended", 0)
            assert holds(feed.meter.figures())
    assert {thread for thread in threading.enumerate() if thread.name.startswith("nightbridge")} <= threads


def test_a_stop_that_takes_too_long_drops_what_is_under_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pace = threading.Semaphore(0)
    wanted = stopped_within(settings(tape=recording(make_clip(tmp_path / "clip.mp4", pictures=50))), 4.0)

    with DoublingEngine(pace) as engine, Publisher(wanted.relay, "run") as publisher:
        with Relay(wanted, engine, publisher) as relay:
            wait_until(lambda: engine.batches == [1, 1], "two pictures in the engine")
            lane = relay.feeds["tape"].lane

            def let_one_go() -> None:
                wait_until(lambda: lane.closed, "the end of all patience")
                pace.release()  # the other one stays in the engine

            late = threading.Thread(target=let_one_go)
            late.start()
            began = time.monotonic()
        assert time.monotonic() - began < 9.2, "twice as long at most, and a little"
    late.join()
    assert "feeds not stopped within 4 s: tape;" in caplog.text
    figures = relay.feeds["tape"].meter.figures()
    assert figures.published == 1
    assert figures.dropped == {"stopped": figures.received - 1}
    assert holds(figures)
