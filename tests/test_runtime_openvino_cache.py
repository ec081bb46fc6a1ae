"""The models that OpenVINO compiled and keeps, and the weights that they came from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from engines import runtime_openvino
from engines.cards import SHIPPED, Weights
from engines.colour import Colour
from engines.door import Door
from engines.errors import EngineMismatch
from engines.runtime import EngineOptions, open_engine
from tests.identity import identity_network, store


def test_a_compiled_model_is_kept_in_a_folder_of_the_users_own_and_used_again(tmp_path: Path) -> None:
    cache = tmp_path / "user" / "cache"
    files: list[dict[str, int]] = []
    for _ in range(2):
        with open_engine("openvino", "field", EngineOptions(precision="fp32", threads=1, cache=cache)) as engine:
            engine.enhance(np.full((32, 48), 30, np.uint8), np.full((2, 16, 24), 128, np.uint8), Colour())
        files.append({path.name: path.stat().st_mtime_ns for path in (cache / "openvino").glob("*.blob")})
    assert (cache / "openvino").stat().st_mode & 0o777 == 0o700
    assert files[0]
    assert files[1] == files[0]


def test_where_there_can_be_no_cache_folder_pictures_are_made_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    engine, made = compiled(tmp_path / "file" / "cache")
    engine.__exit__(None, None, None)
    assert made.shape == (64, 96)
    assert [record.getMessage() for record in caplog.records] == [
        f"cache folder {tmp_path / 'file' / 'cache' / 'openvino'} cannot be used; nothing is cached: Not a directory"
    ]


def compiled(cache: Path, width: int = 48) -> tuple[Door, NDArray[np.uint8]]:
    """An engine that is left open, and what it made."""
    engine = open_engine("openvino", "field", EngineOptions(precision="fp32", threads=1, cache=cache)).__enter__()
    return engine, brightened(engine, width)


def brightened(engine: Door, width: int = 48) -> NDArray[np.uint8]:
    y, uv = np.full((32, width), 30, np.uint8), np.full((2, 16, width // 2), 128, np.uint8)
    return engine.enhance(y, uv, Colour())[0]


def test_compiled_models_that_were_not_used_for_the_longest_time_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "openvino"
    folder.mkdir()
    ours, older, newer = tmp_path / "notes.txt", folder / "1.blob", folder / "2.blob"
    for age, path in enumerate((newer, older, ours), start=1):
        path.write_bytes(bytes(10**6))
        os.utime(path, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(runtime_openvino, "LARGEST_CACHE", 20 * 10**6)
    compiled(tmp_path)[0].__exit__(None, None, None)
    (made,) = set(folder.glob("*.blob")) - {older, newer}
    assert newer.exists(), "there is room for both"
    monkeypatch.setattr(runtime_openvino, "LARGEST_CACHE", made.stat().st_size + 10**6)
    made.unlink()
    compiled(tmp_path)[0].__exit__(None, None, None)
    assert set(folder.glob("*.blob")) == {newer, made}
    assert ours.exists(), "what lies beside the folder stays"


def test_an_engine_goes_on_where_another_removes_its_compiled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, expected = compiled(tmp_path)
    first.__exit__(None, None, None)
    reader, _ = compiled(tmp_path)
    monkeypatch.setattr(runtime_openvino, "LARGEST_CACHE", 0)
    (kept,) = tmp_path.glob("openvino/*.blob")
    other, _ = compiled(tmp_path, width=64)
    assert not kept.exists()
    np.testing.assert_array_equal(brightened(reader), expected)
    again, made = compiled(tmp_path)
    np.testing.assert_array_equal(made, expected)
    for engine in (reader, other, again):
        engine.__exit__(None, None, None)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_compiled_model_with_a_hole_in_it_is_made_again_and_no_picture_is_wrong(
    place: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a power cut leaves it: OpenVINO itself takes such a file for whole."""
    first, expected = compiled(tmp_path)
    first.__exit__(None, None, None)
    (kept,) = tmp_path.glob("openvino/*.blob")
    whole = kept.read_bytes()
    with kept.open("r+b") as file:
        file.seek(int(place * len(whole)))
        file.write(bytes(65_536))
    engine, made = compiled(tmp_path)
    engine.__exit__(None, None, None)
    np.testing.assert_array_equal(made, expected)
    assert f"ignoring cache file {kept}, which is damaged; building it again" in caplog.text
    caplog.clear()
    engine, made = compiled(tmp_path)
    engine.__exit__(None, None, None)
    np.testing.assert_array_equal(made, expected)
    assert caplog.text == ""


def test_what_is_written_over_the_weights_of_an_open_engine_reaches_neither_its_pictures_nor_the_cache(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(SHIPPED / "field-lite", folder)
    options = EngineOptions(precision="int8", threads=1, cache=tmp_path / "cache")
    untouched = EngineOptions(precision="int8", threads=1, cache=tmp_path / "other")
    widths = (48, 64, 80)
    with open_engine("openvino", "field-lite", untouched) as engine:
        expected = [brightened(engine, width) for width in widths]
    sound = (folder / "int8.bin").read_bytes()
    with open_engine("openvino", str(folder), options) as engine:
        np.testing.assert_array_equal(brightened(engine, 48), expected[0])
        with (folder / "int8.bin").open("r+b") as file:  # as `cp` writes
            file.write(bytes(byte ^ 0x55 for byte in sound))
        made = [brightened(engine, width) for width in (48, 64)]
        np.testing.assert_array_equal(made[0], expected[0])
        np.testing.assert_array_equal(made[1], expected[1])
        os.truncate(folder / "int8.bin", 0)
        np.testing.assert_array_equal(brightened(engine, 80), expected[2])
    (folder / "int8.bin").write_bytes(sound)
    with open_engine("openvino", str(folder), options) as engine:
        for width, picture in zip(widths, expected, strict=True):
            np.testing.assert_array_equal(brightened(engine, width), picture)


def test_weights_that_change_between_their_verifying_and_their_reading_are_refused(
    tmp_path: Path, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(mine, folder)
    verify = Weights.file

    def verify_in_time(weights: Weights, name: str) -> Path:
        path = verify(weights, name)
        path.write_bytes(path.read_bytes() + b"1")
        return path

    monkeypatch.setattr(Weights, "file", verify_in_time)
    with (
        pytest.raises(EngineMismatch, match=r"fp32\.onnx was changed while it was read"),
        open_engine("openvino", str(folder), EngineOptions(precision="fp32", cache=tmp_path / "cache")),
    ):
        pass


def test_a_cache_that_fails_costs_the_keeping_and_not_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, expected = compiled(tmp_path)
    first.__exit__(None, None, None)

    def refuse(*_: object) -> object:
        raise RuntimeError("made by another processor")

    monkeypatch.setattr(openvino.Core, "import_model", refuse)
    engine, made = compiled(tmp_path)
    engine.__exit__(None, None, None)
    np.testing.assert_array_equal(made, expected)
    assert f"compiled-model cache {tmp_path / 'openvino'} skipped for 48x32: made by another processor" in caplog.text


def test_a_cache_of_another_user_is_not_read_and_pictures_are_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, expected = compiled(tmp_path)
    first.__exit__(None, None, None)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    engine, made = compiled(tmp_path)
    engine.__exit__(None, None, None)
    np.testing.assert_array_equal(made, expected)
    assert "belongs to another user" in caplog.text


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with weights of a small network."""
    folder = tmp_path_factory.mktemp("weights") / "mine"
    store(identity_network(), folder, "mine")
    return str(folder)
