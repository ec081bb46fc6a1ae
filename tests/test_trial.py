"""Whether a GPU runs plans is found out in another process: whatever becomes of that, this one goes on."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines import runtime, runtime_tensorrt
from engines.cards import find_weights
from engines.errors import EngineMissing
from engines.nvidia import plans, trial
from engines.nvidia.gpu import Gpu, has_driver
from engines.nvidia.plans import Plans
from engines.nvidia.trial import capability_that_runs, refusal_of
from engines.runtime import EngineOptions, open_engine, open_with_fallback
from tests.command import ROOT
from tests.fake_cuda import FakeCuda
from tests.fake_engine import Fake
from tests.fake_tensorrt import FakeTensorRt
from tests.waiting import wait_until

H200 = Gpu("NVIDIA H200", "580.95.05")
LIBRARY = FakeTensorRt(FakeCuda(), lambda _: {})
"""Without a device nothing is asked of it but its name."""
ABORTS = "import os; os.abort()"
MUST_NOT_RUN = "raise SystemExit('it was tried once more')"

ON_A_GPU = """
import os, sys
sys.path[:] = sys.argv[1].split(os.pathsep)
from engines.nvidia import plans, trial
from engines import runtime_tensorrt
from engines.nvidia.gpu import Gpu
from engines.nvidia.tensorrt_builder import Built
from tests.fake_cuda import FakeCuda, OutOfMemory
from tests.fake_tensorrt import FakeTensorRt

class Library(FakeTensorRt):
    dies = ""
    def deserialize_cuda_engine(self, data):
        if data.decode().partition("@")[2] == self.dies != "":
            os.abort()
        return super().deserialize_cuda_engine(data)

driver = FakeCuda()
enough = driver.mem_alloc
def too_little(octets):
    if octets > 5000:
        raise OutOfMemory("cuMemAlloc failed: out of memory")
    return enough(octets)

library = Library(driver, lambda inputs: {})
runtime_tensorrt.find_gpu = lambda: Gpu("NVIDIA H200", "580.95.05")
runtime_tensorrt.import_tensorrt = library.library
runtime_tensorrt.import_driver = lambda: driver
plans.build_plan = lambda _, onnx, width, height, *rest: Built(f"{width}x{height}@{rest[-1]}".encode(), b"")
"""
"""The beginning of a trial's process on a machine with a GPU, which the next lines may spoil."""
TRY = "\ntrial.try_here(*sys.argv[2:])"


def options(cache: Path) -> EngineOptions:
    return EngineOptions(cache=cache, batch=2)


def capability(cache: Path, gpu: Gpu = H200) -> str:
    return capability_that_runs(LIBRARY.library(), gpu, find_weights("field"), options(cache))


def refusal(cache: Path) -> str:
    return refusal_of(find_weights("field"), options(cache), "")


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("pass", ""),
        ("import sys; print('a note', file=sys.stderr); sys.exit('error 209')", "error 209"),
        (ABORTS, "its process ended with signal 6: no reason given"),
        ("import os; os.kill(os.getpid(), 11)", "its process ended with signal 11: no reason given"),
        ("import threading; threading.Event().wait()", "it was not ready within 1 s"),
    ],
)
def test_a_trial_is_told_however_it_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, told: str
) -> None:
    monkeypatch.setattr(trial, "PROGRAM", program)
    monkeypatch.setattr(trial, "TRIAL_SECONDS", 1.0 if "within" in told else 60.0)
    assert refusal(tmp_path) == told


def test_each_capability_has_a_process_of_its_own_and_what_they_found_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoiled = "\nlibrary.faulty = {''}\nlibrary.dies = 'CURRENT'"
    for program in (ON_A_GPU + spoiled + TRY, MUST_NOT_RUN):
        monkeypatch.setattr(trial, "PROGRAM", program)
        caplog.clear()
        assert capability(tmp_path) == "SM80"
        assert caplog.messages == [
            "NVIDIA H200 uses a plan built for compute capability SM80; others failed: "
            "default capability: cuStreamSynchronize failed: invalid device function; "
            "CURRENT: its process ended with signal 6: no reason given"
        ]
    (plan,) = [file for file in Plans(None, cache=tmp_path).files() if file.key and file.key.capability == "SM80"]
    assert plan.key
    assert (plan.key.width, plan.key.height, plan.key.batch) == (64, 48, 2), "the engine finds the plan built"


def test_a_refusal_holds_for_a_day_and_for_one_machine_and_network_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trial, "PROGRAM", ABORTS)
    with pytest.raises(EngineMissing) as refused:
        capability(tmp_path)
    ended = "its process ended with signal 6: no reason given"
    assert str(refused.value) == (
        "TensorRT-RTX 1.6.1 could not run any plan on NVIDIA H200: "
        f"default capability: {ended}; CURRENT: {ended}; SM80: {ended}"
    )
    monkeypatch.setattr(trial, "PROGRAM", "pass")
    with pytest.raises(EngineMissing, match="signal 6"):
        capability(tmp_path)
    assert capability(tmp_path, Gpu(H200.name, "590.1")) == ""
    assert capability_that_runs(LIBRARY.library(), H200, find_weights("field-lite"), options(tmp_path)) == ""
    monkeypatch.setattr(plans, "REFUSED_SECONDS", 0)
    assert capability(tmp_path) == ""
    monkeypatch.setattr(trial, "PROGRAM", MUST_NOT_RUN)
    assert capability(tmp_path) == "", "that it runs holds for good"


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "^its process ended with signal 15"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "^its process ended with signal 9"),
        (f"{ON_A_GPU}driver.mem_alloc = too_little{TRY}", "^tensorrt failed: cuMemAlloc failed: out of memory$"),
        (f"{ON_A_GPU}driver.failure = OutOfMemory('the GPU is taken'){TRY}", "^the GPU is taken$"),
    ],
)
def test_what_tells_nothing_of_the_gpu_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, told: str
) -> None:
    monkeypatch.setattr(trial, "PROGRAM", program)
    with pytest.raises(EngineMissing, match=told):
        capability(tmp_path)
    assert list(tmp_path.rglob("*.trial")) == []
    monkeypatch.setattr(trial, "PROGRAM", "pass")
    assert capability(tmp_path) == ""


def test_the_process_opens_the_engine_of_the_same_program(tmp_path: Path) -> None:
    if has_driver():
        pytest.skip("there is a GPU")
    missing = "runtime tensorrt needs an NVIDIA GPU and its driver, and none was found"
    with pytest.raises(EngineMissing, match=f"^{missing}$"):
        refusal(tmp_path)


def test_where_there_can_be_no_process_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(EngineMissing, match=r"^TensorRT cannot be tested in a separate process: No such file"):
        refusal(tmp_path)


PARENT = """
import sys
from pathlib import Path
from engines.nvidia import trial
from engines.cards import find_weights
from engines.runtime import EngineOptions
from tools.common.signals import clearing_up_at_signals
trial.PROGRAM = sys.argv[1]
with clearing_up_at_signals():
    trial.refusal_of(find_weights("field"), EngineOptions(cache=Path(sys.argv[2])), "")
"""
HANGS = """
import os, sys, threading
from pathlib import Path
part = Path(sys.argv[3], "part")
part.write_text(str(os.getpid()))
part.rename(Path(sys.argv[3], "pid"))
threading.Event().wait()
"""
BOUND = """
import os, sys
sys.path[:] = sys.argv[1].split(os.pathsep)
from engines.nvidia.trial import end_with_parent
end_with_parent({seconds})
"""


def is_gone(pid: int) -> bool:
    try:
        return re.search(r"^State:\s+Z", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE) is not None
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(
    ("program", "how"),
    [(HANGS, signal.SIGTERM), (BOUND.format(seconds=600) + HANGS, signal.SIGKILL)],
    ids=["stopped", "killed"],
)
def test_no_trial_outlives_who_asked_for_it(tmp_path: Path, program: str, how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, program, str(tmp_path)], cwd=ROOT) as parent:
        told = tmp_path / "pid"
        wait_until(told.exists, "the trial")
        pid = int(told.read_text())
        assert not is_gone(pid)
        parent.send_signal(how)
        parent.wait()
    try:
        wait_until(lambda: is_gone(pid), "its end")
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        raise


def test_a_trial_ends_itself_where_nobody_ends_it(tmp_path: Path) -> None:
    program = BOUND.format(seconds=0.05) + "import threading; threading.Event().wait()"
    done = subprocess.run([sys.executable, "-c", program, os.pathsep.join(sys.path)], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == -signal.SIGALRM


# What `auto` makes of it


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Of a machine with a GPU on which all runtimes work."""
    driver = FakeCuda()
    library = FakeTensorRt(driver, lambda _: {})
    monkeypatch.setattr(runtime_tensorrt, "find_gpu", lambda: H200)
    monkeypatch.setattr(runtime_tensorrt, "import_tensorrt", library.library)
    monkeypatch.setattr(runtime_tensorrt, "import_driver", lambda: driver)
    monkeypatch.setattr(runtime, "has_driver", lambda: True)
    for name in ("torch", "openvino"):
        module = SimpleNamespace(open_engine=lambda *_, name=name: Fake(name))
        monkeypatch.setitem(sys.modules, runtime.RUNTIMES[name], module)
    monkeypatch.setattr(runtime_tensorrt, "Plans", AnyPlan)
    AnyPlan.asked = []
    return driver


class AnyPlan:
    """Stands for `engines.nvidia.plans.Plans`."""

    asked: list[object]
    """The capabilities of plans."""

    def __init__(self, *_: object) -> None: ...

    def key(self, *_: object) -> None: ...

    def trial_result(self, _: object) -> None: ...

    def get(self, *rest: object) -> SimpleNamespace:
        self.asked.append(rest[-1])
        return SimpleNamespace(key=rest, data=f"64x48@{rest[-1]}".encode())

    def load_cache(self, _: object) -> None: ...

    def store_cache(self, *_: object) -> None: ...


def test_auto_opens_nothing_whose_trial_died_and_takes_the_next_runtime(
    monkeypatch: pytest.MonkeyPatch, driver: FakeCuda, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trial, "PROGRAM", ABORTS)
    monkeypatch.setattr(driver, "check", lambda **_: pytest.fail("the GPU was used in this process"))
    with open_with_fallback(options=options(tmp_path)) as engine:
        engine.prepare(32, 32)
        wait_until(lambda: engine.info.runtime == "torch", "the next runtime")
        assert engine.failures == {"tensorrt": 0, "torch": 0, "openvino": 0}
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith(
        "engine: tensorrt cannot be used: TensorRT-RTX 1.6.1 could not run any plan on NVIDIA H200: "
        "default capability: its process ended with signal 6: no reason given; CURRENT: "
    )


def test_auto_opens_only_what_passed(monkeypatch: pytest.MonkeyPatch, driver: FakeCuda, tmp_path: Path) -> None:
    monkeypatch.setattr(trial, "PROGRAM", "import sys; sys.exit(sys.argv[5] != 'SM80')")
    assert open_engine(options=options(tmp_path)).info.runtime == "tensorrt"
    assert AnyPlan.asked == ["SM80"]


def test_what_is_asked_for_by_its_name_is_opened_without_a_trial(
    monkeypatch: pytest.MonkeyPatch, driver: FakeCuda, tmp_path: Path
) -> None:
    monkeypatch.setattr(trial, "PROGRAM", ABORTS)
    with open_engine("tensorrt", options=options(tmp_path)) as engine:
        engine.prepare(64, 48)
        assert engine.info.runtime == "tensorrt"
