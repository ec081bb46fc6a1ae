"""What OpenVINO alone does: its choice of a precision, and its cache. The contract is in test_runtimes."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from engines import runtime_openvino
from engines.cards import NUMBERS, SHIPPED, Card, Weights, write_card
from engines.checkpoint import save_network
from engines.colour import Colour
from engines.door import Door, Slot
from engines.errors import EngineError, EngineMismatch, UnknownName
from engines.export import export_onnx
from engines.runtime import EngineOptions, open_engine
from engines.runtime_openvino import OpenVinoSlot, choose_precision
from tests.identity import identity_network, store

PLAIN = ("FP32", "INT8", "BIN")
WITH_BF16 = ("FP32", "INT8", "BIN", "BF16")


@dataclass
class Processor:
    """An OpenVINO core that tells of another machine's processor."""

    capabilities: tuple[str, ...]

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return list(self.capabilities)


def chosen(weights: Weights, capabilities: tuple[str, ...], asked: str = "auto") -> str:
    return choose_precision(weights, cast("openvino.Core", Processor(capabilities)), asked)


def weights_with(folder: Path, losses: dict[str, float], int8: bool) -> Weights:
    folder.mkdir()
    for name in ("weights.safetensors", "fp32.onnx", *(("int8.xml", "int8.bin") if int8 else ())):
        (folder / name).write_bytes(b"")
    write_card(folder, Card(name="mine", network="neid-live", files={}, precision_loss_db=losses))
    return Weights(folder)


@pytest.mark.parametrize(
    ("losses", "int8", "capabilities", "expected"),
    [
        ({"int8": 0.15}, True, PLAIN, "int8"),
        ({"int8": 0.16}, True, PLAIN, "fp32"),
        ({}, True, PLAIN, "fp32"),
        ({"int8": 0.0}, False, PLAIN, "fp32"),
        ({"bf16": 0.0}, True, PLAIN, "fp32"),
        ({}, False, WITH_BF16, "bf16"),
        ({"bf16": 0.15}, False, WITH_BF16, "bf16"),
        ({"bf16": 0.16}, False, WITH_BF16, "fp32"),
        ({"int8": 0.1}, True, WITH_BF16, "int8"),
        ({"int8": 0.2}, True, WITH_BF16, "bf16"),
        ({"bf16": 0.16, "int8": 0.2}, True, WITH_BF16, "fp32"),
    ],
)
def test_auto_takes_a_faster_precision_only_where_the_processor_has_it_and_the_card_says_it_keeps_the_picture(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    losses: dict[str, float],
    int8: bool,
    capabilities: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.setattr(runtime_openvino, "CPU_INFO", Path("/dev/null"))
    assert chosen(weights_with(tmp_path / "weights", losses, int8), capabilities) == expected


@pytest.mark.parametrize(
    ("flags", "losses", "expected"),
    [
        ("avx512_bf16 amx_bf16 amx_tile", {"int8": 0.0}, "bf16"),
        ("avx512_bf16 amx_bf16 amx_tile", {"bf16": 0.16, "int8": 0.0}, "int8"),
        ("avx512_bf16 avx512_vnni", {"int8": 0.0}, "int8"),
    ],
)
def test_auto_takes_bf16_rather_than_int8_where_the_processor_multiplies_both_in_its_matrix_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, losses: dict[str, float], expected: str
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(runtime_openvino, "CPU_INFO", info)
    assert chosen(weights_with(tmp_path / "weights", losses, int8=True), WITH_BF16) == expected


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_precision_that_is_asked_for_is_taken_whatever_it_loses(tmp_path: Path, precision: str) -> None:
    weights = weights_with(tmp_path / "weights", {"int8": 3.0}, int8=True)
    assert chosen(weights, PLAIN, precision) == precision


def test_bf16_is_refused_where_the_processor_lacks_it(tmp_path: Path) -> None:
    weights = weights_with(tmp_path / "weights", {}, int8=True)
    assert chosen(weights, WITH_BF16, "bf16") == "bf16"
    with pytest.raises(UnknownName, match="no bfloat16; it must be one of auto, fp32, int8"):
        chosen(weights, PLAIN, "bf16")


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
        f"{tmp_path / 'file' / 'cache' / 'openvino'} cannot be used, so nothing is kept: Not a directory"
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_without_fp32_are_read_from_fp16(tmp_path: Path, precision: str) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    save_network(identity_network(), folder / NUMBERS)
    export_onnx(identity_network(), folder / "fp16.onnx", half=True)
    write_card(folder, Card(name="large", network="neid-live", files={}))
    options = EngineOptions(precision=precision, cache=tmp_path / "cache")
    y, uv = np.full((48, 64), 90, np.uint8), np.full((2, 24, 32), 120, np.uint8)
    try:
        engine = open_engine("openvino", str(folder), options)
    except EngineMismatch as error:
        pytest.skip(str(error))
    with engine:
        made, chroma = engine.enhance(y, uv, Colour())
    assert np.abs(made.astype(int) - 90).max() <= 1
    assert np.abs(chroma.astype(int) - 120).max() <= 1


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
    assert f"{kept} is damaged: it is not used, and made again" in caplog.text
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
    assert f"{tmp_path / 'openvino'} is not used for 48x32: made by another processor" in caplog.text


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


@dataclass
class Failing:
    """A request that is waited for in vain."""

    request: openvino.InferRequest
    waited: int = 0

    def wait(self) -> None:
        self.request.wait()
        self.waited += 1
        raise RuntimeError("out of luck")


@pytest.mark.parametrize(("threads", "parallel", "streams"), [(2, 1, 1), (2, 2, 2), (2, 5, 2), (1, 2, 1), (3, 2, 1)])
def test_as_many_pictures_are_computed_side_by_side_as_the_settings_say_and_threads_allow(
    tmp_path: Path, mine: str, threads: int, parallel: int, streams: int
) -> None:
    options = EngineOptions(precision="fp32", threads=threads, parallel=parallel, cache=tmp_path)
    with open_engine("openvino", mine, options) as engine:
        slot = engine.acquire(32, 32)
        assert isinstance(slot, OpenVinoSlot)
        assert slot.request.get_compiled_model().get_property("NUM_STREAMS") == streams
        assert (engine.info.batch, engine.info.depth) == (1, streams + 2), "none of them idles, and few wait"
        slot.release()


def test_the_slots_of_a_feed_that_is_gone_are_freed_with_their_size(tmp_path: Path, mine: str) -> None:
    options = EngineOptions(precision="fp32", threads=2, parallel=2, cache=tmp_path, slots=1)
    with open_engine("openvino", mine, options) as engine:
        slot = engine.acquire(32, 32)
        slot.memory = engine.remember()
        engine.submit([slot])
        slot.wait()
        gone = weakref.ref(slot)
        slot.release()
        del slot
        engine.acquire(64, 32).release()  # one size is kept
        gc.collect()
        assert gone() is None


def test_a_picture_that_failed_keeps_no_later_one_of_its_feed_waiting(
    tmp_path: Path, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EngineOptions(precision="fp32", threads=2, parallel=2, cache=tmp_path)
    with open_engine("openvino", mine, options) as engine:
        memory = engine.remember()
        slots = [engine.acquire(32, 32) for _ in range(2)]
        for slot in slots:
            slot.memory = memory
        engine.submit(slots[:1])
        failing = Failing(cast("OpenVinoSlot", slots[0]).request)
        monkeypatch.setattr(slots[0], "request", failing)
        engine.submit(slots[1:])
        slots[1].wait()
        assert failing.waited == 1
        with pytest.raises(EngineError, match="out of luck"):
            slots[0].wait()
        for slot in slots:
            slot.release()


@dataclass
class Gated:
    """A request that computes when it is let."""

    request: openvino.InferRequest
    gate: threading.Event = field(default_factory=threading.Event)

    def start_async(self) -> None:
        pass

    def wait(self) -> None:
        assert self.gate.wait(30)
        self.request.infer()

    def cancel(self) -> None:
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.request, name)


@dataclass
class Drowsy:
    """A request whose end one thread, named `late`, learns of later than all others."""

    request: openvino.InferRequest
    dozing: threading.Event = field(default_factory=threading.Event)
    awake: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        self.request.wait()
        if threading.current_thread().name == "late":
            self.dozing.set()
            assert self.awake.wait(30)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.request, name)


@dataclass
class Refusing:
    """A request that cannot be started."""

    request: openvino.InferRequest

    def start_async(self) -> None:
        raise RuntimeError("no luck today")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.request, name)


def of_one_feed(engine: Door, count: int, width: int = 32) -> list[Slot]:
    """Slots with noise in them, all of one feed."""
    memory, random = engine.remember(), np.random.default_rng(7)
    slots = [engine.acquire(width, 32) for _ in range(count)]
    for slot in slots:
        slot.y[:], slot.uv[:] = random.integers(0, 90, slot.y.shape), random.integers(90, 160, slot.uv.shape)
        slot.memory, slot.keep = memory, 0.9
    return slots


@pytest.fixture
def parallel_engine(tmp_path: Path, mine: str) -> Iterator[Door]:
    options = EngineOptions(precision="fp32", threads=2, parallel=2, cache=tmp_path, slots=4)
    with open_engine("openvino", mine, options) as engine:
        yield engine


def test_a_feed_whose_picture_takes_long_keeps_no_other_feed_waiting(
    parallel_engine: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = of_one_feed(parallel_engine, 2)
    gated = Gated(cast("OpenVinoSlot", first).request)
    monkeypatch.setattr(first, "request", gated)
    (other,) = of_one_feed(parallel_engine, 1, width=48)
    parallel_engine.submit([first])
    parallel_engine.submit([second])
    parallel_engine.submit([other])
    other.wait()
    other.release()
    gated.gate.set()
    for slot in (first, second):
        slot.wait()
        slot.release()


def test_who_learns_late_of_a_picture_that_others_had_long_ago_begins_nothing_in_its_slot(
    parallel_engine: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slot,) = of_one_feed(parallel_engine, 1)
    request = cast("OpenVinoSlot", slot).request
    drowsy, gated = Drowsy(request), Gated(request)
    monkeypatch.setattr(slot, "request", drowsy)
    parallel_engine.submit([slot])
    late = threading.Thread(target=slot.wait, name="late")
    late.start()
    assert drowsy.dozing.wait(30)
    slot.wait()
    slot.release()
    monkeypatch.setattr(slot, "request", gated)
    again, following = of_one_feed(parallel_engine, 2)
    assert again is slot
    parallel_engine.submit([again])
    parallel_engine.submit([following])
    drowsy.awake.set()
    late.join()
    assert cast("OpenVinoSlot", following).follows is again, "which is still being computed"
    gated.gate.set()
    for each in (again, following):
        each.wait()
        each.release()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_pictures_of_a_feed_are_computed_in_their_order_whichever_is_waited_for_first(
    parallel_engine: Door, order: Sequence[int]
) -> None:
    """Each reads what the one before has left."""
    wanted = []
    for slot in of_one_feed(parallel_engine, 3):
        parallel_engine.submit([slot])
        slot.wait()
        wanted.append(slot.y_out.copy())
        slot.release()
    slots = of_one_feed(parallel_engine, 3)
    for slot in slots:
        parallel_engine.submit([slot])
    for place in order:
        slots[place].wait()
        assert np.array_equal(slots[place].y_out, wanted[place])
    for slot in slots:
        slot.release()
    again = of_one_feed(parallel_engine, 1)
    parallel_engine.submit(again)
    again[0].wait()
    assert np.array_equal(again[0].y_out, wanted[0])
    again[0].release()


def test_a_picture_that_cannot_be_started_costs_no_other_one_and_its_feed_forgets_nothing(
    parallel_engine: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = of_one_feed(parallel_engine, 2)
    parallel_engine.submit(kept[:1])
    kept[0].wait()
    memory = kept[0].memory
    assert memory is not None
    left = parallel_engine.recollect(memory)
    assert left.any()
    monkeypatch.setattr(kept[1], "request", Refusing(cast("OpenVinoSlot", kept[1]).request))
    others = of_one_feed(parallel_engine, 1)
    parallel_engine.submit([kept[1], *others])
    others[0].wait()
    with pytest.raises(EngineError, match="cannot start a picture of 32x32: no luck today"):
        kept[1].wait()
    assert np.array_equal(parallel_engine.recollect(memory), left)
    for slot in (*kept, *others):
        slot.release()


def is_over(request: openvino.InferRequest) -> bool:
    try:
        return bool(request.wait_for(0))
    except RuntimeError as error:
        return "was canceled" in str(error)


@pytest.mark.parametrize("parallel", [1, 2])
def test_the_end_of_an_engine_waits_for_what_is_being_computed(tmp_path: Path, mine: str, parallel: int) -> None:
    """Requests write to memory that nothing else holds then."""
    options = EngineOptions(precision="fp32", threads=2, parallel=parallel, cache=tmp_path, slots=3)
    with open_engine("openvino", mine, options) as engine:
        slots = [engine.acquire(640, 360) for _ in range(3)]
        for slot in slots[:2]:
            slot.memory = engine.remember()
        slots[2].memory = slots[1].memory
        for slot in slots:
            engine.submit([slot])
    assert all(is_over(cast("OpenVinoSlot", slot).request) for slot in slots[:2])
    for slot in slots:
        slot.release()
        with pytest.raises(EngineError, match="closed"):
            slot.wait()


def test_what_a_picture_leaves_is_written_to_memory_of_its_own_when_its_feed_has_begun_anew(
    parallel_engine: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slot,) = of_one_feed(parallel_engine, 1)
    gated = Gated(cast("OpenVinoSlot", slot).request)
    monkeypatch.setattr(slot, "request", gated)
    parallel_engine.submit([slot])
    assert slot.memory is not None
    slot.memory.clear()
    gc.collect()
    numbers = cast("OpenVinoSlot", slot).numbers
    assert numbers is not None
    gated.gate.set()
    slot.wait()
    assert numbers[1].any()
    assert not parallel_engine.recollect(slot.memory).any()
    slot.release()
