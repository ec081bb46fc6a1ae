"""`nightbridge engine` as a user meets it; plans are real ones, of a tiny network, built without a GPU."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines import runtime_tensorrt
from engines.nvidia import gpu, plans, tensorrt_library
from engines.nvidia.tensorrt_builder import Built
from engines.nvidia.tensorrt_library import Library, import_tensorrt
from tests.command import nightbridge
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import FakeTensorRt
from tests.planning import DOCUMENTED, H200, REMEMBERS, doubling, store_doubling
from tests.tensorrt_bench import counting
from tools import engine as command

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorRT-RTX is made for x86-64 only")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds weights; what is built goes into `cache` in it."""
    store_doubling(tmp_path / "doubling")
    return tmp_path


def engine(folder: Path, *words: str, **environment: str) -> tuple[int, list[str], str]:
    """Exit code, lines and stderr of the command on a machine without a GPU."""
    alone = {"NIGHTBRIDGE__ENGINE__CACHE": "cache", "CUDA_VISIBLE_DEVICES": ""}
    done = nightbridge(folder, "engine", *words, **alone, **environment)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr


def build(folder: Path, *sizes: str) -> list[dict[str, Any]]:
    """The plans of these sizes, as the command tells them to programs."""
    words = [word for size in sizes for word in ("--size", size)]
    code, _, told = engine(folder, "build", "--weights", "doubling", "--json", "told.json", *words)
    assert code == 0, told
    return list(json.loads((folder / "told.json").read_text())["plans"])


def test_building_tells_size_bytes_time_and_where_the_plan_is(folder: Path) -> None:
    words = ("build", "--weights", "doubling", "--size", "64x48", "--size", "51x37", "--batch", "3")
    code, lines, told = engine(folder, *words, "--json", "told.json")
    assert code == 0
    form = re.compile(r"(\S+) (\d+x\d+): (\d+) bytes, built in [\d.]+ s: (\S+)")
    found = [form.fullmatch(line) for line in lines]
    assert [line and line[2] for line in found] == ["64x48", "51x37"]
    plans = {path.relative_to(folder) for path in folder.glob("cache/tensorrt/*.plan")}
    assert {Path(line[4]) for line in found if line} == plans
    assert "no GPU here: this shows that plans can be built, but none of them will run" in told

    values = json.loads((folder / "told.json").read_text())
    assert values["usable"] is False
    library = import_tensorrt()
    for plan, line in zip(values["plans"], found, strict=True):
        assert line
        assert (plan["weights"], f"{plan['width']}x{plan['height']}") == (line[1], line[2])
        assert (str(plan["bytes"]), plan["path"]) == (line[3], line[4])
        assert (plan["batch"], plan["precision"], plan["built"]) == (3, "fp16", True)
        assert (plan["library"], plan["version"]) == (library.name, library.version)
        assert (plan["gpu"], plan["driver"]) == ("none", "none")
        assert plan["seconds"] > 0

    code, lines, _ = engine(folder, *words)
    assert [re.sub(r"\d+ bytes", "", line) for line in lines] == [
        f"{plan['weights']} {plan['width']}x{plan['height']}: , already there: {plan['path']}"
        for plan in values["plans"]
    ]


def test_plans_are_listed_newest_first_with_what_they_are_good_for(folder: Path) -> None:
    paths = [folder / plan["path"] for plan in build(folder, "51x37", "64x48", "80x60")]
    damaged = paths[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for age, path in enumerate(paths):
        os.utime(path, (1e9 - age, 1e9 - age))

    code, lines, told = engine(folder, "list", "--json", "told.json")
    assert (code, told) == (0, "")
    *rows, last = lines
    assert last == "3 plans in cache/tensorrt"
    assert rows[0].startswith(damaged.name)
    assert rows[0].endswith("it is damaged")
    assert [re.findall(r"\d+x\d+", row) for row in rows[1:]] == [["64x48"], ["80x60"]]
    library = import_tensorrt()
    for row in rows[1:]:
        assert row.startswith(str(folder / "doubling"))
        assert f"  batch 1-8  fp16  {library}  no GPU  " in row
        assert row.endswith("  built without a GPU, to test building only")

    told = json.loads((folder / "told.json").read_text())
    assert [plan["usable"] for plan in told["plans"]] == [False] * 3
    assert [plan["why"] for plan in told["plans"]][:2] == ["it is damaged", rows[1].rpartition("  ")[2]]
    assert told["plans"][1]["made"] == "2001-09-09T01:46:39+00:00"


def test_without_plans_the_list_is_empty_and_makes_nothing(folder: Path) -> None:
    assert engine(folder, "list", "--json", "told.json") == (0, ["0 plans in cache/tensorrt"], "")
    assert json.loads((folder / "told.json").read_text()) == {"folder": "cache/tensorrt", "plans": []}
    assert not (folder / "cache").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--size", "64"], "'64'; must be WIDTHxHEIGHT such as 352x288"),
        (["--size", "64x48", "--size", "64x5000"], "size 64x5000: it must be 16x16 to 4096x4096"),
        (["--size", "64x48", "--batch", "33"], "batch 33: it must be 1 to 32"),
        (["--size", "64x48", "--runtime", "openvino"], "'openvino'"),
        ([], "--size"),
    ],
)
def test_wrong_use_is_told_before_anything_is_built(folder: Path, words: list[str], told: str) -> None:
    code, lines, error = engine(folder, "build", "--weights", "doubling", *words)
    assert (code, lines) == (2, [])
    assert told in " ".join(error.replace("│", " ").split())
    assert not (folder / "cache").exists()


def test_unknown_weights_are_told(folder: Path) -> None:
    code, _, error = engine(folder, "build", "--weights", "feild", "--size", "64x48")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("nightbridge: no weights 'feild': give one of ")


def test_a_file_that_the_library_cannot_read_is_one_line(folder: Path) -> None:
    store_doubling(folder / "strange", doubling().replace(b"Resize", b"Desire"))
    code, _, error = engine(folder, "build", "--weights", "strange", "--size", "64x48")
    assert code == 1
    assert re.fullmatch(r"nightbridge: TensorRT\S* \S+ cannot read the ONNX file: .*Desire.*", error.splitlines()[-1])


def test_without_the_library_building_says_what_to_install_and_listing_still_works(folder: Path) -> None:
    build(folder, "64x48")
    hidden = folder / "hidden"
    hidden.mkdir()
    for name in ("tensorrt", "tensorrt_rtx"):
        (hidden / f"{name}.py").write_text("raise ImportError('not here')")
    path = f"{hidden}{os.pathsep}{Path(__file__).parents[1]}"
    code, lines, error = engine(folder, "build", "--weights", "doubling", "--size", "64x48", PYTHONPATH=path)
    assert (code, lines, error.count("\n")) == (1, [], 1)
    assert error.startswith("nightbridge: no usable TensorRT: pip install 'nightbridge[nvidia]'")
    code, lines, _ = engine(folder, "list", PYTHONPATH=path)
    assert (code, len(lines)) == (0, 2)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """That of a machine with a GPU."""
    driver = FakeCuda()
    library = FakeTensorRt(driver, counting, REMEMBERS)

    def build_plan(_: Library, _onnx: bytes, width: int, height: int, *rest: object) -> Built:
        return Built(f"{width}x{height}@{rest[-1]}".encode(), b"")

    for module in (gpu, runtime_tensorrt):
        monkeypatch.setattr(module, "find_gpu", lambda: H200)
    for module in (tensorrt_library, runtime_tensorrt):
        monkeypatch.setattr(module, "import_tensorrt", library.library)
    monkeypatch.setattr(plans, "build_plan", build_plan)
    monkeypatch.setattr(runtime_tensorrt, "import_driver", lambda: driver)
    monkeypatch.setattr(runtime_tensorrt, "CONFIGS", {"neid-live": SimpleNamespace(memory_size=REMEMBERS)})
    return library


def test_on_a_gpu_the_plan_is_built_that_it_runs_and_the_list_tells_it_from_those_that_it_refused(
    folder: Path, library: FakeTensorRt, capsys: pytest.CaptureFixture[str]
) -> None:
    library.refuses, library.cannot_run = {""}, {"CURRENT"}
    cache, told = folder / "cache", folder / "told.json"
    for built in (True, False):
        command.build(["64x48"], str(folder / "doubling"), cache=cache, json=told)
        values = json.loads(told.read_text())
        assert values["usable"] is True
        (plan,) = values["plans"]
        assert (plan["capability"], plan["built"], plan["gpu"]) == ("SM80", built, H200.name)
    command.list_plans(cache, told)
    listed = json.loads(told.read_text())["plans"]
    assert {plan["capability"]: plan["why"] for plan in listed} == {
        "": command.NEVER_RAN,
        "CURRENT": command.NEVER_RAN,
        "SM80": "",
    }
    assert [file["path"] for file in listed if file["usable"]] == [plan["path"]]
    lines = capsys.readouterr().out.splitlines()
    assert "built in" in lines[0]
    assert "already there" in lines[1]


def test_on_a_gpu_without_a_cache_folder_a_plan_runs_and_is_told_as_not_kept(
    folder: Path, library: FakeTensorRt, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "file").touch()
    told = folder / "told.json"
    command.build(["64x48"], str(folder / "doubling"), cache=folder / "file" / "cache", json=told)
    (plan,) = json.loads(told.read_text())["plans"]
    assert (plan["path"], plan["capability"], plan["built"]) == (None, "", True)
    assert capsys.readouterr().out.endswith(": not stored\n")
    assert {record.getMessage().partition("/tensorrt ")[2] for record in caplog.records} == {
        "cannot be used; nothing is cached: Not a directory"
    }


def test_changed_weights_get_a_new_plan(folder: Path) -> None:
    build(folder, "64x48")
    store_doubling(folder / "doubling", doubling() + DOCUMENTED)
    assert build(folder, "64x48")[0]["built"]
    assert len(list(folder.glob("cache/tensorrt/*.plan"))) == 2
