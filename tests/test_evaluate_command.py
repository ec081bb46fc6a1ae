"""`nightbridge evaluate`."""

from __future__ import annotations

import gzip
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import nightbridge
from tests.doubling import DoublingEngine
from tests.lol import SCORES, make_lol, packed, scene
from tools.evaluate import CLIP, compare, folder_measure

Evaluate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(tmp_path: Path, cache: Path) -> Evaluate:
    return lambda *words: nightbridge(tmp_path, "evaluate", *words, XDG_CACHE_HOME=str(cache))


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
    told = "field was trained on these scenes: its scores on held-out do not show how it does on new ones\n"
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
        f"{name} was trained on these scenes: its scores on {split} do not show how it does on new ones"
        for name in told
    ]
    engines = json.loads((tmp_path / "scores.json").read_text())["engines"]
    assert [engine["weights"] for engine in engines if engine["lol"].get("learned_before") is True] == told
    assert all("learned_before" not in engine["lol"] for engine in engines if engine["weights"] not in told)


def test_seeds_are_told_as_mean_and_spread_for_each_kind_of_engine() -> None:
    results = [
        {"weights": name, "weights_id": name, "runtime": "openvino", "precision": "fp32", "lol": {"psnr_db": psnr}}
        for name, psnr in (("a", 20.0), ("b", 21.0), ("c", 22.0))
    ]
    assert compare(results) == {"seeds": {"openvino fp32": {"lol.psnr_db": {"mean": 21.0, "spread": 1.0}}}}
    assert compare(results[:1]) == {}
    (one, *_) = ({key: value for key, value in result.items() if key != "lol"} for result in results)
    assert "seeds" not in compare([one, one]), "the same runtime by two names, such as auto"


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
    assert "holds no daylight picture: none has a mean of 80 of 255 or more" in done.stderr


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
    return "lol/eval15/low/1.png: not a picture in a known format"


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
