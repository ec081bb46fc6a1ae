"""The NVIDIA GPU of this machine, as its driver describes it: needs no CUDA library and creates no context."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

DRIVER = "libcuda.so.1"
SLEEPS = 4
"""CU_CTX_SCHED_BLOCKING_SYNC."""
DRIVER_VERSION = Path("/sys/module/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """What plans are bound to."""

    name: str
    """The driver's name for it: "NVIDIA H200"."""
    driver: str
    """Version of the driver: "580.95.05"."""


NO_GPU = Gpu("none", "none")


def has_driver() -> bool:
    """Whether there is a driver with a GPU. Without one TensorRT's `Runtime` ends the process, so check this first."""
    return _open_driver() is not None


def find_gpu() -> Gpu:
    """The first GPU that this process may use, or `NO_GPU`."""
    driver = _open_driver()
    if driver is None:
        return NO_GPU
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    if driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, len(name), device):
        return NO_GPU
    return Gpu(name.value.decode(errors="replace"), _driver_version(driver))


def prepare_primary_context() -> None:
    """Set the first GPU's primary context to blocking synchronisation, which FFmpeg requires to decode in it.

    Call it before anything uses that context; it does nothing without a GPU. With other flags FFmpeg would create a
    context for every decoder, each with memory of its own (libavutil/hwcontext_cuda.c).
    """
    driver, device = _open_driver(), ctypes.c_int()
    if driver is not None and not driver.cuDeviceGet(ctypes.byref(device), 0):
        driver.cuDevicePrimaryCtxSetFlags_v2(device, SLEEPS)  # may be refused if already in use; then nothing changes


def is_sound() -> bool:
    """Whether this process can still use the first GPU: a kernel fault, such as an illegal address, breaks the primary
    context for good, and a library that continues to use it may end the process."""
    driver, device = _open_driver(), ctypes.c_int()
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), 0):
        return True
    flags, active, context = ctypes.c_uint(), ctypes.c_int(), ctypes.c_void_p()
    if driver.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active)) or not active.value:
        return True  # not in use, and retaining it would create it
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return False
    try:
        if driver.cuCtxPushCurrent_v2(context):
            return False
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        sound = bool(driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0)
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        return sound
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


def _open_driver() -> ctypes.CDLL | None:
    """The driver, initialised; None if there is none, or no GPU for it."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return None
    return driver


def _driver_version(driver: ctypes.CDLL) -> str:
    """The kernel module's version; if that is hidden, the CUDA version that the driver offers."""
    try:
        return DRIVER_VERSION.read_text(encoding="ascii").strip()
    except OSError:
        cuda = ctypes.c_int()
        driver.cuDriverGetVersion(ctypes.byref(cuda))
        return f"CUDA {cuda.value // 1000}.{cuda.value % 1000 // 10}"
