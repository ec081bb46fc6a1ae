"""Plans are built with the real TensorRT-RTX, which needs no GPU for that; only one test runs a plan."""

from __future__ import annotations

import logging
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
import pytest
from onnx import helper

from engines.cards import SHIPPED, Weights
from engines.errors import EngineError, EngineMismatch, EngineMissing
from engines.network.config import CONFIGS, NEID_LIVE
from engines.nvidia import plans, tensorrt_builder
from engines.nvidia.gpu import NO_GPU, Gpu, find_gpu
from engines.nvidia.plans import Machine, PlanKey, Plans
from engines.nvidia.tensorrt_builder import build_plan, make_profile, sides
from engines.nvidia.tensorrt_library import Library, collected_errors, import_tensorrt, message_log
from engines.picture import INPUTS, OUTPUTS
from tests.command import ROOT
from tests.planning import DOCUMENTED, H200, doubling, store_doubling


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    return store_doubling(tmp_path / "doubling")


@pytest.fixture(scope="module")
def library() -> Library:
    if platform.machine() != "x86_64":
        pytest.skip("TensorRT-RTX is made for x86-64 only")
    return import_tensorrt()


@pytest.fixture
def built_for() -> Gpu:
    return H200


@pytest.fixture
def here(library: Library, tmp_path: Path, built_for: Gpu) -> Plans:
    return Plans(library, built_for, tmp_path / "cache")


@pytest.mark.parametrize("size", [(64, 48), (641, 363), (16, 16)], ids=str)
@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*/fp16.onnx")), ids=lambda file: file.parent.name)
def test_every_shipped_file_becomes_a_plan(library: Library, file: Path, size: tuple[int, int]) -> None:
    network = CONFIGS[Weights(file.parent).card.network]
    built = build_plan(library, file.read_bytes(), *size, 8, network)
    assert len(built.plan) > file.stat().st_size * 0.9, "it holds the numbers"
    assert built.timing == b""


def test_a_plan_can_be_built_for_another_capability(here: Plans, weights: Weights) -> None:
    usual, old = (here.get(weights, 64, 48, 2, capability=capability) for capability in ("", "SM80"))
    assert (usual.built, old.built) == (True, True)
    assert old.data != usual.data
    assert (usual.key.capability, old.key.capability) == ("", "SM80")


def test_a_plan_tells_the_shapes_of_all_it_takes_and_gives(library: Library) -> None:
    trt, messages = library.module, message_log(library)
    builder = trt.Builder(messages)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages)
    assert parser.parse((SHIPPED / "field" / "fp16.onnx").read_bytes())
    make_profile(builder, network, sides(NEID_LIVE, 640, 360), 8)
    shapes = [tuple(network.get_output(number).shape) for number in range(network.num_outputs)]
    assert shapes == [(-1, 1, 720, 1280), (-1, 2, 360, 640), (-1, 256), (-1, 62976, 16), (-1, 62976, 8)]


KEY = PlanKey(
    machine=Machine("tensorrt_rtx", "1.6.1", "NVIDIA H200", "580.95.05"),
    weights="field",
    onnx="0" * 64,
    precision="fp16",
    width=640,
    height=360,
    batch=8,
)


def test_every_part_of_the_key_makes_another_file(here: Plans) -> None:
    others = [
        msgspec.structs.replace(KEY, **{name: value + 1 if isinstance(value, int) else f"{value}1"})
        for name, value in msgspec.structs.asdict(KEY).items()
        if name != "machine"
    ]
    for name, value in msgspec.structs.asdict(KEY.machine).items():
        others.append(msgspec.structs.replace(KEY, machine=msgspec.structs.replace(KEY.machine, **{name: f"{value}1"})))
    paths = {here._cache.path("plan", key) for key in (KEY, *others)}
    assert len(paths) == 1 + len(others) == 12


def test_a_plan_is_built_once_and_kept_under_what_it_was_built_from(
    here: Plans, weights: Weights, library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = (here.get(weights, 64, 48, 4) for _ in range(2))
    assert (first.built, second.built) == (True, False)
    assert first.data == second.data
    assert first.path is not None
    assert first.path.parent == here.folder
    assert first.key == PlanKey(
        machine=Machine(library.name, library.version, H200.name, H200.driver),
        weights=str(weights.folder),
        onnx=weights.card.files["fp16.onnx"],
        precision="fp16",
        width=64,
        height=48,
        batch=4,
    )
    building = [record for record in caplog.records if "building" in record.getMessage()]
    assert len(building) == 1


def test_what_differs_in_anything_has_a_plan_of_its_own(
    here: Plans, weights: Weights, library: Library, tmp_path: Path
) -> None:
    after_an_update = Plans(library, Gpu(H200.name, "590.1"), tmp_path / "cache")
    built = [
        here.get(weights, 64, 48, 2),
        here.get(weights, 64, 50, 2),
        here.get(weights, 64, 48, 3),
        after_an_update.get(weights, 64, 48, 2),
        here.get(store_doubling(weights.folder, doubling() + DOCUMENTED), 64, 48, 2),
    ]
    assert all(plan.built for plan in built)
    assert len({plan.path for plan in built}) == len(built)


def test_plans_are_in_a_folder_of_their_own_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Plans(None).folder == tmp_path / "nightbridge" / "tensorrt"
    assert Plans(None, cache=tmp_path / "other").folder == tmp_path / "other" / "tensorrt"


def test_a_plan_that_somebody_put_there_is_not_handed_out(
    here: Plans, weights: Weights, caplog: pytest.LogCaptureFixture
) -> None:
    plan = here.get(weights, 64, 48, 1)
    assert plan.path is not None
    content = plan.path.read_bytes()
    plan.path.write_bytes(content[: -len(plan.data)] + b"\xcc" * len(plan.data))
    again = here.get(weights, 64, 48, 1)
    assert again.built
    assert b"\xcc" * 100 not in again.data
    assert f"ignoring cache file {plan.path}, which is damaged; building it again" in caplog.messages


RACE = """
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from engines.cards import Weights
from engines.nvidia.plans import Plans
from engines.nvidia.tensorrt_library import import_tensorrt
folder = Path(sys.argv[1])
plans = Plans(import_tensorrt(), cache=folder / "cache")
print("ready", flush=True)
sys.stdin.readline()
print(plans.get(Weights(folder / "doubling"), 64, 48, 2).built)
"""


def test_two_processes_that_ask_at_once_build_one_plan(tmp_path: Path, weights: Weights) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:
        for process in (one, other):
            assert process.stdout.readline() == "ready\n"
        for process in (one, other):
            process.stdin.write("go\n")
            process.stdin.flush()
        told = sorted(process.communicate(timeout=300)[0] for process in (one, other))
    assert told == ["False\n", "True\n"]


def test_where_there_can_be_no_folder_a_plan_is_built_and_not_kept(
    library: Library, weights: Weights, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    plans = Plans(library, H200, tmp_path / "file" / "cache")
    plan = plans.get(weights, 64, 48, 2)
    assert plan.data
    assert (plan.path, plan.built) == (None, True)
    plans.store_cache(plan.key, b"kernels")
    assert plans.load_cache(plan.key) is None
    assert plans.files() == []


def test_a_file_that_is_not_the_one_of_its_card_is_not_built(
    here: Plans, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    (weights.folder / "fp16.onnx").write_bytes(doubling() + DOCUMENTED)
    with pytest.raises(EngineMismatch, match=r"fp16\.onnx was changed: its SHA-256 is"):
        here.get(weights, 64, 48, 1)
    monkeypatch.setattr(weights, "file", lambda name: weights.folder / name)  # as if it changed right after the check
    with pytest.raises(EngineMismatch, match=r"fp16\.onnx was changed while it was read"):
        here.get(weights, 64, 48, 1)
    assert here.files() == []


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ((15, 48, 1), "size 15x48: it must be 16x16 to 4096x4096"),
        ((64, 4097, 1), "size 64x4097: it must be 16x16 to 4096x4096"),
        ((64, 48, 0), "batch 0: it must be 1 to 32"),
        ((64, 48, 33), "batch 33: it must be 1 to 32"),
        ((64, 48, 1, "int8"), "precision 'int8': TensorRT takes one of fp16"),
    ],
)
def test_what_no_engine_takes_is_told(here: Plans, weights: Weights, asked: tuple[int, int, int], told: str) -> None:
    with pytest.raises(EngineMismatch, match=told):
        here.get(weights, *asked)


def multiply_memory_by_itself(model: onnx.ModelProto) -> None:
    model.graph.node[2].CopyFrom(helper.make_node("MatMul", ["memory", "memory"], ["kept"]))


def leave_the_memory_open(model: onnx.ModelProto) -> None:
    model.graph.input[3].type.tensor_type.shape.dim[1].dim_param = "C"


def name_an_unknown_operation(model: onnx.ModelProto) -> None:
    model.graph.node[2].op_type = "Desire"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (name_an_unknown_operation, "cannot read the ONNX file: .*operator: Desire"),
        (multiply_memory_by_itself, "cannot build a plan: .*multiply two matrices with mismatching dimensions"),
        (leave_the_memory_open, "cannot build a plan: .*[Ss]hape"),
    ],
)
def test_the_librarys_own_words_reach_the_user(
    here: Plans, tmp_path: Path, spoil: Callable[[onnx.ModelProto], None], told: str
) -> None:
    model = onnx.load_from_string(doubling())
    spoil(model)
    strange = store_doubling(tmp_path / "strange", model.SerializeToString())
    with pytest.raises(EngineError, match=rf"TensorRT\S* [\d.]+ {told}"):
        here.get(strange, 64, 48, 2)
    assert here.files() == []


def test_a_file_that_is_no_onnx_is_told(here: Plans, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="Failed to parse the ONNX model"):
        here.get(store_doubling(tmp_path / "rubbish", b"rubbish"), 64, 48, 1)


def test_the_library_speaks_through_the_log_except_of_errors_that_are_collected(
    library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    messages = message_log(library)
    assert messages is message_log(library), "the library takes one only"
    levels = library.module.ILogger.Severity
    with collected_errors(library) as errors:
        for level in (levels.INTERNAL_ERROR, levels.ERROR, levels.WARNING, levels.INFO):
            messages.log(level, f"{level.name} said\n")
    messages.log(levels.ERROR, "nobody collects")
    assert errors == ["INTERNAL_ERROR said", "ERROR said"]
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [("WARNING", "TensorRT-RTX: WARNING said"), ("ERROR", "TensorRT-RTX: nobody collects")]


def test_the_runtime_cache_belongs_to_one_plan(here: Plans) -> None:
    assert here.load_cache(KEY) is None
    here.store_cache(KEY, b"kernels")
    assert here.load_cache(KEY) == b"kernels"
    assert here.load_cache(msgspec.structs.replace(KEY, width=641)) is None
    assert here.files() == []


@pytest.mark.filterwarnings("ignore:.*[Tt]iming.*:DeprecationWarning")
def test_what_one_build_learns_of_the_gpus_kernels_is_there_for_the_next(
    library: Library, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Library(library.module, "tensorrt", library.version)
    monkeypatch.setattr(tensorrt_builder, "has_driver", lambda: True)
    handed: list[bytes] = []

    def building(*arguments: object) -> tensorrt_builder.Built:
        handed.append(arguments[6])
        return build_plan(*arguments)

    monkeypatch.setattr(plans, "build_plan", building)
    here = Plans(full, H200, tmp_path / "cache")
    here.get(weights, 64, 48, 1)
    here.get(weights, 64, 50, 1)
    assert handed[0] == b""
    assert len(handed[1]) > 0


def test_full_tensorrt_needs_a_gpu_to_build(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_builder, "has_driver", lambda: False)
    with pytest.raises(EngineMissing, match=r"TensorRT 11\.4 builds only on a GPU, and none was found.*TensorRT-RTX"):
        build_plan(Library(library.module, "tensorrt", "11.4"), doubling(), 64, 48, 1, NEID_LIVE)


def test_only_a_plan_for_this_machine_and_the_present_weights_counts_as_usable(
    here: Plans, library: Library, weights: Weights, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    here.get(weights, 64, 48, 1)
    assert [file.useless for file in here.files()] == [""]
    newer = Plans(library, Gpu(H200.name, "590.1"), cache)
    assert [file.useless for file in newer.files()] == ["built for another GPU, driver or library"]
    assert [file.useless for file in Plans(None, H200, cache).files()] == ["TensorRT is not installed"]
    store_doubling(weights.folder, doubling() + DOCUMENTED)
    assert [file.useless for file in here.files()] == ["its weights have changed"]
    weights.folder.rename(tmp_path / "moved")
    assert [file.useless for file in here.files()] == ["its weights are missing"]


@pytest.mark.parametrize("built_for", [NO_GPU])
def test_a_plan_that_was_built_without_a_gpu_is_usable_nowhere(here: Plans, weights: Weights) -> None:
    plan = here.get(weights, 64, 48, 1)
    assert plan.key.machine.gpu == "none"
    assert [file.useless for file in here.files()] == ["built without a GPU, to test building only"]


def test_a_plan_under_the_name_of_another_is_told(here: Plans, weights: Weights) -> None:
    one, other = here.get(weights, 64, 48, 1), here.get(weights, 64, 50, 1)
    assert one.path is not None
    assert other.path is not None
    other.path.write_bytes(one.path.read_bytes())
    told = {file.path: file.useless for file in here.files()}
    assert told == {one.path: "", other.path: "it holds something other than its name says"}


@pytest.mark.gpu
def test_a_kept_plan_opens_on_the_gpu_that_it_was_built_for(library: Library, weights: Weights, tmp_path: Path) -> None:
    here = Plans(library, find_gpu(), tmp_path / "cache")
    here.get(weights, 64, 48, 4)
    kept = here.get(weights, 64, 48, 4)
    assert not kept.built
    with collected_errors(library) as errors:
        runtime = library.module.Runtime(message_log(library))
        engine = runtime.deserialize_cuda_engine(kept.data)
    assert engine is not None, errors
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    assert names == {*INPUTS, *OUTPUTS}
    assert [tuple(shape) for shape in engine.get_tensor_profile_shape("y", 0)] == [(n, 1, 48, 64) for n in (1, 4, 4)]
