from __future__ import annotations

import pytest

from stream import metrics
from stream.metrics import FeedMeter


def test_what_came_in_is_published_dropped_lost_or_under_way() -> None:
    meter = FeedMeter()
    for _ in range(10):
        meter.receive()
    for age_ms in (10, 20, 30):
        meter.publish(age_ms)
    meter.drop("late")
    meter.drop("overload")
    meter.drop("overload")
    meter.lose("undecodable", 2)
    meter.lose("engine", 0)
    figures = meter.figures()
    assert (figures.received, figures.published, figures.under_way) == (10, 3, 2)
    assert figures.dropped == {"late": 1, "overload": 2}
    assert figures.lost == {"undecodable": 2}
    assert figures.age_ms(50) == 20


def test_there_is_no_age_before_the_first_picture() -> None:
    assert FeedMeter().figures().age_ms(50) is None


def test_ages_are_counted_up_to_each_bound_and_none_is_below_nought() -> None:
    meter = FeedMeter()
    for age_ms in (-10.0, 20.0, 20.1, 6_000.0):
        meter.publish(age_ms)
    figures = meter.figures()
    assert figures.ages.bounds[:2] == (0.02, 0.04)
    assert figures.ages.counts == (2, 1, *[0] * 11, 1)
    assert figures.ages.sum == pytest.approx(6.0401)
    assert figures.age_ms(0) == 0


def test_percentiles_are_those_of_the_latest_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "AGES_KEPT", 3)
    meter = FeedMeter()
    for age_ms in range(1000, 1005):
        meter.publish(age_ms)
    assert meter.figures().ages_ms == [1002, 1003, 1004]
