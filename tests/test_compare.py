from __future__ import annotations

import pytest

from engines.evaluation.compare import difference, largest_difference, mean_and_spread, numbers

RUN = {"weights": "a", "lol": {"psnr_db": 20.0, "pictures": [{"name": "1", "psnr_db": 20.0}]}, "steady": {"mabd": 2}}


def test_numbers_are_found_at_every_depth_and_rows_and_texts_are_not() -> None:
    assert numbers(RUN) == {"lol.psnr_db": 20.0, "steady.mabd": 2.0}


def test_the_spread_over_seeds_is_the_deviation_of_a_sample() -> None:
    runs = [{"lol": {"psnr_db": value}} for value in (20.0, 21.0, 22.0)]
    assert mean_and_spread(runs) == {"lol.psnr_db": {"mean": 21.0, "spread": 1.0}}


def test_a_difference_is_told_for_each_number_and_for_the_worst_picture() -> None:
    other = {"lol": {"psnr_db": 19.5}, "steady": {"mabd": 2.5}}
    assert difference(other, RUN) == {"lol.psnr_db": -0.5, "steady.mabd": 0.5}
    rows, references = ([{"psnr_db": value} for value in values] for values in ((20.0, 21.0), (20.5, 20.9)))
    assert largest_difference(rows, references, "psnr_db") == pytest.approx(0.5)
