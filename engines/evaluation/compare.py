"""Compares the figures of several engines: mean and spread over seeds, differences between runtimes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Figures = Mapping[str, object]
"""By name: numbers, texts, lists of rows, or further figures."""


def numbers(figures: Figures, name: str = "") -> dict[str, float]:
    """The numbers among the figures, by dotted names; texts and rows are left out."""
    found: dict[str, float] = {}
    for key, value in figures.items():
        here = f"{name}.{key}" if name else key
        if isinstance(value, Mapping):
            found |= numbers(value, here)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[here] = float(value)
    return found


def mean_and_spread(runs: Sequence[Figures]) -> dict[str, dict[str, float]]:
    """Mean and sample standard deviation (n - 1) of each number over two or more runs."""
    table = [numbers(run) for run in runs]
    return {
        key: {
            "mean": float(np.mean([row[key] for row in table])),
            "spread": float(np.std([row[key] for row in table], ddof=1)),
        }
        for key in table[0]
        if all(key in row for row in table)
    }


def difference(run: Figures, reference: Figures) -> dict[str, float]:
    """Each number of a run minus the reference's."""
    here, there = numbers(run), numbers(reference)
    return {key: here[key] - there[key] for key in here if key in there}


def largest_difference(rows: Sequence[Figures], references: Sequence[Figures], key: str) -> float:
    """The largest absolute difference of one number over rows for the same pictures in the same order."""
    return max(
        abs(numbers(row)[key] - numbers(reference)[key]) for row, reference in zip(rows, references, strict=True)
    )
