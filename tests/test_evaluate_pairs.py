"""The protocol of LOL: its data, its input of half the size, and its scores."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from engines.colour import Colour, to_planes
from engines.data.lol import HELD_OUT, OUTLIERS, Pair, Picture, decode_picture, double, halve, read_lol
from engines.data.pairs import lol_samples
from engines.door import Door, Slot
from engines.errors import EngineMismatch
from engines.evaluation.daylight import day_score
from engines.evaluation.evaluate import PICTURE_COLOUR, enhance_picture, evaluate, read_split, summary
from engines.evaluation.sheet import sheet_row
from tests.command import nightbridge
from tests.doubling import DoublingEngine
from tests.lol import SCORES, make_lol, packed, scene
from tools.evaluate import steady_measure

TAPS = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
"""Cubic convolution with a = -1/2 (Keys, 1981), stretched over twice its width, at the middles of 8 pixels."""


def test_pairs_of_one_s_own_are_added_to_those_of_the_shards_or_stand_for_them(tmp_path: Path) -> None:
    place = packed(make_lol(tmp_path / "lol", "our485", [1, 2, 665]), "our485", "train-all.tar")
    make_lol(place, "our485", [2, 9001])
    Image.fromarray(scene(7, 0.5)).save(place / "our485" / "high" / "2.png")
    pairs = read_lol(place, "our485")
    assert [pair.name for pair in pairs] == ["1", "2", "665", "9001"]
    assert np.array_equal(pairs[1].high, scene(7, 0.5))


def test_pictures_are_read_in_the_order_of_their_numbers_from_folders_and_from_shards(tmp_path: Path) -> None:
    folder = make_lol(tmp_path / "lol", "eval15", [100, 9, 10])
    (folder / "eval15" / "low" / "._9.png").write_bytes(b"what other systems leave behind")
    for place in (folder, packed(folder, "eval15", "eval15.tar")):
        pairs = read_lol(place, "eval15")
        assert [pair.name for pair in pairs] == ["9", "10", "100"]
        for pair in pairs:
            np.testing.assert_array_equal(pair.low, scene(int(pair.name), 0.08))
            np.testing.assert_array_equal(pair.high, scene(int(pair.name), 1.0))


def test_training_sees_neither_outliers_nor_the_scenes_that_are_held_out(tmp_path: Path) -> None:
    assert frozenset({141, 142, 183, 237, 648}) == OUTLIERS
    assert (HELD_OUT.start, HELD_OUT.stop) == (660, 698)
    numbers = [2, 141, 142, 183, 237, 648, 659, 660, 680, 697, 698, 700]
    folder = make_lol(tmp_path / "lol", "our485", numbers)
    for place in (folder, packed(folder, "our485", "train-000.tar")):
        parts = [[(sample.dark, sample.large) for sample in samples] for samples in lol_samples(place)]
        for samples, expected in zip(parts, ([2, 659, 698, 700], [660, 680, 697]), strict=True):
            for (dark, bright), number in zip(samples, expected, strict=True):
                np.testing.assert_array_equal(dark, scene(number, 0.08))
                np.testing.assert_array_equal(bright, scene(number, 1.0))


def test_half_the_size_is_antialiased_bicubic() -> None:
    picture = np.random.default_rng(3).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    half = halve(picture)
    assert half.shape == (20, 26, 3)
    assert half.dtype == np.uint8
    inside = picture.astype(float)
    for axis in (1, 0):  # pixel i of the half lies between 2i and 2i + 1: it is made of 2i - 3 to 2i + 4
        ends = inside.shape[axis] - len(TAPS)
        inside = np.sum([tap * inside.take(range(1 + i, ends + i, 2), axis) for i, tap in enumerate(TAPS)], axis=0)
        inside = inside.clip(0, 255)
    assert np.abs(half[2:-2, 2:-2] - inside).max() <= 1.5  # Pillow rounds after each of the two axes


class Recording(DoublingEngine):
    """Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[np.ndarray, np.ndarray, Colour]] = []

    def _finish(self, slot: Slot) -> None:
        self.given.append((slot.y.copy(), slot.uv.copy(), slot.colour))
        super()._finish(slot)


def test_the_engine_is_given_the_halved_dark_picture_in_the_colours_of_picture_files() -> None:
    low = scene(7, 0.3)
    with Recording() as engine:
        (score,) = evaluate(engine, [Pair("7", low, low)])
    (y, uv, colour) = engine.given[0]
    assert (y.shape, colour, PICTURE_COLOUR) == ((24, 32), Colour("bt601", full_range=True), colour)
    expected = to_planes(halve(low), colour)
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_array_equal(uv, expected[1])
    assert score.name == "7"


def test_a_picture_with_odd_sides_is_compared_with_what_it_shows() -> None:
    slope = np.repeat(3 * np.arange(75, dtype=np.uint8)[None, :, None], 51, axis=0).repeat(3, axis=2)
    with Recording() as engine:
        list(evaluate(engine, [Pair("1", slope, slope)]))
    between = slope[:50, :74, 0].reshape(25, 2, 37, 2).mean((1, 3))
    assert np.abs(engine.given[0][0] - between)[:, 2:-2].max() <= 1


@pytest.mark.parametrize("size", [(1, 64), (10, 10)])
def test_a_picture_that_is_too_small_is_told_by_its_name(size: tuple[int, int]) -> None:
    icon = np.full((*size, 3), 150, np.uint8)
    with DoublingEngine() as engine:
        for measure in (
            lambda: day_score(engine, "icon.png", icon),
            lambda: list(evaluate(engine, [Pair("icon.png", icon, icon)])),
            lambda: sheet_row(engine, "icon.png", icon),
        ):
            with pytest.raises(EngineMismatch, match=r"^icon\.png: "):
                measure()


def test_scores_are_those_of_the_doubled_picture_against_the_bright_one() -> None:
    flat = [np.full((49, 65, 3), value, np.uint8) for value in (10, 20)]
    with DoublingEngine() as engine:
        scores = list(evaluate(engine, [Pair("1", flat[0], flat[1]), Pair("2", flat[1], flat[0])]))
    assert [score.psnr_db for score in scores] == pytest.approx([28.1308, 28.1308], abs=1e-4)
    assert [score.ssim for score in scores] == pytest.approx([0.802567, 0.802567], abs=1e-6)
    assert [score.mean_ratio for score in scores] == [0.5, 2]
    figures = summary(scores)
    assert figures["mean_ratio"] == 1.25
    assert figures["psnr_db"] == pytest.approx(28.1308, abs=1e-4)
    assert figures["pictures"] == [
        {"name": name, **{key: getattr(score, key) for key in SCORES}} for name, score in zip("12", scores, strict=True)
    ]


def test_at_full_size_the_output_is_halved_and_compared() -> None:
    low, high = scene(7, 0.3), scene(7, 1.0)
    with Recording() as engine:
        (score,) = evaluate(engine, [Pair("7", low, high)], full_size=True)
        made = halve(enhance_picture(engine, low))
    assert engine.given[0][0].shape == low.shape[:2]
    assert score.psnr_db == pytest.approx(peak_signal_noise_ratio(high, made), abs=1e-3)


def test_the_bicubic_double_of_a_slope_is_the_same_slope() -> None:
    slope = np.repeat(np.arange(20, 220, 4, dtype=np.uint8)[None, :, None], 10, axis=0).repeat(3, axis=2)
    doubled = double(slope)
    assert doubled.shape == (20, 100, 3)
    np.testing.assert_allclose(doubled[5, 6:-6, 0], 19 + 2 * np.arange(6, 94), atol=1)


def test_the_held_out_split_is_its_scenes_alone(tmp_path: Path) -> None:
    folder = make_lol(tmp_path / "lol", "our485", [2, 659, 660, 697, 698, 700])
    assert [pair.name for pair in read_split(folder, "held-out")] == ["660", "697"]
    assert [pair.name for pair in read_split(folder, "our485")] == ["2", "659", "660", "697", "698", "700"]
    few = make_lol(tmp_path / "few", "our485", [2])
    with pytest.raises(FileNotFoundError, match="few: our485 has none of the held-out scenes 660 to 697"):
        read_split(few, "held-out")


def test_both_scenes_of_steadiness_have_as_many_pictures_as_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def still(_engine: Door, _scene: Picture, frames: int) -> dict[str, float]:
        counts.append(frames)
        return {}

    def moving(_engine: Door, clean: list[Picture]) -> dict[str, float]:
        counts.append(len(clean))
        return {}

    monkeypatch.setattr("engines.evaluation.steady.still_scene", still)
    monkeypatch.setattr("engines.evaluation.steady.moving_scene", moving)
    monkeypatch.setattr("engines.evaluation.text.text_scenes", lambda *_: {})
    measure = steady_measure(10_000)
    with DoublingEngine() as engine:
        told = measure.summary(list(measure.rows(engine)))
    assert counts == [told["frames"]] * 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "nothing to measure"),
        (("--folder", "."), "--folder and --contact-sheet belong together"),
        (("--steady", "--crf", "20"), "--crf is for --daylight"),
        (("--lol", ".", "--split", "test"), "'test' is not one of"),
        (("--steady", "--runtime", "cuda"), "'cuda' is not one of auto, tensorrt, torch, openvino"),
        (("--steady", "--precision", "fp32", "--precision", "fp8"), "'fp8' is not one of auto, fp32"),
        (("--folder", ".", "--contact-sheet", "a.png", "--precision", "fp32", "--precision", "int8"), "one engine"),
        (("--folder", ".", "--contact-sheet", "a.doc"), "a.doc is not a picture file"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_opened(
    tmp_path: Path, words: Sequence[str], told: str
) -> None:
    done = nightbridge(tmp_path, "evaluate", *words, COLUMNS="300")
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_grey_pictures_of_16_bits_keep_their_greys() -> None:
    codes = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    picture = decode_picture(encoded(Image.fromarray(codes), "PNG"), "infrared.png")
    np.testing.assert_array_equal(picture, np.repeat((codes // 256)[..., None], 3, axis=2))


def test_a_picture_stands_upright_as_its_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn clockwise to see it upright
    lying = Image.fromarray(scene(1, 1.0))
    picture = decode_picture(encoded(lying, "PNG", exif=exif), "phone.png")
    np.testing.assert_array_equal(picture, np.rot90(scene(1, 1.0), -1))
    deep = Image.fromarray(scene(1, 1.0)[..., 0].astype(np.uint16) << 8)
    picture = decode_picture(encoded(deep, "PNG", exif=exif), "infrared.png")
    np.testing.assert_array_equal(picture[..., 0], np.rot90(scene(1, 1.0)[..., 0], -1))


def test_what_pillow_thinks_of_a_picture_that_can_be_read_is_not_told(recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("always")
    decode_picture(encoded(Image.fromarray(scene(1, 1.0)), "JPEG", exif=b"Exif\0\0MM\0*no directory"), "phone.jpg")
    assert [str(warning.message) for warning in recwarn] == []


def test_a_picture_without_a_known_white_is_refused_by_name() -> None:
    picture = Image.fromarray(np.ones((20, 20), np.float32))
    with pytest.raises(OSError, match=r"depth\.tiff: its samples have 32 bits"):
        decode_picture(encoded(picture, "TIFF"), "depth.tiff")
