"""The protocol of LOL: its data, its input of half the size, its scores, and `nightbridge evaluate`."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
import warnings
from collections.abc import Callable, Sequence
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
from tests.doubling import DoublingEngine
from tests.test_check import nightbridge
from tools.evaluate import CLIP, compared, folder_measure, steady_measure

SCORES = ("psnr_db", "psnr_gt_mean_db", "ssim", "mean_ratio")
TAPS = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
"""Cubic convolution with a = -1/2 (Keys, 1981), stretched over twice its width, at the middles of 8 pixels."""
Evaluate = Callable[..., subprocess.CompletedProcess[str]]


def scene(number: int, light: float) -> np.ndarray:
    """(48, 64, 3) uint8: waves that no other number has."""
    rows, columns = np.mgrid[0:48, 0:64]
    wave = 128 + 60 * np.sin((columns + number) / 9) + 40 * np.cos(rows / (5 + number % 7))
    return np.clip(light * np.stack((wave, 0.9 * wave, 1.1 * wave), axis=2), 0, 255).astype(np.uint8)


def make_lol(folder: Path, part: str, numbers: Sequence[int]) -> Path:
    """Scenes in the folders of the original release."""
    for side, light in (("low", 0.08), ("high", 1.0)):
        (folder / part / side).mkdir(parents=True)
        for number in numbers:
            Image.fromarray(scene(number, light)).save(folder / part / side / f"{number}.png")
    return folder


def packed(folder: Path, part: str, shard: str) -> Path:
    """The same as a tar shard, in a folder of its own."""
    target = folder.with_name(f"{folder.name}-tar")
    target.mkdir()
    with tarfile.open(target / shard, "w") as tar:
        for side in ("low", "high"):
            tar.add(folder / part / side, side)
    return target


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(tmp_path: Path, cache: Path) -> Evaluate:
    return lambda *words: nightbridge(tmp_path, "evaluate", *words, XDG_CACHE_HOME=str(cache))


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


def test_the_command_prints_means_and_writes_a_row_for_each_picture(tmp_path: Path, command: Evaluate) -> None:
    folder = make_lol(tmp_path / "lol", "eval15", [100, 9, 10])
    shards = packed(folder, "eval15", "eval15.tar")
    written = []
    for place in (folder, shards):
        done = command("--lol", place.name, "--json", "scores.json", "--precision", "fp32")
        assert (done.returncode, done.stderr) == (0, "")
        written.append(json.loads((tmp_path / "scores.json").read_text()))
        printed = {line.split()[0].removeprefix("lol.") for line in done.stdout.splitlines()}
        (engine,) = written[-1]["engines"]
        assert written[-1]["psnr_db"] == engine["lol"]["psnr_db"]
        assert written[-1]["weights_id"] == engine["weights_id"]
        assert printed == (engine.keys() - {"lol"}) | (engine["lol"].keys() - {"pictures"})
    assert written[0] == written[1]
    (figures,) = written[0]["engines"]
    assert (figures["weights"], figures["runtime"], figures["precision"]) == ("field", "openvino", "fp32")
    assert len(figures["weights_id"]) == 64
    rows = figures["lol"]["pictures"]
    assert [row["name"] for row in rows] == ["9", "10", "100"]
    for key in SCORES:
        assert figures["lol"][key] == pytest.approx(np.mean([row[key] for row in rows]))


def test_the_engine_file_scores_as_torch_does(tmp_path: Path, command: Evaluate) -> None:
    pytest.importorskip("torch", reason="the extra `train` is not installed")
    make_lol(tmp_path / "lol", "our485", [660, 661])
    done = command(
        *("--lol", "lol", "--split", "held-out", "--precision", "fp32", "--json", "scores.json"),
        *("--runtime", "openvino", "--runtime", "torch"),
    )
    told = "field learned these scenes before: scores on held-out tell nothing of others\n"
    assert (done.returncode, done.stderr) == (0, told)
    figures = json.loads((tmp_path / "scores.json").read_text())
    assert [engine["runtime"] for engine in figures["engines"]] == ["openvino", "torch"]
    (difference,) = figures["differences"]
    assert difference["between"] == "torch fp32 and openvino fp32"
    assert abs(difference["lol.psnr_db"]) <= difference["lol.psnr_db_largest"] <= 0.02


@pytest.mark.parametrize(
    ("split", "told"), [("held-out", ["all"]), ("our485", ["all", "some"]), ("eval15", [])], ids=lambda split: split
)
def test_scores_on_scenes_that_were_learned_are_told_as_such(
    tmp_path: Path, command: Evaluate, split: str, told: list[str]
) -> None:
    pytest.importorskip("torch", reason="the extra `train` is not installed")
    from engines.network.config import NEID_LITE
    from engines.network.neid import Neid
    from engines.training.recipe import Recipe
    from engines.training.train import store

    make_lol(tmp_path / "lol", "eval15" if split == "eval15" else "our485", [660])
    for name, hold_out in (("all", False), ("some", True)):
        store(Neid(NEID_LITE), Recipe(network="neid-lite", hold_out=hold_out), tmp_path / name, {})
    words = ("--lol", "lol", "--split", split, "--runtime", "torch", "--json", "scores.json")
    done = command(*words, "--weights", "all", "--weights", "some")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        f"{name} learned these scenes before: scores on {split} tell nothing of others" for name in told
    ]
    engines = json.loads((tmp_path / "scores.json").read_text())["engines"]
    assert [engine["weights"] for engine in engines if engine["lol"].get("learned_before") is True] == told
    assert all("learned_before" not in engine["lol"] for engine in engines if engine["weights"] not in told)


def test_seeds_are_told_as_mean_and_spread_for_each_kind_of_engine() -> None:
    results = [
        {"weights": name, "weights_id": name, "runtime": "openvino", "precision": "fp32", "lol": {"psnr_db": psnr}}
        for name, psnr in (("a", 20.0), ("b", 21.0), ("c", 22.0))
    ]
    assert compared(results) == {"seeds": {"openvino fp32": {"lol.psnr_db": {"mean": 21.0, "spread": 1.0}}}}
    assert compared(results[:1]) == {}
    (one, *_) = ({key: value for key, value in result.items() if key != "lol"} for result in results)
    assert "seeds" not in compared([one, one]), "the same runtime by two names, such as auto"


def test_live_figures_and_a_contact_sheet_come_from_one_command(tmp_path: Path, command: Evaluate) -> None:
    (tmp_path / "day").mkdir()
    for number in (1, 2):
        Image.fromarray(scene(number, 1.0)).save(tmp_path / "day" / f"{number}.png")
    done = command(
        *("--daylight", "day", "--crf", "30", "--folder", "day", "--contact-sheet", "sheet.png"),
        *("--steady", "--clips", str(CLIP), "--frames", "3", "--json", "scores.json"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    (figures,) = json.loads((tmp_path / "scores.json").read_text())["engines"]
    assert [row["name"] for row in figures["daylight"]["pictures"]] == ["1.png", "2.png"]
    assert figures["daylight"]["damage"] == "libx264 at CRF 30"
    assert figures["steady"]["still"].keys() > {"frame_mean_deviation", "pixel_deviation", "mabd"}
    assert figures["steady"]["moving"].keys() > {"warping_error", "clean_warping_error", "mabd"}
    assert (figures["clips"]["clips"][0]["name"], figures["clips"]["clips"][0]["frames"]) == ("day.mp4", 3)
    assert len(figures["folder"]["pictures"]) == 2
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 3 * 300


def test_a_contact_sheet_that_cannot_be_written_costs_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(scene(1, 1.0)).save(tmp_path / "1.png")

    def too_high(*_: object) -> Image.Image:
        return Image.new("RGB", (10, 20_000))

    monkeypatch.setattr("engines.evaluation.sheet.contact_sheet", too_high)
    measure = folder_measure(tmp_path, tmp_path / "sheet.webp")
    with DoublingEngine() as engine:
        told = measure.summary(list(measure.rows(engine)))
    assert told["contact_sheet"] is None
    assert f"{tmp_path / 'sheet.webp'} cannot be written: " in told["failed"][0]
    assert [row["name"] for row in told["pictures"]] == ["1.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["1.png"]


def test_what_cannot_be_read_or_is_too_small_costs_no_other_figure(tmp_path: Path, command: Evaluate) -> None:
    (tmp_path / "day").mkdir()
    for name, side in (("a.png", 48), ("b.png", 8), ("c.png", 48)):
        Image.fromarray(scene(1, 1.0)[:side]).save(tmp_path / "day" / name)
    (tmp_path / "day" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    done = command(
        *("--daylight", "day", "--folder", "day", "--contact-sheet", "sheet.png", "--clips", "broken.mp4"),
        *("--clips", str(CLIP), "--frames", "2", "--json", "scores.json"),
    )
    assert done.returncode == 1
    (figures,) = json.loads((tmp_path / "scores.json").read_text())["engines"]
    for measure in ("daylight", "folder"):
        assert [row["name"] for row in figures[measure]["pictures"]] == ["a.png", "c.png"]
        assert [reason.partition(":")[0] for reason in figures[measure]["failed"]] == ["b.png", "day/broken.png"]
    assert [row["name"] for row in figures["clips"]["clips"]] == ["day.mp4"]
    assert figures["clips"]["failed"][0].startswith("broken.mp4: no video")
    assert done.stderr.count("nightbridge: ") == 5
    assert "daylight.psnr_db" in done.stdout


def test_a_folder_with_nothing_by_day_is_told(tmp_path: Path, command: Evaluate) -> None:
    Image.fromarray(scene(1, 0.2)).save(tmp_path / "night.png")
    done = command("--daylight", ".")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "holds no picture by day: none has a mean of 80 of 255 or more" in done.stderr


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
        (("--folder", ".", "--contact-sheet", "a.doc"), "a.doc is no picture"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_opened(
    tmp_path: Path, words: Sequence[str], told: str
) -> None:
    done = nightbridge(tmp_path, "evaluate", *words, COLUMNS="300")
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def cut_off_shard(folder: Path) -> str:
    shard = packed(make_lol(folder.with_name("whole"), "eval15", [1]), "eval15", "eval15.tar") / "eval15.tar"
    (folder / "eval15.tar").write_bytes(shard.read_bytes()[:3000])
    return "lol/eval15.tar"


def compressed_shard_cut_off(folder: Path) -> str:
    shard = packed(make_lol(folder.with_name("whole"), "eval15", [1]), "eval15", "eval15.tar") / "eval15.tar"
    (folder / "eval15.tar").write_bytes(gzip.compress(shard.read_bytes())[:3000])
    return "lol/eval15.tar: Compressed file ended before"


def empty_shard(folder: Path) -> str:
    (folder / "eval15.tar").touch()
    return "lol/eval15.tar: file could not be opened successfully"


def shard_of_links(folder: Path) -> str:
    with tarfile.open(folder / "eval15.tar", "w") as tar:
        link = tarfile.TarInfo("low/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../elsewhere/1.png"
        tar.addfile(link)
    return "lol/eval15.tar: \"linkname 'low/../elsewhere/1.png' not found\""


def no_bright_picture(folder: Path) -> str:
    make_lol(folder, "eval15", [1, 2])
    (folder / "eval15" / "high" / "2.png").unlink()
    return "lol: eval15: low/2 has no bright picture of its size in high/"


def bright_picture_of_another_size(folder: Path) -> str:
    make_lol(folder, "eval15", [1, 2])
    Image.fromarray(scene(2, 1.0)[:20]).save(folder / "eval15" / "high" / "2.png")
    return "lol: eval15: low/2 has no bright picture of its size in high/"


def broken_picture(folder: Path) -> str:
    make_lol(folder, "eval15", [1])
    (folder / "eval15" / "low" / "1.png").write_bytes(b"no picture")
    return "lol/eval15/low/1.png: not a picture of a known kind"


def nothing(folder: Path) -> str:
    return "lol: no pictures of LOL's eval15 (looked for eval15/low and tar shards)"


@pytest.mark.parametrize(
    "damage",
    [
        nothing,
        no_bright_picture,
        bright_picture_of_another_size,
        broken_picture,
        cut_off_shard,
        compressed_shard_cut_off,
        empty_shard,
        shard_of_links,
    ],
)
def test_data_that_are_missing_or_broken_are_told_in_one_line(
    tmp_path: Path, command: Evaluate, damage: Callable[[Path], str]
) -> None:
    (tmp_path / "lol").mkdir()
    told = damage(tmp_path / "lol")
    done = command("--lol", "lol", "--json", "scores.json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"nightbridge: {told}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "scores.json").exists()


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
    with pytest.raises(OSError, match=r"depth\.tiff: a picture of 32 bits a pixel has no known white"):
        decode_picture(encoded(picture, "TIFF"), "depth.tiff")
