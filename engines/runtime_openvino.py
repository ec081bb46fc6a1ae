"""OpenVINO on the CPU: the embedded default. One compiled model for each picture size, kept in its cache."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import openvino
from numpy.typing import NDArray
from platformdirs import user_cache_path

from engines.cards import Weights
from engines.cores import available_cores
from engines.door import SCALE, EngineInfo, Memory, Slot
from engines.errors import EngineError, EngineMismatch
from engines.private_cache import make_room
from engines.ring import Engine
from engines.runtime import EngineOptions

DEVICE = "CPU"
ACCEPTABLE_LOSS_DB = 0.15
"""`auto` takes a faster precision only where the picture loses no more than this against fp32."""
CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux tells of the processor."""
LARGEST_CACHE = 1024**3
"""Bytes of compiled models that are kept: some 80 sizes of pictures. Those of older weights, or of another OpenVINO,
are asked for no more, and go first."""
FILES = {"fp32": "fp32.onnx", "bf16": "fp32.onnx", "int8": "int8.xml"}
"""The file that each precision reads; bf16 is a way of computing the fp32 file."""

log = logging.getLogger(__name__)


@dataclass
class OpenVinoSlot(Slot):
    """Its planes are the memory of its own inference request."""

    request: openvino.InferRequest = field(kw_only=True)
    coefficients: NDArray[np.float32] = field(kw_only=True)
    kept: NDArray[np.float32] = field(kw_only=True)
    """(1, 1), `keep` as the request reads it."""
    alone: Memory = field(kw_only=True)
    """Of pictures that have no other."""


class OpenVinoEngine(Engine):
    """Compiles a size when its first slot is asked for; requests run one after another on all threads, or `parallel` of
    them side by side on a share of the threads each, but those of one feed in their order."""

    def __init__(self, weights: Weights, precision: str, core: openvino.Core, options: EngineOptions) -> None:
        super().__init__(
            EngineInfo(
                runtime="openvino",
                device=core.get_property(DEVICE, "FULL_DEVICE_NAME"),
                precision=precision,
                weights=weights.card.name,
                weights_id=weights.id,
            ),
            options.slots,
        )
        self._weights = weights
        self._core = core
        self._options = options
        self._cache = options.cache or user_cache_path("nightbridge") / "openvino"
        self._model: openvino.Model | None = None
        self._compiled: dict[tuple[int, int], openvino.CompiledModel] = {}
        self._threads = options.threads or available_cores()
        self._parallel = min(options.parallel, self._threads)
        self._latest: WeakKeyDictionary[Memory, ref[OpenVinoSlot]] = WeakKeyDictionary()
        """Of each feed's memory the slot that writes to it last."""

    def _open(self) -> None:
        try:
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._core.set_property({"CACHE_DIR": str(self._cache)})
        except OSError as error:
            log.warning("%s cannot be used, so nothing is kept: %s", self._cache, error.strerror)
        self._model = read_model(self._core, self._weights, self.info.precision)
        self._remembers = self._model.input("memory").get_partial_shape()[1].get_length()

    def _close(self) -> None:
        self._compiled.clear()
        self._model = None

    def _make(self, width: int, height: int) -> OpenVinoSlot:
        request = self._compile(width, height).create_infer_request()
        planes: dict[str, NDArray[Any]] = {
            "y": np.zeros((1, 1, height, width), np.uint8),
            "uv": np.zeros((1, 2, (height + 1) // 2, (width + 1) // 2), np.uint8),
            "colour": np.zeros((1, 2, 3, 4), np.float32),
            "keep": np.zeros((1, 1), np.float32),
            "y_out": np.zeros((1, 1, SCALE * height, SCALE * width), np.uint8),
            "uv_out": np.zeros((1, 2, height, width), np.uint8),
        }
        for name, array in planes.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        return OpenVinoSlot(
            width=width,
            height=height,
            y=planes["y"][0, 0],
            uv=planes["uv"][0],
            y_out=planes["y_out"][0, 0],
            uv_out=planes["uv_out"][0],
            engine=self,
            request=request,
            coefficients=planes["colour"][0],
            kept=planes["keep"],
            alone=self.remember(),
        )

    def _forget(self, width: int, height: int) -> None:
        self._compiled.pop((width, height), None)

    def _compile(self, width: int, height: int) -> openvino.CompiledModel:
        size = (width, height)
        if size not in self._compiled:
            assert self._model is not None
            model = self._model.clone()
            chroma = ((height + 1) // 2, (width + 1) // 2)
            model.reshape(
                {
                    "y": [1, 1, height, width],
                    "uv": [1, 2, *chroma],
                    "colour": [1, 2, 3, 4],
                    "memory": [1, self._remembers],
                    "keep": [1, 1],
                }
            )
            try:
                self._compiled[size] = self._compile_by_cache(model)
            except RuntimeError as error:
                raise EngineError(
                    f"OpenVINO cannot compile {self.info.weights} for {width}x{height}: {error}"
                ) from error
            make_room(self._cache.glob("*.blob"), LARGEST_CACHE)
        return self._compiled[size]

    def _compile_by_cache(self, model: openvino.Model) -> openvino.CompiledModel:
        """Without the cache where that fails: a full disk, or another process that removed what was being written."""
        try:
            return self._core.compile_model(model, DEVICE, self._properties())
        except RuntimeError as error:
            log.warning("compiling again, without the cache in %s: %s", self._cache, " ".join(str(error).split()))
            return self._core.compile_model(model, DEVICE, self._properties() | {"CACHE_DIR": ""})

    def _properties(self) -> dict[str, object]:
        """bf16 also carries what int8 leaves in floating point, where the processor has it."""
        floating = "bf16" if self.info.precision != "fp32" and has_bf16(self._core) else "f32"
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": self._parallel,
            "INFERENCE_PRECISION_HINT": floating,
            "INFERENCE_NUM_THREADS": self._threads,
            "ENABLE_CPU_PINNING": False,
        }

    def _start(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            assert isinstance(slot, OpenVinoSlot)
            slot.coefficients[:] = slot.colour.coefficients()
            slot.kept[:] = slot.keep if slot.memory else 0
            if slot.memory and self._parallel > 1:  # the next picture of a feed reads what this one leaves
                self._follow(slot.memory, slot)
            before, after = (slot.memory or slot.alone).turn()
            slot.request.set_tensor("memory", openvino.Tensor(before, shared_memory=True))
            slot.request.set_tensor("memory_out", openvino.Tensor(after, shared_memory=True))
            try:
                slot.request.start_async()
            except RuntimeError as error:
                raise EngineError(f"OpenVINO cannot start a picture of {slot.width}x{slot.height}: {error}") from error

    def _follow(self, memory: Memory, slot: OpenVinoSlot) -> None:
        """Return when the picture before has left what it leaves, or has failed, which is for its own feed to hear."""
        latest = self._latest.get(memory)
        before = latest() if latest else None
        if before is not None and before.under_way and before.memory is memory:
            with suppress(RuntimeError):
                before.request.wait()
        self._latest[memory] = ref(slot)

    def _finish(self, slot: Slot) -> None:
        assert isinstance(slot, OpenVinoSlot)
        try:
            slot.request.wait()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on a picture of {slot.width}x{slot.height}: {error}") from error


def open_engine(weights: Weights, options: EngineOptions) -> OpenVinoEngine:
    """See `engines.runtime.RuntimeModule`."""
    core = openvino.Core()
    return OpenVinoEngine(weights, choose_precision(weights, core, options.precision), core, options)


def choose_precision(weights: Weights, core: openvino.Core, asked: str) -> str:
    """The precision asked for, or for `auto` the fastest that keeps the picture."""
    if asked == "bf16" and not has_bf16(core):
        raise EngineMismatch("precision bf16: this processor has no bfloat16; it must be one of auto, fp32, int8")
    if asked != "auto":
        if asked not in FILES:
            raise EngineMismatch(f"precision {asked!r}: OpenVINO takes one of auto, {', '.join(FILES)}")
        return asked
    losses = {"bf16": 0.0, **weights.card.precision_loss_db}  # int8 must have been measured
    usable = {"bf16": has_bf16(core), "int8": weights.has(FILES["int8"])}
    for precision in ("bf16", "int8") if has_matrix_unit(CPU_INFO) else ("int8", "bf16"):
        if usable[precision] and losses.get(precision, np.inf) <= ACCEPTABLE_LOSS_DB:
            return precision
    return "fp32"


def has_bf16(core: openvino.Core) -> bool:
    """Whether the processor computes in bfloat16."""
    return "BF16" in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


def has_matrix_unit(info: Path) -> bool:
    """Whether the processor has Intel's AMX, with which int8 is no faster than bf16; see docs/benchmarks.md."""
    try:
        return "amx_bf16" in info.read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return False


def read_model(core: openvino.Core, weights: Weights, precision: str) -> openvino.Model:
    """The model of a precision, its file verified; large weights may come as fp16.onnx alone."""
    if precision == "int8":
        return core.read_model(weights.file("int8.xml"), weights.file("int8.bin"))
    return core.read_model(weights.file("fp16.onnx" if not weights.has("fp32.onnx") else FILES[precision]))
