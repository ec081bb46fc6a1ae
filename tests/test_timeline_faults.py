from __future__ import annotations

import numpy as np
import pytest

from stream.timeline import Timeline
from tests.stamps import HOUR, STEP, frame, live, steps

# Jumps


def test_a_forward_jump_is_bridged_by_the_usual_step_and_is_one_repair() -> None:
    timeline = Timeline()
    assert live(steps(10) + steps(10, HOUR), timeline) == steps(20)
    assert timeline.repairs == 1


def test_a_step_back_is_bridged_by_the_usual_step_and_is_one_repair() -> None:
    timeline = Timeline()
    assert live(steps(10, HOUR) + steps(10, 7), timeline) == steps(20, HOUR)
    assert timeline.repairs == 1


def test_a_jump_is_bridged_by_the_time_that_passed_where_that_is_longer() -> None:
    timeline = Timeline()
    live(steps(10), timeline)
    assert [timeline.place(frame(HOUR + number * STEP, 30 + number * 0.04)).pts for number in range(3)] == steps(
        3, 30 * 90_000
    )
    assert timeline.repairs == 1


@pytest.mark.parametrize(("ahead", "repairs"), [(5.0, 0), (5.04, 1)])
def test_more_than_five_seconds_beyond_the_time_that_passed_is_a_jump(ahead: float, repairs: int) -> None:
    timeline = Timeline()
    live(steps(10), timeline)
    stamp = 9 * STEP + round((2 + ahead) * 90_000)
    timeline.place(frame(stamp, 0.36 + 2.0))
    assert timeline.repairs == repairs


@pytest.mark.parametrize("wild", [HOUR * 26, -HOUR, 5, (1 << 33) - 1, 1 << 63])
def test_one_wild_stamp_alone_leaves_no_shift(wild: int) -> None:
    timeline = Timeline()
    stamps = [*steps(10), wild, *steps(20)[11:]]
    assert live(stamps, timeline) == steps(20)
    assert timeline.repairs == 1


def test_two_wild_stamps_leave_no_shift_and_three_on_one_line_are_a_jump() -> None:
    timeline = Timeline()
    stamps = [*steps(10), HOUR, HOUR + STEP, *steps(5, 12 * STEP), *steps(3, HOUR), *steps(5, HOUR + 3 * STEP)]
    assert live(stamps, timeline) == steps(len(stamps))
    assert timeline.repairs == 2


def test_every_other_stamp_wild_is_a_repair_each() -> None:
    timeline = Timeline()
    random = np.random.default_rng(3)
    stamps = [number * STEP if number % 2 == 0 else int(random.integers(-(1 << 50), 1 << 50)) for number in range(100)]
    assert live(stamps, timeline) == steps(100)
    assert timeline.repairs == 50


def test_a_wild_first_stamp_is_where_the_clock_begins() -> None:
    timeline = Timeline()
    assert live([HOUR, *steps(9)], timeline) == steps(10, HOUR)
    assert timeline.repairs == 1


def test_a_first_stamp_without_room_for_more_is_replaced() -> None:
    timeline = Timeline()
    assert live(steps(5, (1 << 63) - 1 - STEP), timeline) == steps(5)
    assert timeline.repairs == 1


# Wraps


@pytest.mark.parametrize("bits", [32, 33])
@pytest.mark.parametrize("interval", [STEP, 3003, 90_000])
def test_a_wrap_keeps_every_spacing_and_is_one_repair(bits: int, interval: int) -> None:
    timeline = Timeline()
    true = steps(20, (1 << bits) - 10 * interval + 17, interval)
    true = [pts + 700 * (pts >= 1 << bits) for pts in true]
    assert live([pts % (1 << bits) for pts in true], timeline, interval / 90_000) == true
    assert timeline.repairs == 1


def test_a_feed_may_wrap_again_and_again() -> None:
    timeline = Timeline()
    true = steps(40, 0, 1 << 31)  # every other picture of this camera wraps
    assert live([pts % (1 << 32) for pts in true], timeline, (1 << 31) / 90_000) == true
    assert timeline.repairs == 19


# Stamps that stand still, repeat or are missing


def test_a_repeated_stamp_leaves_no_shift() -> None:
    timeline = Timeline()
    stamps = steps(20)
    stamps[10] = stamps[9]
    assert live(stamps, timeline) == steps(20)
    assert timeline.repairs == 1


def test_a_camera_that_stamps_every_two_pictures_alike_is_spaced_evenly() -> None:
    timeline = Timeline()
    stamps = [number // 2 * 2 * STEP for number in range(40)]
    placed = live(stamps, timeline)
    assert placed[3:] == steps(40)[3:]
    assert timeline.repairs == 20


@pytest.mark.parametrize("still", [10, 1000])
def test_stamps_that_stand_still_are_each_a_repair_and_leave_no_shift_if_the_clock_went_on(still: int) -> None:
    timeline = Timeline()
    stamps = [*steps(10), *[9 * STEP] * still, *steps(10, (10 + still) * STEP)]
    assert live(stamps, timeline) == steps(20 + still)
    assert timeline.repairs == still


def test_stamps_that_go_on_where_they_stood_still_are_shifted() -> None:
    timeline = Timeline()
    assert live([*steps(10), *[9 * STEP] * 500, *steps(10, 10 * STEP)], timeline) == steps(520)
    assert timeline.repairs == 500


@pytest.mark.parametrize("missing", [1, 2, 30, 1000])
def test_missing_stamps_are_each_a_repair_and_leave_no_shift(missing: int) -> None:
    timeline = Timeline()
    stamps = [*steps(10), *[None] * missing, *steps(10, (10 + missing) * STEP)]
    assert live(stamps, timeline) == steps(20 + missing)
    assert timeline.repairs == missing


@pytest.mark.parametrize("rate", [2, 10, 25, 30, 60])
def test_a_feed_without_any_stamp_is_placed_by_the_arrival_of_its_pictures(rate: int) -> None:
    timeline = Timeline()
    placed = live([None] * 3000, timeline, 1 / rate)
    assert timeline.repairs == 3000
    assert placed[0] == 0
    assert placed[-1] / 90_000 == pytest.approx(2999 / rate, abs=0.6)
    spaces = np.diff(placed[1000:]) / 90_000
    assert np.median(spaces) == pytest.approx(1 / rate, rel=0.02)
    assert spaces.min() > 0


def test_a_feed_without_stamps_that_becomes_faster_stays_with_the_time_that_passes() -> None:
    timeline = Timeline()
    times = [number * 0.1 for number in range(100)] + [10 + number * 0.04 for number in range(400)]
    placed = [timeline.place(frame(None, seconds)).pts for seconds in times]
    assert placed[-1] / 90_000 == pytest.approx(times[-1], abs=0.6)


def test_a_first_picture_without_a_stamp_makes_the_clock_of_the_next_one_no_repair() -> None:
    timeline = Timeline()
    assert live([None, *steps(9, HOUR)], timeline) == steps(10)
    assert timeline.repairs == 1


def test_a_pause_without_stamps_is_as_long_as_it_was() -> None:
    timeline = Timeline()
    live(steps(10), timeline)
    assert timeline.place(frame(None, 20.0)).pts == 20 * 90_000


def test_a_machine_whose_clock_is_set_back_does_not_stop_a_feed_without_stamps() -> None:
    timeline = Timeline()
    before = live([None] * 100, timeline)
    after = [timeline.place(frame(None, number * 0.04 - 7200)).pts for number in range(100)]
    assert after[-1] - before[-1] == pytest.approx(100 * STEP, abs=STEP)


@pytest.mark.parametrize("ahead", [10.0, 3600.0, 1.7e9])
def test_a_machine_whose_clock_is_set_ahead_teaches_a_feed_without_stamps_no_other_step(ahead: float) -> None:
    timeline = Timeline()
    before = live([None] * 30, timeline)
    after = [timeline.place(frame(None, number * 0.04 + ahead)).pts for number in range(30, 130)]
    assert after[0] - before[-1] == pytest.approx(ahead * 90_000, abs=STEP)
    assert after[-1] - after[0] == pytest.approx(99 * STEP, abs=STEP)
