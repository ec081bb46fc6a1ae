from __future__ import annotations

import json
import re
import socket
import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engines.door import Door, Slot
from engines.errors import EngineError
from stream import feed as feed_module
from stream.errors import SourceLost, WireError
from stream.metrics import DROPS, STAGES, AgeHistogram
from stream.monitor.health import Health
from stream.monitor.http import CONNECTIONS
from stream.monitor.prometheus import RECONNECTS, cumulative
from stream.publish import Publisher
from stream.relay import Relay
from stream.settings import FeedSettings, RelaySettings, Settings
from stream.sources.segment import Segment
from tests.cameras import LiveCamera
from tests.clips import UdpSender, free_port, make_clip
from tests.doubling import DoublingEngine
from tests.relaying import as_filmed
from tests.waiting import wait_until

PAGE = (Path(__file__).parents[1] / "docs" / "health.md").read_text()

RELAY = RelaySettings(endpoint="tcp://127.0.0.1:*", stop_timeout=1.0)

Scrape = dict[str, float]
"""Values by sample, such as `nightbridge_frames_dropped_total{feed="pier",reason="late",stage="enhance"}`."""


@contextmanager
def watched(engine: Door | None = None, **feeds: FeedSettings) -> Iterator[tuple[Relay, Health]]:
    settings = Settings(relay=RELAY, feeds=feeds)
    with (
        engine or DoublingEngine() as opened,
        Publisher(RELAY, "run") as publisher,
        Relay(settings, opened, publisher) as relay,
        Health("127.0.0.1:0", relay) as health,
    ):
        yield relay, health


def fetched(health: Health, path: str) -> tuple[int, str, str]:
    """Status, content type and text."""
    connection = HTTPConnection(health.address, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()
    finally:
        connection.close()


def scraped(health: Health) -> Scrape:
    status, kind, text = fetched(health, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return {
        written(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def written(name: str, labels: dict[str, str]) -> str:
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"


def of(scrape: Scrape, name: str, feed: str) -> float:
    """The sum over all stages and reasons."""
    return sum(
        value
        for sample, value in scrape.items()
        if sample.startswith(f"nightbridge_{name}{{") and f'"{feed}"' in sample
    )


def adds_up(scrape: Scrape, feed: str) -> bool:
    gone = ("frames_published_total", "frames_dropped_total", "frames_lost_total", "frames_under_way")
    return of(scrape, "frames_received_total", feed) == sum(of(scrape, name, feed) for name in gone)


def told(health: Health) -> dict[str, Any]:
    status, kind, text = fetched(health, "/status")
    assert (status, kind) == (200, "application/json")
    answer: dict[str, Any] = json.loads(text)
    return answer


def tape(path: Path, **changes: object) -> FeedSettings:
    return FeedSettings(url=str(path), mode="replay", **changes)  # type: ignore[arg-type]


def test_a_replay_is_counted_to_the_last_picture(tmp_path: Path) -> None:
    with watched(tape=tape(make_clip(tmp_path / "clip.mp4", pictures=30))) as (relay, health):
        assert relay.wait(30)
        scrape = scraped(health)
    assert scrape['nightbridge_frames_received_total{feed="tape"}'] == 30
    assert scrape['nightbridge_frames_published_total{feed="tape"}'] == 30
    assert scrape['nightbridge_age_seconds_count{feed="tape"}'] == 30
    assert scrape['nightbridge_age_seconds_bucket{feed="tape",le="+Inf"}'] == 30
    assert scrape['nightbridge_age_seconds_sum{feed="tape"}'] > 0
    assert scrape['nightbridge_feed_live{feed="tape"}'] == 0
    assert scrape['nightbridge_engine_info{precision="uint8",runtime="doubling",weights="none"}'] == 1
    assert scrape["process_resident_memory_bytes{}"] > 1e6
    assert adds_up(scrape, "tape")


def test_the_sums_hold_in_every_scrape_of_a_running_feed(tmp_path: Path) -> None:
    clip, pace = make_clip(tmp_path / "clip.mp4", pictures=300), threading.Semaphore(10)
    seen = set()
    with watched(DoublingEngine(pace), tape=tape(clip)) as (relay, health):
        try:
            while not relay.wait(0):
                scrape = scraped(health)
                assert adds_up(scrape, "tape")
                seen.add(scrape['nightbridge_frames_published_total{feed="tape"}'])
                pace.release(10)
        finally:
            pace.release(1000)
    assert len(seen) > 3


def test_pictures_that_wait_for_the_engine_show_where_they_are(tmp_path: Path) -> None:
    clip, pace = make_clip(tmp_path / "clip.mp4", pictures=30), threading.Semaphore(3)
    with watched(DoublingEngine(pace), tape=tape(clip)) as (_, health):
        figures = ("frames_published_total", "frames_waiting", "frames_in_engine")

        def is_full() -> bool:
            scrape = scraped(health)
            return [of(scrape, figure, "tape") for figure in figures] == [3, 2, 2]

        wait_until(is_full, "a full lane and a full engine after three pictures")
        scrape, feed = scraped(health), told(health)["feeds"]["tape"]
        pace.release(100)
    assert scrape['nightbridge_feed_live{feed="tape"}'] == 1
    assert adds_up(scrape, "tape")
    assert (feed["state"], feed["published"], feed["waiting"], feed["in_engine"]) == ("live", 3, 2, 2)
    assert feed["under_way"] == feed["received"] - 3


def test_every_known_reason_is_there_from_the_start_with_its_stage(tmp_path: Path) -> None:
    with watched(tape=tape(make_clip(tmp_path / "clip.mp4", pictures=1))) as (_, health):
        scrape = scraped(health)
    for reason, stage in STAGES.items():
        kinds = [
            kind
            for kind in ("dropped", "lost")
            if f'nightbridge_frames_{kind}_total{{feed="tape",reason="{reason}",stage="{stage}"}}' in scrape
        ]
        assert len(kinds) == 1, reason
    for reason in RECONNECTS:
        assert scrape[f'nightbridge_reconnects_total{{feed="tape",reason="{reason}"}}'] == 0
    assert {label for sample in scrape for label in re.findall(r'(\w+)="', sample)} == {
        *("feed", "stage", "reason", "le"),
        *("version", "runtime", "precision", "weights"),
    }


def test_every_count_is_told_under_its_own_name(tmp_path: Path) -> None:
    dropped = {"behind": 1, "overload": 2, "late": 3, "stopped": 4}
    lost = {"undecodable": 5, "engine": 6, "encoder": 7}
    with watched(tape=tape(make_clip(tmp_path / "clip.mp4", pictures=5))) as (relay, health):
        assert relay.wait(30)
        feed = relay.feeds["tape"]
        feed.meter.receive(30)
        for drop, count in dropped.items():
            feed.meter.drop(drop, count)  # type: ignore[arg-type]
        for loss, count in lost.items():
            feed.meter.lose(loss, count)  # type: ignore[arg-type]
        feed.timeline.repairs, feed.lane.in_flight = 8, 9
        scrape, status = scraped(health), told(health)["feeds"]["tape"]
    for kind, counts in (("dropped", dropped), ("lost", lost)):
        assert status[kind] == counts
        for reason, count in counts.items():
            labels = {"feed": "tape", "reason": reason, "stage": STAGES[reason]}  # type: ignore[index]
            assert scrape[written(f"nightbridge_frames_{kind}_total", labels)] == count
    assert scrape['nightbridge_frames_received_total{feed="tape"}'] == status["received"] == 35
    assert scrape['nightbridge_frames_under_way{feed="tape"}'] == status["under_way"] == 2
    assert scrape['nightbridge_timestamp_repairs_total{feed="tape"}'] == status["timestamp_repairs"] == 8
    assert scrape['nightbridge_frames_waiting{feed="tape"}'] == status["waiting"] == 0
    assert scrape['nightbridge_frames_in_engine{feed="tape"}'] == status["in_engine"] == 9
    ages_ms = feed.figures().ages_ms
    assert scrape['nightbridge_age_seconds_sum{feed="tape"}'] == pytest.approx(sum(ages_ms) / 1000)
    assert (status["decoder"], status["encoder"]) == ("h264", "libx264")


def test_feeds_come_and_go_between_scrapes(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=5)
    with watched(first=tape(clip)) as (relay, health):
        assert set(told(health)["feeds"]) == {"first"}
        relay.add("second", tape(clip))
        assert relay.wait(30)
        assert of(scraped(health), "frames_published_total", "second") == 5
        relay.remove("first")
        assert not any('feed="first"' in sample for sample in scraped(health))
        assert set(told(health)["feeds"]) == {"second"}
        relay.remove("second")
        assert told(health)["feeds"] == {}
        assert not any('feed="' in sample for sample in scraped(health))


def refusing(feed: FeedSettings, stop: threading.Event) -> Generator[Segment]:
    raise SourceLost("it says no", reason="refused")
    yield


def test_a_dead_camera_is_told_with_its_reason_and_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIER", "pa55word")
    camera = FeedSettings(
        url="rtsp://mary:0pen@10.0.0.7/stream?token=t0ken", username="somebody", password_env="PIER", memory=50_000_000
    )
    with watched() as (relay, health):
        relay.add("pier", camera, refusing)
        reconnects = 'nightbridge_reconnects_total{feed="pier",reason="refused"}'
        wait_until(lambda: scraped(health)[reconnects] >= 2, "a second attempt")
        assert scraped(health)['nightbridge_feed_live{feed="pier"}'] == 0
        pages = [fetched(health, path)[2] for path in ("/status", "/metrics", "/readyz", "/healthz", "/")]
        status = told(health)
        assert fetched(health, "/readyz")[0] == 200
    for secret in ("pa55word", "0pen", "t0ken", "somebody", "mary", "10.0.0.7"):
        assert not any(secret in page for page in pages)
    feed = status["feeds"]["pier"]
    assert feed.pop("reconnects")["refused"] >= 2
    assert feed == {
        "state": "connecting",
        "reason": "it says no",
        "decoder": None,
        "encoder": None,
        "received": 0,
        "published": 0,
        "dropped": {},
        "lost": {},
        "under_way": 0,
        "timestamp_repairs": 0,
        "waiting": 0,
        "in_engine": 0,
        "age_ms": {"p50": None, "p95": None, "p99": None},
        "memory_mb": 50.0,
    }
    assert status["engine"] == {
        "runtime": "doubling",
        "device": "test",
        "precision": "uint8",
        "weights": "none",
        "weights_id": "0" * 64,
        "failures": {"doubling": 0},
        "reason": None,
    }


def test_a_feed_of_which_no_picture_can_be_decoded_counts_as_away_and_tells_that_until_one_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "LATELY_SECONDS", 0.1)
    clip, port = make_clip(tmp_path / "clip.ts", pictures=100, key_interval=1000), free_port()
    cam = FeedSettings(url=f"udp://127.0.0.1:{port}", open_timeout=1.0, read_timeout=1.0)
    live = 'nightbridge_feed_live{feed="cam"}'
    with watched(cam=cam) as (_, health):
        middle = clip.stat().st_size // 1316 // 5
        with UdpSender(clip, port, start=middle, bit_rate=as_filmed(clip, 100), repeat=True):
            wait_until(lambda: "published" in str(told(health)["feeds"]["cam"]["reason"]), "the reason")
            feed, scrape = told(health)["feeds"]["cam"], scraped(health)
        with LiveCamera(clip, port):
            wait_until(lambda: scraped(health)[live] == 1, "a picture")
            mended = told(health)["feeds"]["cam"]
    assert (feed["state"], feed["reason"]) == ("live", "no picture has been published for 2 s")
    assert feed["lost"]["undecodable"] > 0
    assert (feed["published"], scrape[live]) == (0, 0)
    assert (mended["state"], mended["reason"]) == ("live", None)


class Broken(DoublingEngine):
    """Fails on every picture until it is mended."""

    def __init__(self) -> None:
        super().__init__()
        self.mended = threading.Event()

    def _finish(self, slot: Slot) -> None:
        if not self.mended.is_set():
            raise EngineError("a failure on purpose")
        super()._finish(slot)


def test_a_feed_whose_pictures_all_fail_in_the_engine_counts_as_away_and_tells_why_until_one_is_published(
    tmp_path: Path,
) -> None:
    clip, port = make_clip(tmp_path / "clip.ts", pictures=50), free_port()
    live = 'nightbridge_feed_live{feed="cam"}'
    engine = Broken()
    with watched(engine, cam=FeedSettings(url=f"udp://127.0.0.1:{port}")) as (_, health), LiveCamera(clip, port):
        wait_until(lambda: told(health)["feeds"]["cam"]["lost"].get("engine"), "a lost picture")
        feed, scrape = told(health)["feeds"]["cam"], scraped(health)
        engine.mended.set()
        wait_until(lambda: scraped(health)[live] == 1, "a picture")
        wait_until(lambda: told(health)["feeds"]["cam"]["reason"] is None, "the end of the trouble")
    assert (feed["state"], feed["reason"]) == ("live", "a failure on purpose")
    assert scrape[live] == 0


def test_ages_are_told_in_milliseconds(tmp_path: Path) -> None:
    with watched(tape=tape(make_clip(tmp_path / "clip.mp4", pictures=10))) as (relay, health):
        assert relay.wait(30)
        ages = told(health)["feeds"]["tape"]["age_ms"]
    assert 0 < ages["p50"] <= ages["p95"] <= ages["p99"] < 30_000


def test_a_relay_that_failed_is_not_ready_though_its_process_lives() -> None:
    with watched() as (relay, health):
        assert fetched(health, "/readyz")[::2] == (200, "ready\n")
        relay.failure = RuntimeError("rtsp://relay:secret@10.0.0.7")
        assert fetched(health, "/readyz")[::2] == (503, "failed: RuntimeError\n")
        assert fetched(health, "/healthz")[::2] == (200, "ok\n")


def torment(health: Health, stop: threading.Event) -> None:
    """Keep hundreds of connections open that never become a request, and always open more."""
    host, port = health.address.split(":")
    clients: deque[socket.socket] = deque()
    while not stop.is_set():
        clients.append(socket.create_connection((host, int(port))))
        with suppress(ConnectionError):  # refused
            clients[-1].send(b"\0" * 100)
        if len(clients) > 300:
            clients.popleft().close()
    for client in clients:
        client.close()


def answers(health: Health) -> bool:
    with suppress(OSError, HTTPException):
        return fetched(health, "/healthz")[0] == 200
    return False


def test_hostile_clients_change_nothing_for_the_relay(tmp_path: Path) -> None:
    clip, stop = make_clip(tmp_path / "clip.mp4", pictures=100), threading.Event()
    with watched() as (relay, health):
        allowed = threading.active_count() + 1 + CONNECTIONS  # the feed's own two end
        tormentor = threading.Thread(target=torment, args=(health, stop))
        tormentor.start()
        try:
            relay.add("tape", tape(clip))
            assert relay.wait(30)
            wait_until(lambda: threading.active_count() <= allowed, "threads that were ending to have ended")
        finally:
            stop.set()
            tormentor.join()
        wait_until(lambda: answers(health), "an answer to a good client")
        assert adds_up(scraped(health), "tape")
        assert relay.feeds["tape"].figures().published == 100


def test_its_address_must_be_free() -> None:
    with (
        watched() as (relay, health),
        pytest.raises(WireError, match=f"{health.address}: Address already in use"),
        Health(health.address, relay),
    ):
        pass


def test_its_end_leaves_no_thread() -> None:
    before = threading.active_count()
    with watched() as (_, health):
        assert fetched(health, "/healthz")[0] == 200
    wait_until(lambda: threading.active_count() <= before, "the end of all threads")


def test_the_page_lists_every_metric_with_its_type_and_labels(tmp_path: Path) -> None:
    with watched(tape=tape(make_clip(tmp_path / "clip.mp4", pictures=1))) as (_, health):
        text = fetched(health, "/metrics")[2]
    types = dict(re.findall(r"# TYPE (\S+) (\S+)", text))
    assert set(re.findall(r"`(process_\w+)`", PAGE)) == {name for name in types if name.startswith("process_")}
    rows = re.findall(r"(?m)^\| `(nightbridge_\w+)` \| (\w+)[^|]* \| ([^|]*) \|", PAGE)
    assert {name: kind for name, kind, _ in rows} == {
        name: kind for name, kind in types.items() if not name.startswith("process_")
    }
    for name, _, labels in rows:
        used = re.search(rf"(?m)^{name}(?:_bucket)?(?:{{(.*)}})? ", text)
        assert used is not None
        assert set(re.findall(r"`(\w+)`", labels)) == set(re.findall(r'(\w+)="', used[1] or "")) - {"le"}


def test_the_page_lists_every_reason_with_its_stage() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \| `([\w -]+)` \| (dropped|lost):", PAGE)
    assert {reason: (stage, kind) for stage, reason, kind in rows} == {
        reason: (stage, "dropped" if reason in DROPS else "lost") for reason, stage in STAGES.items()
    }
    _, table = PAGE.split("| reason of a reconnect |")
    assert set(re.findall(r"(?m)^\| `([\w -]+)` \|", table)) == set(RECONNECTS)


def test_the_page_shows_every_key_of_the_status(tmp_path: Path) -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    shown = json.loads(example)
    with watched(pier=tape(make_clip(tmp_path / "clip.mp4", pictures=1))) as (_, health):
        status = told(health)
    assert list(shown) == list(status)
    assert list(shown["engine"]) == list(status["engine"])
    assert shown["settings"] == status["settings"] == {"reason": None, "need_restart": []}
    assert list(shown["feeds"]["pier"]) == list(status["feeds"]["pier"])
    feed = shown["feeds"]["pier"]
    gone = sum(feed["dropped"].values()) + sum(feed["lost"].values())
    assert feed["received"] == feed["published"] + gone + feed["under_way"]


def test_buckets_add_up_to_all_pictures() -> None:
    histogram = AgeHistogram(bounds=(0.02, 1.0), counts=(3, 0, 2), sum=9.0)
    assert cumulative(histogram) == [("0.02", 3), ("1.0", 3), ("+Inf", 5)]
