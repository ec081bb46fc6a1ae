"""How `nightbridge bench --gpu` finds out how many feeds one relay carries."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.door import Door, Slot
from engines.nvidia.gpu import has_driver
from engines.runtime import EngineOptions
from stream.settings import EngineSettings
from stream.wire.messages import Status
from tests.doubling import DoublingEngine
from tests.short_bench import shorten, together
from tools.benchmarks import gpu_parts, gpu_relay, stream
from tools.benchmarks.gpu_relay import Watched, relay_figures, step_figures, why_too_many


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few repetitions of small pictures."""
    shorten(monkeypatch)


def test_without_time_no_relay_is_begun(tmp_path: Path) -> None:
    found = list(relay_figures(tmp_path, tmp_path, {}, 1.0, lambda: 1.0, lambda: None, (1, 4)))
    assert found == [{"relay_feeds": 0, "relay_limit": "no time was left"}]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """How long relays that send nothing are listened to, in seconds."""
    waited: list[float] = []

    def listen(_viewer: object, _seen: Watched, _relay: object, seconds: float, **_: object) -> None:
        waited.append(seconds)

    monkeypatch.setattr(gpu_relay, "running_relay", lambda *_: nullcontext((None, f"ipc://{tmp_path}/wire")))
    monkeypatch.setattr(gpu_relay, "listen", listen)
    return waited


@pytest.mark.parametrize(
    ("left", "waited", "told"),
    [
        (300.0, 120.0, "0 of them had a picture within 120 s"),
        (30.0, 18.0, "0 of them had a picture within 18 s, then no time was left"),
    ],
)
def test_a_relay_gets_no_more_time_to_start_than_is_left_beside_its_watch(
    tmp_path: Path, waits: list[float], left: float, waited: float, told: str
) -> None:
    *_, last = relay_figures(tmp_path, tmp_path, {}, 1.0, lambda: left, lambda: None, (4,))
    assert waits == [waited] * 2
    assert last["relay_limit"] == f"4 feeds: {told}"


@pytest.mark.skipif(has_driver(), reason="here is a GPU")
def test_a_relay_that_ends_is_told(tmp_path: Path) -> None:
    settings = {"runtime": "tensorrt"}
    found = list(relay_figures(tmp_path, tmp_path, settings, 1.0, lambda: 99.0, lambda: None, (1,)))
    limit = "1 feeds: the relay ended with exit code 1"
    assert found == [{"relay_1_feeds_tries": tries} for tries in (1, 2)] + [{"relay_feeds": 0, "relay_limit": limit}]


@pytest.mark.parametrize(
    ("carries", "slips", "tried", "limit"),
    [
        (1000, 0, [64, 128], "largest number of feeds that is tried"),
        (90, 0, [64, 128, 128, 80, 96, 96], "96 feeds: too many"),
        (70, 0, [64, 128, 128, 80, 80], "80 feeds: too many"),
        (40, 0, [64, 64, 32, 48, 48], "48 feeds: too many"),
        (10, 0, [64, 64, 32, 32, 16, 16, 8], "16 feeds: too many"),
        (0, 0, [64, 64, 32, 32, 16, 16, 8, 8], "8 feeds: too many"),
        (70, 1, [64, 64, 128, 128, 80, 80], "80 feeds: too many"),
    ],
    ids=["all", "many", "some", "half", "few", "none", "one slip"],
)
def test_relays_are_tried_from_the_middle_up_or_down_and_a_slip_is_forgiven(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, carries: int, slips: int, tried: list[int], limit: str
) -> None:
    begun: list[int] = []

    def one_relay(_feed: Path, _folder: Path, count: int, *_: object) -> tuple[gpu_relay.Figures, str]:
        begun.append(count)
        return {"fps": 1.0}, "" if count <= carries and len(begun) > slips else "too many"

    monkeypatch.setattr(gpu_relay, "one_relay", one_relay)
    *_, last = relay_figures(tmp_path, tmp_path, {}, 1.0, lambda: 99.0, lambda: None, (8, 16, 32, 48, 64, 80, 96, 128))
    assert begun == tried
    assert last == {"relay_feeds": max((count for count in tried if count <= carries), default=0), "relay_limit": limit}


@pytest.mark.parametrize(
    ("alone", "shown", "tried"),
    [(True, 0, [32, 32]), (False, 0, [32]), (True, 20, [32, 32, 16, 16, 8, 8]), (False, 20, [32, 32, 16, 16, 8, 8])],
    ids=["alone and silent", "silent", "alone and slow", "slow"],
)
def test_fewer_feeds_are_tried_only_where_the_first_relay_sends_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alone: bool, shown: int, tried: list[int]
) -> None:
    begun: list[int] = []

    def one_relay(_feed: Path, _folder: Path, count: int, *_: object) -> tuple[gpu_relay.Figures, str]:
        begun.append(count)
        return ({"started": shown} if shown else {}), "not all had a picture"

    monkeypatch.setattr(gpu_relay, "one_relay", one_relay)
    *_, last = relay_figures(tmp_path, tmp_path, {}, 1.0, lambda: 99.0, lambda: None, (8, 16, 32), alone)
    assert begun == tried
    assert last == {"relay_feeds": 0, "relay_limit": f"{tried[-1]} feeds: not all had a picture"}


def test_a_first_relay_that_is_not_alone_leaves_half_of_the_time_to_the_next_runtime(
    tmp_path: Path, waits: list[float]
) -> None:
    list(relay_figures(tmp_path, tmp_path, {}, 1.0, lambda: 100.0, lambda: None, (4,), is_last_runtime=False))
    assert waits == [38.0]


@pytest.mark.parametrize(("ended", "figures"), [(None, {"started": 2}), (1, {})])
def test_of_a_relay_whose_feeds_do_not_all_begin_it_is_told_how_many_did(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ended: int | None, figures: dict[str, int]
) -> None:
    def listen(_viewer: object, seen: Watched, *_: object, **__: object) -> None:
        seen.first |= {"bench0": 1, "bench1": 1}

    relay = SimpleNamespace(poll=lambda: ended)
    monkeypatch.setattr(gpu_relay, "running_relay", lambda *_: nullcontext((relay, f"ipc://{tmp_path}/wire")))
    monkeypatch.setattr(gpu_relay, "listen", listen)
    told = gpu_relay.one_relay(tmp_path, tmp_path, 4, {}, 1.0, lambda: 300.0, lambda: None)
    assert told == (figures, "2 of them had a picture within 120 s")


def test_the_most_feeds_so_far_are_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_relay, "one_relay", lambda *_: ({"fps": 1.0}, ""))
    found = relay_figures(tmp_path, tmp_path, {}, 1.0, lambda: 99.0, lambda: None, (64, 128))
    assert [part["relay_feeds"] for part in found if "relay_feeds" in part] == [64, 128, 128]


@pytest.mark.parametrize(("fps", "told"), [({}, ["32 feeds: none"]), ({"relay_32_feeds_fps": 1.0}, [])])
def test_a_runtime_whose_relay_sends_nothing_has_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fps: dict[str, float], told: list[str]
) -> None:
    last = {"relay_feeds": 0, "relay_limit": "32 feeds: none"}
    monkeypatch.setattr(gpu_relay, "relay_figures", lambda *_: iter([{"relay_32_feeds_tries": 1} | fps, last]))
    monkeypatch.setattr(gpu_parts, "night", lambda folder: folder)
    monkeypatch.setattr(stream, "repeated", lambda *_: tmp_path)
    found = list(gpu_parts.relay("torch", "field", str(tmp_path), None, False, lambda: 99.0))
    assert [part["relay_torch_failed"] for part in found if "relay_torch_failed" in part] == told


@pytest.mark.parametrize(("chosen", "batch"), [(None, EngineSettings().batch), ("5", 5)])
def test_before_the_relay_a_runtime_is_made_ready_for_it_with_the_relays_own_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, short: None, chosen: str | None, batch: int
) -> None:
    """What it builds and compiles then is what the relay needs, which holds for one size of batches only."""
    opened: list[EngineOptions] = []
    prepared: list[tuple[int, int]] = []

    class Prepared(DoublingEngine):
        def prepare(self, width: int, height: int) -> None:
            prepared.append((width, height))
            super().prepare(width, height)

        def submit(self, slots: Sequence[Slot]) -> None:
            assert prepared == [gpu_relay.SIZE]
            super().submit(slots)

    def open_prepared(_runtime: str, _weights: str, options: EngineOptions) -> Door:
        opened.append(options)
        return Prepared()

    monkeypatch.setattr(gpu_parts, "open_engine", open_prepared)
    monkeypatch.setattr(gpu_parts, "TAPE_SECONDS", 1)
    if chosen:
        monkeypatch.setenv("NIGHTBRIDGE__ENGINE__BATCH", chosen)
    found = together(gpu_parts.codecs("torch", "field", str(tmp_path), lambda: 99.0))
    assert found.keys() == {"relay_decode_ms", "relay_encode_ms"}
    assert prepared == [gpu_relay.SIZE]
    assert [options.batch for options in opened] == [batch]


def test_the_recording_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stream, "make_feed", lambda _clip, feed, *_: feed.touch())
    feed = gpu_parts.night(tmp_path)
    feed.write_text("kept")
    assert gpu_parts.night(tmp_path).read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["night.ts"]


def a_status(**counts: int) -> Status:
    return Status(state="live", received=0, published=0, under_way=0, dropped={"late": counts["late"]}, lost={})


def test_figures_of_a_relay_are_of_the_time_in_which_it_was_watched() -> None:
    seen = Watched(ages_ms=[10.0, 20.0, 30.0], seconds=2.0, cpu_seconds=1.0)
    seen.first, seen.latest = {"a": 100, "b": 50}, {"a": 149, "b": 99}
    seen.before, seen.after = {"a": a_status(late=7)}, {"a": a_status(late=9)}
    figures = step_figures(seen, codecs_ms=4.0)
    assert (figures["fps"], figures["dropped"], figures["lost"], figures["cores"]) == (50.0, 2, 0, 0.5)
    assert (figures["cpu_ms"], figures["cpu_beside_codecs_ms"], figures["age_p50_ms"]) == (10.0, 6.0, 20.0)
    assert step_figures(seen, codecs_ms=None)["cpu_beside_codecs_ms"] is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"dropped": 3}, "3 pictures were dropped and 0 lost"),
        ({"lost": 1}, "0 pictures were dropped and 1 lost"),
        ({"age_p95_ms": 151.0}, "age_p95_ms is above 150"),
        ({"age_p95_ms": None}, "age_p95_ms is above 150"),
        ({"fps": 97.0}, "fewer than 100 pictures a second came out"),
    ],
)
def test_what_is_too_much_for_a_relay_is_said(change: gpu_relay.Figures, reason: str | None) -> None:
    figures: gpu_relay.Figures = {"dropped": 0, "lost": 0, "age_p95_ms": 149.0, "fps": 99.0}
    assert why_too_many(figures | change, 4) == reason
