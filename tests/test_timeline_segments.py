from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from msgspec.structs import replace

from stream.timeline import Timeline
from tests.stamps import HOUR, MPEG_TS, STEP, frame, live, recorded, steps


def test_files_that_begin_at_nought_follow_one_another_and_are_no_repair() -> None:
    timeline = Timeline()
    placed = [pts for _ in range(4) for pts in recorded(steps(10), timeline)]
    assert placed == steps(40)
    assert timeline.repairs == 0


def test_a_wild_stamp_at_the_end_of_a_file_moves_nothing_in_the_next() -> None:
    timeline = Timeline()
    recorded([*steps(10), HOUR], timeline)
    assert recorded(steps(10, HOUR + 30 * 90_000), timeline) == steps(10, 11 * STEP)


def test_files_that_go_on_where_the_last_one_ended_pass_unchanged() -> None:
    timeline = Timeline()
    assert recorded(steps(10), timeline) + recorded(steps(10, 20 * STEP), timeline) == steps(10) + steps(10, 20 * STEP)
    assert timeline.repairs == 0


@pytest.mark.parametrize(("gap", "repairs"), [(20, 0), (60, 0), (61, 1)])
def test_a_recording_may_pause_for_a_minute_at_most(gap: int, repairs: int) -> None:
    timeline = Timeline()
    stamps = steps(10) + steps(10, 9 * STEP + gap * 90_000)
    assert recorded(stamps, timeline) == (steps(20) if repairs else stamps)
    assert timeline.repairs == repairs


def test_how_slowly_a_recording_is_read_moves_nothing() -> None:
    timeline = Timeline()
    timeline.begin(recorded=True)
    stamps = [*steps(10), 0, *steps(9, 11 * STEP)]
    assert [timeline.place(frame(pts, number * 100.0)).pts for number, pts in enumerate(stamps)] == steps(20)


def test_a_recording_without_stamps_keeps_the_times_that_its_decoder_reckoned() -> None:
    timeline = Timeline()
    timeline.begin(recorded=True)
    for number in range(10):
        unstamped = replace(frame(number * 1500), source_pts=None)
        assert timeline.place(unstamped).pts == number * 1500
    assert timeline.repairs == 10


def test_a_camera_that_comes_back_with_a_new_clock_is_bridged_by_the_outage_and_is_no_repair() -> None:
    timeline = Timeline()
    live(steps(10, HOUR), timeline)
    timeline.begin(recorded=False)
    placed = [timeline.place(frame(number * STEP, 0.36 + 12 + number * 0.04)).pts for number in range(10)]
    assert placed == steps(10, HOUR + 9 * STEP + 12 * 90_000)
    assert timeline.repairs == 0


def test_a_camera_that_comes_back_with_the_clock_it_had_passes_unchanged() -> None:
    timeline = Timeline()
    live(steps(10), timeline)
    timeline.begin(recorded=False)
    assert [timeline.place(frame(number * STEP, number * 0.04)).pts for number in range(400, 410)] == steps(
        10, 400 * STEP
    )
    assert timeline.repairs == 0


def test_an_outage_is_not_taken_for_the_usual_step() -> None:
    timeline = Timeline()
    for outage in range(5):
        timeline.begin(recorded=False)
        for number in range(2):
            timeline.place(frame(number * STEP, outage * 60 + number * 0.04))
    last = timeline.place(frame(2 * STEP, 240.08)).pts
    assert timeline.place(frame(0, 240.12)).pts == last + STEP


@pytest.mark.parametrize("base", [Fraction(1, 1000), Fraction(1, 25), Fraction(1001, 30_000), Fraction(1, 1_200_000)])
def test_another_time_base_goes_on_in_its_own_ticks(base: Fraction) -> None:
    timeline = Timeline()
    before = live(steps(25), timeline)[-1] * MPEG_TS
    timeline.begin(recorded=False)
    ticks = round(1 / base)
    placed = [timeline.place(frame(second * ticks, 1 + second, base)) for second in range(5)]
    assert {shown.time_base for shown in placed} == {base}
    times = [before, *(shown.pts * base for shown in placed)]
    assert all(later > earlier for earlier, later in pairwise(times))
    assert all(later - earlier == ticks * base for earlier, later in pairwise(times[1:]))
    assert float(times[1] - before) == pytest.approx(0.04, abs=float(base))


def test_a_coarser_time_base_still_grows() -> None:
    timeline = Timeline()
    last = timeline.place(frame(90_001)).pts * MPEG_TS
    for number in range(4):
        placed = timeline.place(frame(number % 2, base=Fraction(1))).pts
        assert placed > last
        last = Fraction(placed)
