"""The TensorRT runtime on a driver without a device, which runs all as late, and in as odd an order, as it may."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from engines import runtime_tensorrt
from engines.cards import find_weights
from engines.door import EngineInfo, Slot
from engines.nvidia import tensorrt_lanes
from engines.nvidia.gpu import Gpu
from engines.runtime import EngineOptions
from engines.runtime_tensorrt import Cuda, TensorRtEngine
from tests.fake_cuda import FakeBindings, FakeCuda
from tests.fake_tensorrt import Arrays, FakeTensorRt

SIZE = (16, 16)


def counting(inputs: Arrays) -> Arrays:
    """Doubles luma, adds what the feed's memory counted, and counts on; a picture that is not kept begins anew."""
    counted = np.where(inputs["keep"] > 0, inputs["memory"], 0)
    bright = inputs["y"].repeat(2, 2).repeat(2, 3) + counted[:, :1, None, None].astype(np.uint8)
    height, width = inputs["y"].shape[2:]
    uv = inputs["uv"].repeat(2, 2).repeat(2, 3)[:, :, :height, :width]
    past = {f"{name}_out": inputs[name] for name in ("past_y", "past_uv")}
    return {"y_out": bright, "uv_out": uv, "memory_out": counted + 1, **past}


@dataclass
class Bench:
    """An engine and what it stands on."""

    engine: TensorRtEngine
    driver: FakeCuda
    library: FakeTensorRt
    stored: list[bytes]
    bindings: FakeBindings


class FakePlans:
    """Stands for `engines.nvidia.plans.Plans`."""

    stored: list[bytes]
    asked: list[object]
    """The capabilities of plans."""
    refusals: dict[object, str]
    """What trials found, by capability."""

    def __init__(self, *_: object) -> None: ...

    def key(self, _: object, *rest: object) -> tuple[object, ...]:
        return rest

    def get(self, _: object, width: int, height: int, *rest: object) -> SimpleNamespace:
        self.asked.append(rest[-1])
        data = f"{width}x{height}@{rest[-1]}".encode()
        return SimpleNamespace(key=(width, height, *rest), data=data)

    def trial_result(self, key: tuple[object, ...]) -> str | None:
        return self.refusals.get(key[-1])

    def load_cache(self, _: object) -> bytes:
        return b"compiled before"

    def store_cache(self, _: object, data: bytes) -> None:
        self.stored.append(data)


@contextmanager
def bench(
    monkeypatch: pytest.MonkeyPatch,
    seed: int = 1,
    slots: int = 24,
    memory_size: int = 4,
    name: str = "tensorrt_rtx",
    batch: int = 8,
) -> Iterator[Bench]:
    driver = FakeCuda(seed)
    library, bindings = FakeTensorRt(driver, counting, memory_size, name), FakeBindings(driver)
    FakePlans.stored, FakePlans.asked, FakePlans.refusals = [], [], {}
    monkeypatch.setattr(tensorrt_lanes, "import_bindings", lambda: bindings)
    monkeypatch.setattr(runtime_tensorrt, "Plans", FakePlans)
    monkeypatch.setattr(runtime_tensorrt, "CONFIGS", {"neid-live": SimpleNamespace(memory_size=memory_size)})
    weights = find_weights("field")
    info = EngineInfo("tensorrt", "test", "fp16", "field", weights.id, largest_batch=batch)
    cuda = Cuda(driver, library.library(), Gpu("test", "1"))
    engine = TensorRtEngine(weights, info, cuda, EngineOptions(slots=slots))
    with engine:
        yield Bench(engine, driver, library, FakePlans.stored, bindings)
    assert driver.stack() == []
    assert bindings.held == 0, "graphs are freed"


def filled(engine: TensorRtEngine, level: int) -> Slot:
    slot = engine.acquire(*SIZE)
    slot.y[:], slot.uv[:] = level, 128
    return slot
