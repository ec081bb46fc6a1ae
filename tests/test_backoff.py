from __future__ import annotations

from stream.sources.backoff import HEALTHY_SECONDS, LONGEST, SHORTEST, Backoff


def test_pauses_grow_from_half_a_second_to_thirty_and_stay_there() -> None:
    backoff = Backoff(seed=1)
    pauses = [backoff.pause(0.0) for _ in range(2_000)]
    assert all(SHORTEST <= pause <= LONGEST for pause in pauses)
    assert pauses[0] < 0.7
    assert all(pause >= 20 for pause in pauses[6:])


def test_many_feeds_that_fail_together_come_back_at_different_times() -> None:
    for failures in (1, 3, 10):
        pauses = set()
        for seed in range(50):
            backoff = Backoff(seed)
            pauses.add([round(backoff.pause(0.0), 3) for _ in range(failures)][-1])
        assert len(pauses) > 30


def test_a_source_that_was_healthy_is_opened_again_soon() -> None:
    backoff = Backoff(seed=1)
    for _ in range(10):
        backoff.pause(HEALTHY_SECONDS - 0.1)
    assert backoff.pause(0.0) >= 20
    assert backoff.pause(HEALTHY_SECONDS) < 0.7
