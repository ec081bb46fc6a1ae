"""Which library and which GPU plans are for."""

from __future__ import annotations

import ctypes
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from engines.errors import EngineMissing
from engines.nvidia import gpu
from engines.nvidia.gpu import NO_GPU, Gpu, find_gpu, has_driver, is_sound, prepare_primary_context
from engines.nvidia.tensorrt_library import Library, import_tensorrt
from tests.command import ROOT
from tests.planning import H200


def forget_tensorrt(monkeypatch: pytest.MonkeyPatch, **modules: ModuleType | None) -> None:
    """Let imports find these modules, and where they are None nothing."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, modules.get(name))


def module(name: str, version: str) -> ModuleType:
    made = ModuleType(name)
    made.__version__ = version
    return made


def test_without_a_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_tensorrt(monkeypatch)
    with pytest.raises(EngineMissing, match=r"no usable TensorRT: pip install 'nightbridge\[nvidia\]' .*tensorrt_rtx"):
        import_tensorrt()


def test_full_tensorrt_goes_before_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    full, rtx = module("tensorrt", "10.13.3"), module("tensorrt_rtx", "1.6.1.120")
    forget_tensorrt(monkeypatch, tensorrt=full, tensorrt_rtx=rtx)
    assert import_tensorrt() == Library(full, "tensorrt", "10.13.3")
    forget_tensorrt(monkeypatch, tensorrt_rtx=rtx)
    assert str(import_tensorrt()) == "TensorRT-RTX 1.6.1.120"


def test_a_tensorrt_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_tensorrt(monkeypatch, tensorrt=module("tensorrt", "8.6.1"))
    with pytest.raises(EngineMissing, match=r"tensorrt 8\.6\.1 is too old: it must be 10\.1 or newer"):
        import_tensorrt()


def test_what_users_install_may_be_the_last_tensorrt_rtx_that_refuses_no_gpu() -> None:
    """1.7 says that it does not support compute capability 9.0."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (wanted,) = [each for each in map(Requirement, extras["nvidia"]) if each.name == "tensorrt-rtx"]
    assert all(wanted.specifier.contains(version) for version in ("1.6.1.120", "1.7.1.116"))


class Driver:
    """Answers as libcuda does: with 0, or the number of an error."""

    def __init__(self, initialised: int = 0, gpus: int = 1) -> None:
        self.cuInit = lambda _: initialised
        self.cuDeviceGetCount = lambda count: self.write(count._obj, gpus)
        self.cuDeviceGet = lambda _device, _index: 0
        self.cuDeviceGetName = lambda name, _length, _device: self.write(name, b"NVIDIA H200")
        self.flags: list[int] = []
        self.cuDevicePrimaryCtxSetFlags_v2 = lambda _device, flags: self.flags.append(flags) or 0
        self.cuDriverGetVersion = lambda version: self.write(version._obj, 13010)

    @staticmethod
    def write(place: ctypes.c_int | ctypes.Array[ctypes.c_char], value: int | bytes) -> int:
        place.value = value
        return 0


def test_a_gpu_is_known_by_its_name_and_its_drivers_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver())
    monkeypatch.setattr(gpu, "DRIVER_VERSION", tmp_path / "version")
    assert has_driver()
    assert find_gpu() == Gpu("NVIDIA H200", "CUDA 13.1")
    (tmp_path / "version").write_text("580.95.05\n")
    assert find_gpu() == H200


def test_the_primary_context_is_made_as_ffmpeg_wants_to_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    prepare_primary_context()
    assert driver.flags == [4]  # CU_CTX_SCHED_BLOCKING_SYNC
    for none in (Driver(gpus=0), Driver(initialised=100)):
        monkeypatch.setattr(ctypes, "CDLL", lambda _, none=none: none)
        prepare_primary_context()
        assert none.flags == []


class Used(Driver):
    """A driver whose primary context somebody uses, or not; `fails` is the call that it answers with an error."""

    def __init__(self, active: bool, fails: str = "") -> None:
        super().__init__()
        self.held, self.current = 0, 0
        self.fails = fails
        self.cuDevicePrimaryCtxGetState = lambda _device, _flags, state: self.write(state._obj, int(active))
        self.cuDevicePrimaryCtxRetain = lambda _context, _device: self.count("held", 1, "retain")
        self.cuDevicePrimaryCtxRelease_v2 = lambda _device: self.count("held", -1, "release")
        self.cuCtxPushCurrent_v2 = lambda _context: self.count("current", 1, "push")
        self.cuCtxPopCurrent_v2 = lambda _context: self.count("current", -1, "pop")
        self.cuMemGetInfo_v2 = lambda _free, _total: 700 if fails == "any use" else 0

    def count(self, what: str, by: int, call: str) -> int:
        if call == self.fails:
            return 700
        setattr(self, what, getattr(self, what) + by)
        return 0


@pytest.mark.parametrize(
    ("driver", "sound"),
    [
        (Driver(gpus=0), True),
        (Used(active=False, fails="any use"), True),
        (Used(active=True), True),
        (Used(active=True, fails="any use"), False),
        (Used(active=True, fails="retain"), False),
        (Used(active=True, fails="push"), False),
    ],
    ids=["no GPU", "not used", "sound", "spoilt", "cannot be held", "cannot be current"],
)
def test_a_gpu_whose_context_a_fault_has_spoilt_is_known(
    monkeypatch: pytest.MonkeyPatch, driver: Driver, sound: bool
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    assert is_sound() == sound
    if isinstance(driver, Used):
        assert (driver.held, driver.current) == (0, 0)


@pytest.mark.parametrize("driver", [None, Driver(initialised=100), Driver(gpus=0)], ids=["none", "fails", "no GPU"])
def test_without_a_driver_that_serves_a_gpu_there_is_none(
    monkeypatch: pytest.MonkeyPatch, driver: Driver | None
) -> None:
    def load(name: str) -> Driver:
        assert name == "libcuda.so.1"
        if driver is None:
            raise OSError("no such file")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert not has_driver()
    assert find_gpu() == NO_GPU
