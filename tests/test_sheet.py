from __future__ import annotations

import numpy as np
import pytest

from engines.door import Slot
from engines.evaluation.sheet import CAPTION, GAP, THUMBNAIL, contact_sheet, sheet_row
from tests.doubling import DoublingEngine


class Brightening(DoublingEngine):
    def _finish(self, slot: Slot) -> None:
        super()._finish(slot)
        slot.y_out[:] = 200


def test_a_row_shows_the_input_its_bicubic_double_and_the_output() -> None:
    dark = np.full((30, 60, 3), 40, np.uint8)
    with Brightening() as engine:
        rows = [sheet_row(engine, name, dark) for name in ("a.png", "b.png")]
    sheet = np.asarray(contact_sheet("two", rows))
    height = THUMBNAIL // 2
    assert sheet.shape == (3 * GAP + 4 * CAPTION + 2 * height, 3 * (THUMBNAIL + GAP) + GAP, 3)
    for row in range(2):
        middle = 2 * CAPTION + row * (CAPTION + height + GAP) + CAPTION + height // 2
        shown = [int(sheet[middle, GAP + column * (THUMBNAIL + GAP) + THUMBNAIL // 2, 0]) for column in range(3)]
        assert shown == pytest.approx([40, 40, 200], abs=1)
    assert (rows[0].mean_in, rows[0].mean_out) == pytest.approx((40, 200), abs=1)


def test_captions_name_the_picture_and_tell_sizes_and_brightness() -> None:
    with DoublingEngine() as engine:
        row = sheet_row(engine, "pier.png", np.full((30, 60, 3), 40, np.uint8))
    assert row.captions == (
        "pier.png  60x30  mean 40",
        "bicubic double  120x60  mean 40",
        "output  120x60  mean 40",
    )


def test_names_are_drawn_in_letters_that_the_font_has() -> None:
    def sheet(name: str) -> bytes:
        with DoublingEngine() as engine:
            row = sheet_row(engine, name, np.full((30, 60, 3), 40, np.uint8))
        return contact_sheet(name, [row]).tobytes()

    assert sheet("Brücke\N{MULTIPLICATION SIGN}é.png") == sheet("Brucke?e.png")
    assert sheet("пирс.png") == sheet("????.png")
    assert sheet("Brucke.png") != sheet("Br?cke.png")


def test_a_name_of_any_length_stays_in_its_column() -> None:
    with DoublingEngine() as engine:
        row = sheet_row(engine, "n" * 300, np.full((30, 60, 3), 40, np.uint8))
    sheet = np.asarray(contact_sheet("long", [row]))
    edge = GAP + THUMBNAIL
    assert (sheet[2 * CAPTION : 3 * CAPTION, edge : edge + GAP] == 255).all()
