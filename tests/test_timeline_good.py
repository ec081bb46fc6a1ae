from __future__ import annotations

from fractions import Fraction
from itertools import accumulate, pairwise

import numpy as np
import pytest

from stream.frame import Frame
from stream.timeline import Timeline
from stream.wire.messages import LARGEST_TICKS
from tests.stamps import MPEG_TS, STEP, frame, live, recorded, steps

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
