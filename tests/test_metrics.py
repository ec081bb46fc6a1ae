from __future__ import annotations

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
