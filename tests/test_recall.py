from __future__ import annotations

from fractions import Fraction

import pytest
from msgspec.structs import replace

from engines.door import Memory
from stream.recall import Recall
from tests.doubling import DoublingEngine
from tests.test_enhance import frame

MILLISECOND = Fraction(1, 1000)


def lent(recall: Recall, engine: DoublingEngine, seconds: float, width: int = 32) -> tuple[Memory | None, float]:
    slot = engine.acquire(width, 32)
    recall.lend(slot, replace(frame(round(seconds * 1000), width=width), time_base=MILLISECOND))
    memory = slot.memory
    slot.release()  # takes it from the slot
    return memory, slot.keep


def test_pictures_of_one_feed_share_a_memory_that_fades_with_time() -> None:
    recall = Recall()
    with DoublingEngine() as engine:
        first, _ = lent(recall, engine, 100)
        again, kept = lent(recall, engine, 100.4)
        later, little = lent(recall, engine, 110)
    assert first is again is later is not None
    assert kept == pytest.approx(0.3679, abs=1e-4)
    assert little < 1e-9


def test_two_feeds_share_nothing() -> None:
    with DoublingEngine() as engine:
        assert lent(Recall(), engine, 1)[0] is not lent(Recall(), engine, 1)[0]


def test_another_size_begins_anew() -> None:
    recall = Recall()
    with DoublingEngine() as engine:
        before = lent(recall, engine, 1)[0]
        after = lent(recall, engine, 1.04, width=64)[0]
        assert after is not before
        assert lent(recall, engine, 1.08, width=64)[0] is after


def test_time_that_runs_backwards_begins_anew_and_keeps_no_more_than_all() -> None:
    recall = Recall()
    with DoublingEngine() as engine:
        before = lent(recall, engine, 10)[0]
        after, keep = lent(recall, engine, 9)
    assert after is not before
    assert keep <= 1
