"""One contract for every runtime that works on this machine; torch in fp32 on the CPU is the reference."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.cards import Weights, find_weights
from engines.colour import Colour, to_planes, to_rgb
from engines.door import Door, Memory
from engines.errors import EngineError, EngineMismatch, EngineMissing
from engines.evaluation.scores import psnr
from engines.nvidia.cuda_engine import CudaEngine
from engines.runtime import EngineOptions, open_engine
from engines.runtime_torch import TorchEngine
from tests.identity import identity_network, store
from tests.test_colour import colour_bars
from tools.benchmarks.gpu_checks import BATCH_DIFFERENCE, make_picture

ON_A_GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("torch-fp16", "tensorrt-fp16")]
RUNTIMES = ["torch-fp32", "openvino-fp32", "openvino-bf16", "openvino-int8", "openvino-fp32-parallel", *ON_A_GPU]
BOUNDS_DB = {"fp32": 60, "fp16": 50, "bf16": 42, "int8": 28}
"""PSNR of every plane against the reference, at least, by precision."""


Scene = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


def opened(name: str, cache: Path, weights: str = "field", slots: int = 8) -> Door:
    runtime, precision, *parallel = name.split("-")
    options = EngineOptions(precision=precision, cache=cache, slots=slots, threads=2 if parallel else 0)
    try:
        return open_engine(runtime, weights, replace(options, parallel=2) if parallel else options)
    except EngineMismatch as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module", params=RUNTIMES)
def engine(request: pytest.FixtureRequest, cache: Path) -> Iterator[Door]:
    with opened(request.param, cache) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference() -> Iterator[Door]:
    with TorchEngine(find_weights("field"), EngineOptions()) as engine:
        yield engine


def day(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The planes of a bright scene."""
    picture = make_picture("day", (width, height))
    return picture.y, picture.uv


def dusk(width: int, height: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The planes of a dark scene."""
    picture = make_picture("dusk", (width, height), seed)
    return picture.y, picture.uv


def black(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The planes of a picture without light."""
    return np.full((height, width), 16, np.uint8), np.full((2, height // 2, width // 2), 128, np.uint8)


def film(engine: Door, seeds: range) -> tuple[list[np.ndarray], Memory]:
    """Luma of a still scene under fresh noise, each picture with what the ones before left, and what is left then."""
    memory = engine.new_memory()
    made = [engine.enhance(*dusk(64, 48, seed), Colour(), memory, 0.9)[0] for seed in seeds]
    return made, memory


def test_what_a_feed_leaves_in_its_memory_is_used_for_its_next_picture_as_in_the_reference(
    engine: Door, reference: Door
) -> None:
    made, memory = film(engine, range(6))
    expected, expected_memory = film(reference, range(6))
    assert min(map(psnr, made, expected)) > BOUNDS_DB[engine.info.precision] - 2
    if engine.info.precision == "fp32":
        np.testing.assert_allclose(engine.read_memory(memory), reference.read_memory(expected_memory), atol=0.001)
    alone = engine.enhance(*dusk(64, 48, 5), Colour())[0]
    assert not np.array_equal(alone, made[-1]), "the memory changes nothing"


def test_noise_of_a_still_scene_flickers_less_with_a_memory(engine: Door) -> None:
    made = film(engine, range(10))[0]
    alone = [engine.enhance(*dusk(64, 48, seed), Colour())[0] for seed in range(10)]
    with_memory, without = (np.std(np.stack(luma[4:]), axis=0).mean() for luma in (made, alone))
    assert with_memory < 0.6 * without


def test_an_empty_memory_changes_nothing_of_a_picture(engine: Door) -> None:
    for scene in (day, dusk, black):
        expected = engine.enhance(*scene(64, 48), Colour())
        made = engine.enhance(*scene(64, 48), Colour(), engine.new_memory(), 0.9)
        for plane, alone in zip(made, expected, strict=True):
            np.testing.assert_array_equal(plane, alone)


def test_a_memory_holds_its_pictures_own_weights_smoothed_by_keep_and_by_how_far_they_moved(engine: Door) -> None:
    expected = engine.read_memory(film(engine, range(1))[1])
    for seed in range(1, 6):
        own = engine.read_memory(film(engine, range(seed, seed + 1))[1])
        kept = 0.9 * np.clip((0.04 - np.abs(own - expected).mean()) / 0.02, 0, 1)
        assert kept > 0.5, "the scene stands still"
        expected = own + kept * (expected - own)
    left = engine.read_memory(film(engine, range(6))[1])
    assert left.shape == (1, 256)
    assert np.abs(left).max() > 0.1
    np.testing.assert_allclose(left, expected, atol=0.001)


def test_a_memory_takes_steps_that_are_finer_than_the_precision(engine: Door) -> None:
    memory = engine.new_memory()
    still = dusk(64, 48, 1)
    engine.enhance(*still, Colour(), memory, 0.0)
    own = engine.read_memory(memory)
    for numbers in memory.swap():
        numbers[:] = own + np.float32(0.002)
    engine.enhance(*still, Colour(), memory, 0.9)
    np.testing.assert_allclose(engine.read_memory(memory) - own, 0.0018, atol=0.0001)


def test_a_cut_is_followed_at_once(engine: Door) -> None:
    _, memory = film(engine, range(3))
    after = engine.enhance(*day(64, 48), Colour(), memory, 0.9)[0]
    assert psnr(after, engine.enhance(*day(64, 48), Colour())[0]) > 50


def test_a_picture_that_stands_alone_neither_reads_nor_leaves_anything(engine: Door) -> None:
    before = engine.enhance(*dusk(64, 48), Colour())[0]
    film(engine, range(3))
    np.testing.assert_array_equal(engine.enhance(*dusk(64, 48), Colour())[0], before)


def test_pictures_of_one_feed_that_are_under_way_together_pass_its_memory_on_in_order(engine: Door) -> None:
    expected, _ = film(engine, range(4))
    memory, slots = engine.new_memory(), [engine.acquire(64, 48) for _ in range(4)]
    for seed, slot in enumerate(slots):
        slot.y[:], slot.uv[:] = dusk(64, 48, seed)
        slot.colour, slot.memory, slot.keep = Colour(), memory, 0.9
        engine.submit([slot])
    for slot, picture in zip(slots, expected, strict=True):
        slot.wait()
        np.testing.assert_array_equal(slot.y_out, picture)
        slot.release()


def test_a_slot_that_is_given_back_forgets_its_feed(engine: Door) -> None:
    slot = engine.acquire(64, 48)
    slot.memory = engine.new_memory()
    slot.release()
    slots = [engine.acquire(64, 48) for _ in range(4)]
    assert all(slot.memory is None for slot in slots)
    for slot in slots:
        slot.release()


@pytest.mark.parametrize("scene", [dusk, day], ids=["dusk", "day"])
@pytest.mark.parametrize("size", [(64, 48), (50, 38), (51, 37)], ids=str)
def test_a_picture_is_doubled_and_equals_the_reference(
    engine: Door, reference: Door, size: tuple[int, int], scene: Scene
) -> None:
    width, height = size
    picture = scene(width, height)
    y, uv = engine.enhance(*picture, Colour("bt709"))
    assert y.dtype == uv.dtype == np.uint8
    assert y.shape == (2 * height, 2 * width)
    assert uv.shape == (2, height, width)
    expected = reference.enhance(*picture, Colour("bt709"))
    assert psnr(y, expected[0]) >= BOUNDS_DB[engine.info.precision]
    assert psnr(uv, expected[1]) >= BOUNDS_DB[engine.info.precision]


def test_slots_that_nobody_waited_for_are_free_when_they_are_back(engine: Door) -> None:
    y, uv = day(320, 240)
    alone, _ = engine.enhance(y, uv, Colour())
    for _ in range(3):
        slots = [engine.acquire(320, 240) for _ in range(4)]
        for slot in slots:
            slot.y[:], slot.uv[:], slot.colour = y, uv, Colour()
            engine.submit([slot])
        for slot in slots:
            slot.release()
    np.testing.assert_array_equal(engine.enhance(y, uv, Colour())[0], alone)


def test_a_batch_equals_its_single_pictures(engine: Door) -> None:
    colours = [Colour("bt601"), Colour("bt709"), Colour("bt601", full_range=True), Colour(grey=True)]
    slots = [engine.acquire(48, 32) for _ in colours]
    for seed, (slot, colour) in enumerate(zip(slots, colours, strict=True)):
        (slot.y[:], slot.uv[:]), slot.colour = dusk(48, 32, seed), colour
    engine.submit(slots)
    allowed = BATCH_DIFFERENCE if isinstance(engine, CudaEngine) else 1
    for seed, (slot, colour) in enumerate(zip(slots, colours, strict=True)):
        slot.wait()
        y, uv = slot.y_out.copy(), slot.uv_out.copy()
        alone = engine.enhance(*dusk(48, 32, seed), colour)
        assert np.abs(y.astype(int) - alone[0]).max() <= allowed
        assert np.abs(uv.astype(int) - alone[1]).max() <= allowed
    for slot in slots:
        slot.release()


def test_a_black_picture_has_no_undefined_pixels(engine: Door) -> None:
    y, uv = engine.enhance(np.zeros((32, 32), np.uint8), np.zeros((2, 16, 16), np.uint8), Colour(grey=True))
    assert (uv == 128).all()
    assert 16 <= y.mean() <= 235


def test_a_ring_without_free_slots_waits_and_goes_on_when_one_comes_back(cache: Path) -> None:
    with opened("openvino-fp32", cache, slots=1) as engine:
        slot = engine.acquire(32, 32)
        with pytest.raises(TimeoutError, match=r"32x32 within 0\.01 s"):
            engine.acquire(32, 32, timeout=0.01)
        threading.Timer(0.05, slot.release).start()
        assert engine.acquire(32, 32, timeout=10) is slot


def test_what_is_compiled_for_many_sizes_is_forgotten_but_for_the_latest(cache: Path) -> None:
    with opened("openvino-fp32", cache, slots=2) as engine:
        for side in (32, 48, 64, 32):
            engine.acquire(side, side).release()
        assert set(engine._compiled) == {(64, 64), (32, 32)}  # type: ignore[attr-defined]


def test_use_after_exit_is_an_error(cache: Path) -> None:
    for name in ("torch-fp32", "openvino-fp32"):
        with opened(name, cache) as engine:
            slot = engine.acquire(32, 32)
        with pytest.raises(EngineError, match="closed"):
            engine.acquire(32, 32)
        with pytest.raises(EngineError, match="closed"):
            engine.submit([slot])
        with pytest.raises(EngineError, match="closed"):
            slot.wait()
        slot.release()


def test_sizes_and_batches_that_do_not_fit_are_refused_by_name(engine: Door) -> None:
    with pytest.raises(EngineMismatch, match="8x8; this engine takes 16x16 to 4096x4096"):
        engine.acquire(8, 8)
    one, other = engine.acquire(32, 32), engine.acquire(48, 32)
    with pytest.raises(EngineMismatch, match="pictures of one size"):
        engine.submit([one, other])
    one.release()
    other.release()


def test_500_pictures_do_not_grow_the_memory(engine: Door) -> None:
    def run(pictures: int) -> int:
        for _ in range(pictures):
            engine.enhance(*dusk(32, 32), Colour())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = run(50)
    assert run(500) - before < 8_000  # kB; one leaked picture a call would be more


@pytest.mark.parametrize("name", ["torch-fp32", "openvino-fp32", "openvino-bf16"])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_colour_bars_keep_their_colours(
    name: str, matrix: str, full_range: bool, identity: Weights, cache: Path
) -> None:
    colour = Colour(matrix, full_range)  # type: ignore[arg-type]
    y, uv = to_planes(colour_bars(), colour)
    with opened(name, cache, str(identity.folder)) as engine:
        doubled = to_rgb(*engine.enhance(y, uv, colour), colour)
    expected = to_rgb(y, uv, colour)[4::8, 8::16]
    assert np.abs(doubled[8::16, 16::32].astype(int) - expected).max() <= (2 if name.endswith("fp32") else 6)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return store(identity_network(), tmp_path_factory.mktemp("weights") / "identity", "identity")


def test_weights_are_known_by_the_digest_of_their_numbers(engine: Door) -> None:
    assert len(engine.info.weights_id) == 64
    assert engine.info.weights == "field"


def test_a_changed_byte_is_refused(identity: Weights, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in identity.folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    numbers = bytearray((copy / "fp32.onnx").read_bytes())
    numbers[-1] ^= 1
    (copy / "fp32.onnx").write_bytes(numbers)
    engine = open_engine("openvino", str(copy), EngineOptions(precision="fp32", cache=tmp_path / "cache"))
    with pytest.raises(EngineMismatch, match="was changed: its SHA-256 is"), engine:
        pass


def test_what_is_not_there_is_named_with_what_is() -> None:
    with pytest.raises(EngineMissing, match="no weights 'feild': give one of field"):
        open_engine("openvino", "feild")
    with pytest.raises(EngineMismatch, match="no runtime 'tensort': it must be one of auto, tensorrt, torch, openvino"):
        open_engine("tensort")
    with pytest.raises(EngineMismatch, match="'fp17': OpenVINO takes one of auto, fp32, bf16, int8"):
        open_engine("openvino", "field", EngineOptions(precision="fp17"))


NEEDS_A_GPU = """
import pytest

@pytest.mark.gpu
@pytest.mark.skipif(True, reason="no CUDA device")
def test_marked() -> None: ...

@pytest.fixture
def missing() -> None:
    pytest.skip("no fp16")

@pytest.mark.gpu
def test_with_a_fixture(missing: None) -> None: ...

@pytest.mark.skipif(True, reason="needs none")
def test_on_the_cpu() -> None: ...
"""


@pytest.mark.parametrize(("required", "outcome"), [("0", "3 skipped in"), ("1", "1 skipped, 2 errors in")])
def test_a_test_that_needs_a_gpu_cannot_be_skipped_where_one_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, required: str, outcome: str
) -> None:
    monkeypatch.setenv("NIGHTBRIDGE_REQUIRE_GPU", required)
    (tmp_path / "conftest.py").write_bytes(Path(__file__).with_name("conftest.py").read_bytes())
    (tmp_path / "test_gpu.py").write_text(NEEDS_A_GPU)
    command = [sys.executable, "-m", "pytest", "-rN", "-p", "no:cacheprovider", "-p", "no:warnings", str(tmp_path)]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False).stdout
    assert f" {outcome}" in said, said
    assert said.count("in spite of NIGHTBRIDGE_REQUIRE_GPU=1") == 2 * int(required), said
