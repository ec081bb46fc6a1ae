from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import accumulate, pairwise

import av
import numpy as np
import pytest
from msgspec.structs import replace

from engines.colour import Colour
from stream.frame import Frame
from stream.timeline import Timeline
from stream.wire.messages import LARGEST_TICKS

MPEG_TS = Fraction(1, 90_000)
STEP = 3600
"""Ticks of MPEG-TS between two pictures at 25 a second."""
HOUR = 3600 * 90_000
PICTURE = av.VideoFrame(16, 16, "yuv420p")


def frame(pts: int | None, seconds: float | Fraction = 0.0, base: Fraction = MPEG_TS) -> Frame:
    """A picture that came after `seconds`; without a stamp where `pts` is None."""
    return Frame(
        picture=PICTURE,
        colour=Colour(),
        pts=0 if pts is None else pts,
        source_pts=pts,
        time_base=base,
        received_ns=1_800_000_000_000_000_000 + round(seconds * 1_000_000_000),
        capture_ns=7,
        capture_clock="arrival",
        state="clean",
        source_sha256=bytes(32),
    )


def live(stamps: Iterable[int | None], timeline: Timeline | None = None, step: float = 0.04) -> list[int]:
    """Where a live feed's pictures are placed that come evenly, one after every `step` seconds."""
    timeline = timeline or Timeline()
    return [timeline.place(frame(pts, number * step)).pts for number, pts in enumerate(stamps)]


def recorded(stamps: Iterable[int | None], timeline: Timeline) -> list[int]:
    """The same for a file that is read as fast as it goes."""
    timeline.begin(recorded=True)
    return [timeline.place(frame(pts)).pts for pts in stamps]


def steps(count: int, start: int = 0, step: int = STEP) -> list[int]:
    return [start + number * step for number in range(count)]


# Good stamps


@pytest.mark.parametrize("start", [0, 126_000, -7200, (1 << 33) - 90_000, 1 << 60])
@pytest.mark.parametrize("interval", [STEP, 450_000, 1, 3003])
def test_good_stamps_pass_unchanged(start: int, interval: int) -> None:
    timeline = Timeline()
    stamps = steps(50, start, interval)
    assert live(stamps, timeline, interval / 90_000) == stamps
    assert timeline.repairs == 0


def test_a_picture_whose_stamp_is_good_passes_untouched() -> None:
    timeline = Timeline()
    for number in range(3):
        picture = frame(number * STEP, number * 0.04)
        assert timeline.place(picture) is picture


@pytest.mark.parametrize("first", [(1 << 61) - 1, (1 << 62) - 1, -(1 << 62) + 1, -(1 << 61)])
def test_a_wild_first_stamp_leaves_all_that_follow_room_on_the_wire(first: int) -> None:
    placed = recorded([first, *steps(50)], Timeline()) + live([first, *steps(50)])
    assert max(map(abs, placed)) < LARGEST_TICKS


def test_nothing_but_the_stamp_is_replaced() -> None:
    timeline = Timeline()
    timeline.place(frame(0))
    second = frame(0, 0.04)
    placed = timeline.place(second)
    assert (placed.pts, placed.time_base, placed.received_ns) == (STEP, MPEG_TS, second.received_ns)
    assert (placed.capture_ns, placed.picture, placed.source_pts) == (7, second.picture, 0)


def test_uneven_pictures_keep_their_spacing() -> None:
    stamps = [0, 1, 90_000, 90_900, 400_000, 403_600, 403_601]
    assert live(stamps, step=1.0) == stamps


def test_a_true_pause_is_no_repair() -> None:
    timeline = Timeline()
    times = [*range(10), *range(510, 520)]
    stamps = [time * STEP for time in times]
    assert [timeline.place(frame(time * STEP, time * 0.04)).pts for time in times] == stamps
    assert timeline.repairs == 0


def test_a_link_that_stood_still_and_then_lost_what_was_waiting_is_no_repair() -> None:
    timeline = Timeline()
    arrivals = {0: 0.0, 1: 0.04, 2: 20.0, 3: 20.0, 4: 20.0, 490: 20.01, 491: 20.02, 500: 20.03, 501: 20.04}
    placed = [timeline.place(frame(number * STEP, seconds)).pts for number, seconds in arrivals.items()]
    assert placed == [number * STEP for number in arrivals]
    assert timeline.repairs == 0


def test_a_link_that_stood_still_excuses_a_minute_at_most() -> None:
    timeline = Timeline()
    live(steps(10), timeline)
    later = [timeline.place(frame((10 + number) * STEP, 600 + number * 0.04)).pts for number in range(10)]
    assert later == steps(10, 10 * STEP)
    assert timeline.place(frame(20 * STEP + 300 * 90_000, 600.4)).pts == 20 * STEP
    assert timeline.repairs == 1


def test_pictures_that_come_in_one_heap_pass_unchanged() -> None:
    timeline = Timeline()
    assert live(steps(300), timeline, step=0.0) == steps(300)
    assert timeline.repairs == 0


def test_arrivals_out_of_order_do_no_harm() -> None:
    timeline = Timeline()
    arrivals = [0.0, 0.08, 0.12, 0.04, 0.20, 0.24, 0.16]  # two B-frames between every two others
    placed = [timeline.place(frame(number * STEP, seconds)).pts for number, seconds in enumerate(arrivals)]
    assert placed == steps(7)
    assert timeline.repairs == 0


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


# Segments


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


# Whatever comes


RATES = (2, 5, 12, 25, 30, 50)
BASES = (MPEG_TS, Fraction(1, 1000), Fraction(1, 1_200_000))


class Camera:
    """A feed whose stamps have faults by chance, on a link that jitters; it remembers what is true."""

    def __init__(self, seed: int, faults: bool = True) -> None:
        random = np.random.default_rng(seed)
        self.rate, base = int(random.choice(RATES)), BASES[random.integers(len(BASES))]
        self.frames: list[Frame] = []
        self.true: list[float] = []
        self.good: list[bool] = []
        """Whether a stamp is right but for what was lasting before it."""
        true, shift, still = 0.0, 0, 0
        for _ in range(800):
            fault = str(random.choice(FAULTS, p=CHANCES)) if faults else "none"
            true += 1 / self.rate + (random.uniform(5, 60) if fault == "pause" else 0)
            if fault == "jump":
                shift += int(random.choice([-1, 1]) * random.uniform(10, 1e6) / base)
            still = int(random.integers(2, 20)) if fault == "still" else max(still - 1, 0)
            stamp: int | None = round(Fraction(true) / base) + shift
            if fault == "wild":
                stamp = int(random.integers(-(1 << 62), 1 << 62))
            elif fault == "missing":
                stamp = None
            elif still and self.frames:
                stamp = self.frames[-1].pts
            self.frames.append(frame(stamp, true + abs(random.normal(0, 0.05)), base))
            self.true.append(true)
            self.good.append(fault in ("none", "pause") and not still)

    def faults(self) -> int:
        return self.good.count(False)


FAULTS = ("none", "pause", "jump", "wild", "missing", "still")
CHANCES = (0.95, 0.005, 0.005, 0.02, 0.015, 0.005)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_stamps_the_clock_grows_and_stays_with_the_time_that_passes(seed: int) -> None:
    camera, timeline = Camera(seed), Timeline()
    placed = [timeline.place(shown) for shown in camera.frames]
    assert [shown.time_base for shown in placed] == [shown.time_base for shown in camera.frames]
    times = np.array([float(shown.pts * shown.time_base) for shown in placed])
    assert all(later > earlier for earlier, later in pairwise(shown.pts for shown in placed))
    drift = (times - times[0]) - (np.array(camera.true) - camera.true[0])
    assert np.abs(drift).max() < 0.5 + 0.05 * camera.faults() / camera.rate + 3 / camera.rate
    assert camera.faults() * 0.5 <= timeline.repairs <= camera.faults() * 1.5 + 5


@pytest.mark.parametrize("seed", range(40))
def test_stamps_that_are_good_for_a_while_keep_their_spacing(seed: int) -> None:
    camera, timeline = Camera(seed), Timeline()
    placed = [timeline.place(shown).pts for shown in camera.frames]
    settled = list(accumulate(camera.good, lambda count, good: (count + 1) * good, initial=0))[1:]
    checked = 0
    for number, (earlier, later) in enumerate(pairwise(zip(placed, camera.frames, strict=True))):
        if settled[number + 1] > 5:
            assert later[0] - earlier[0] == later[1].pts - earlier[1].pts
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("seed", range(10))
def test_a_good_camera_on_a_link_that_jitters_needs_no_repair(seed: int) -> None:
    camera, timeline = Camera(seed, faults=False), Timeline()
    assert [timeline.place(shown) for shown in camera.frames] == camera.frames
    assert timeline.repairs == 0
