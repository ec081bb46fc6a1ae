"""OpenVINO on the CPU: the embedded default. One compiled model for each picture size, kept in a cache."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import numpy as np
import openvino
from numpy.typing import NDArray
from platformdirs import user_cache_path

from engines.cards import Weights
from engines.cores import available_cores
from engines.door import PAST, SCALE, EngineInfo, Memory, Numbers, Past, Shape, Slot
from engines.errors import EngineError, EngineMismatch, UnknownName
from engines.private_cache import PrivateCache
from engines.ring import Engine
from engines.runtime import EngineOptions

DEVICE = "CPU"
ACCEPTABLE_LOSS_DB = 0.15
"""`auto` takes a faster precision only where the picture loses no more than this against fp32."""
CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux describes the processor."""
CLOSED = "the engine was closed before the picture was done"
LARGEST_CACHE = 1024**3
"""Most bytes of compiled models to keep: some 80 picture sizes. Models of older weights or another OpenVINO are not
used again, so they are removed first."""
BLOB = "blob"
FILES = {"fp32": "fp32.onnx", "bf16": "fp32.onnx", "int8": "int8.xml"}
"""The file that each precision reads; bf16 only changes how the fp32 file is computed."""

log = logging.getLogger(__name__)


class CompiledKey(msgspec.Struct, frozen=True):
    """What a compiled model was made from and for."""

    openvino: str
    """Its version."""
    device: str
    capabilities: list[str]
    """Capabilities of the device."""
    model: list[str]
    """SHA-256 of its files."""
    width: int
    height: int
    properties: dict[str, str]


@dataclass
class OpenVinoSlot(Slot):
    """A slot whose planes are the tensors of its own inference request."""

    request: openvino.InferRequest = field(kw_only=True)
    coefficients: NDArray[np.float32] = field(kw_only=True)
    kept: NDArray[np.float32] = field(kw_only=True)
    """(1, 1): `keep`, where the request reads it."""
    shapes: Mapping[str, Shape] = field(kw_only=True)
    """Of what is kept of a picture, see `Memory.swap_past`."""
    alone: Memory = field(kw_only=True)
    """The memory of pictures that have no other."""
    numbers: tuple[Numbers, Numbers] | None = field(default=None, repr=False)
    """What the request reads from the memory, and what it writes; referenced here, since a request does not keep its
    tensors alive."""
    past: tuple[Past, Past] = field(default=({}, {}), repr=False)
    """As `numbers`, for the last picture."""
    lent: Memory | None = None
    """The memory of the picture under way, if the feed's next picture must not begin before this one has ended."""
    follows: OpenVinoSlot | None = field(default=None, repr=False)
    """The previous picture of the same feed, which must end before this one begins."""
    followed_by: OpenVinoSlot | None = field(default=None, repr=False)
    failure: EngineError | None = field(default=None, repr=False)
    """Why it was not started."""


class OpenVinoEngine(Engine):
    """Compiles a size when its first slot is asked for. Requests run one after another on all threads, or `parallel` at
    once, each on a share of the threads; those of one feed always run in order.

    So a picture may have to wait for the previous one of its feed. Whoever waits for that one (`wait`) starts it.
    """

    def __init__(self, weights: Weights, precision: str, core: openvino.Core, options: EngineOptions) -> None:
        threads = options.threads or available_cores()
        parallel = side_by_side(options.parallel, threads)
        super().__init__(
            EngineInfo(
                runtime="openvino",
                device=core.get_property(DEVICE, "FULL_DEVICE_NAME"),
                precision=precision,
                weights=weights.card.name,
                weights_id=weights.id,
                batch=1,
                depth=parallel + 2,
            ),
            options.slots,
        )
        self._weights = weights
        self._core = core
        self._options = options
        self._cache = PrivateCache((options.cache or user_cache_path("nightbridge")) / "openvino", LARGEST_CACHE)
        self._model: openvino.Model | None = None
        self._compiled: dict[tuple[int, int], openvino.CompiledModel] = {}
        self._threads, self._parallel = threads, parallel
        self._order = threading.Lock()
        self._latest: WeakKeyDictionary[Memory, OpenVinoSlot] = WeakKeyDictionary()
        """The slot of the last picture under way, for each feed that has any."""
        self._computing: dict[int, OpenVinoSlot] = {}
        """By id, the slots whose requests were started and not waited for yet."""

    def _open(self) -> None:
        self._model = read_model(self._core, self._weights, self.info.precision)
        if not {*PAST} <= {name for port in self._model.inputs for name in port.names}:
            raise EngineMismatch(
                f"{self._weights.folder} was exported by an earlier version, without the temporal filter: "
                f"run `nightbridge export {self._weights.folder}`"
            )
        self._memory_size = self._model.input("memory").get_partial_shape()[1].get_length()

    def _close(self) -> None:
        """Cancel running requests, and wait for them before the memory that they write to is freed."""
        with self._order:
            computing = list(self._computing.values())
            self._computing.clear()
            self._latest.clear()
        for slot in computing:
            slot.followed_by = None
            slot.request.cancel()
        for slot in computing:
            with suppress(RuntimeError):
                slot.request.wait()
        self._compiled.clear()
        self._model = None

    def _make(self, width: int, height: int) -> OpenVinoSlot:
        compiled = self._compile(width, height)
        request = compiled.create_infer_request()
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
            shapes={name: tuple(compiled.input(name).shape)[1:] for name in PAST},
            alone=self.new_memory(),
        )

    def _forget(self, width: int, height: int) -> None:
        self._compiled.pop((width, height), None)

    def _compile(self, width: int, height: int) -> openvino.CompiledModel:
        size = (width, height)
        if size not in self._compiled:
            assert self._model is not None
            model = self._model.clone()
            chroma = ((height + 1) // 2, (width + 1) // 2)
            shapes = {
                "y": [1, 1, height, width],
                "uv": [1, 2, *chroma],
                "colour": [1, 2, 3, 4],
                "memory": [1, self._memory_size],
                "keep": [1, 1],
            }
            model.reshape(shapes)
            for name in PAST:
                _, places, codes = model.output(f"{name}_out").get_partial_shape()
                shapes[name] = [1, places.get_length(), codes.get_length()]
            model.reshape(shapes)
            try:
                self._compiled[size] = self._compile_by_cache(model, width, height)
            except RuntimeError as error:
                raise EngineError(
                    f"OpenVINO cannot compile {self.info.weights} for {width}x{height}: {error}"
                ) from error
        return self._compiled[size]

    def _compile_by_cache(self, model: openvino.Model, width: int, height: int) -> openvino.CompiledModel:
        """A compiled model from the cache, or a new one, which is then stored; works without the cache if that fails.

        OpenVINO's own cache is not used: it accepts a file with a hole in it, and then every picture is wrong.
        """
        made: openvino.CompiledModel | None = None

        def make() -> bytes:
            nonlocal made
            made = self._core.compile_model(model, DEVICE, self._properties())
            return bytes(made.export_model().getvalue())

        try:
            kept = self._cache.get(BLOB, self._key(width, height), make)
            return made if made is not None else self._core.import_model(kept.data, DEVICE, self._properties())
        except (EngineError, RuntimeError) as error:
            log.warning(
                "compiled-model cache %s skipped for %dx%d: %s",
                self._cache.folder,
                width,
                height,
                " ".join(str(error).split()),
            )
            return made if made is not None else self._core.compile_model(model, DEVICE, self._properties())

    def _key(self, width: int, height: int) -> CompiledKey:
        return CompiledKey(
            openvino=openvino.get_version(),
            device=self.info.device,
            capabilities=sorted(self._core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")),
            model=[self._weights.card.files[name] for name in model_files(self._weights, self.info.precision)],
            width=width,
            height=height,
            properties={name: str(value) for name, value in self._properties().items()},
        )

    def _properties(self) -> dict[str, object]:
        """If the processor has bf16, it is also used for what int8 leaves in floating point."""
        floating = "bf16" if self.info.precision != "fp32" and has_bf16(self._core) else "f32"
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": self._parallel,
            "INFERENCE_PRECISION_HINT": floating,
            "INFERENCE_NUM_THREADS": self._threads,
            "ENABLE_CPU_PINNING": False,
        }

    def _start(self, slots: Sequence[Slot]) -> None:
        """Never blocks: if the feed has a picture under way, this one begins when that ends, see `_finish`."""
        for slot in slots:
            assert isinstance(slot, OpenVinoSlot)
            slot.coefficients[:] = slot.colour.coefficients()
            slot.kept[:] = slot.keep if slot.memory else 0
            memory = slot.memory or slot.alone
            slot.numbers, slot.past = memory.swap(), memory.swap_past(slot.shapes)
            for name, array in {"memory": slot.numbers[0], **slot.past[0]}.items():
                slot.request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
            for name, array in {"memory": slot.numbers[1], **slot.past[1]}.items():
                slot.request.set_tensor(f"{name}_out", openvino.Tensor(array, shared_memory=True))
            slot.lent = slot.memory if self._parallel > 1 else None  # run one at a time, they are in order anyway
            slot.failure = None
            with self._order:
                slot.follows = self._latest.get(slot.lent) if slot.lent else None
                if slot.lent:
                    self._latest[slot.lent] = slot
                if slot.follows:
                    slot.follows.followed_by = slot
                else:
                    self._begin(slot)

    def _begin(self, slot: OpenVinoSlot) -> None:
        """Start a request; if that fails, the error is left in the slot, and the feed's memory stays as it was."""
        if not self._opened:
            slot.failure = EngineError(CLOSED)
            return
        try:
            slot.request.start_async()
        except RuntimeError as error:
            assert slot.numbers is not None
            before, after = slot.numbers
            after[:] = before
            for name, plane in slot.past[0].items():
                slot.past[1][name][:] = plane
            reason = " ".join(str(error).split())
            slot.failure = EngineError(f"OpenVINO cannot start a picture of {slot.width}x{slot.height}: {reason}")
        else:
            self._computing[id(slot)] = slot

    def _finish(self, slot: Slot) -> None:
        assert isinstance(slot, OpenVinoSlot)
        swapped = slot.numbers
        if (before := slot.follows) is not None:
            with suppress(EngineError):  # it is raised to whoever waits for that picture
                self._finish(before)
        try:
            if slot.failure is None:
                slot.request.wait()
        except RuntimeError as error:
            if not self._opened:
                raise EngineError(CLOSED) from error
            reason = " ".join(str(error).split())
            raise EngineError(f"OpenVINO failed on a picture of {slot.width}x{slot.height}: {reason}") from error
        finally:
            self._pass_on(slot, swapped)
        if slot.failure is not None:
            raise slot.failure

    def _pass_on(self, slot: OpenVinoSlot, swapped: tuple[Numbers, Numbers] | None) -> None:
        """Begin the feed's next picture, once `slot` has written its memory or failed to.

        Does nothing if the slot has another picture by now, whose numbers are others: a waiter may wake that late.
        """
        with self._order:
            if slot.numbers is not swapped:
                return
            self._computing.pop(id(slot), None)
            slot.past = ({}, {})  # a free slot would hold the last picture of a feed that has ended
            following, slot.followed_by = slot.followed_by, None
            if following is not None:
                following.follows = None
                self._begin(following)
            elif slot.lent is not None and self._latest.get(slot.lent) is slot:
                del self._latest[slot.lent]
            slot.lent = None


def open_engine(weights: Weights, options: EngineOptions) -> OpenVinoEngine:
    """See `engines.runtime.RuntimeModule`."""
    core = openvino.Core()
    return OpenVinoEngine(weights, choose_precision(weights, core, options.precision), core, options)


def side_by_side(asked: int, threads: int) -> int:
    """How many pictures to compute at once: at most `asked`, and a divisor of `threads`, since OpenVINO gives each
    picture equally many."""
    return max(count for count in range(1, threads + 1) if count <= max(1, asked) and threads % count == 0)


def choose_precision(weights: Weights, core: openvino.Core, asked: str) -> str:
    """The precision asked for, or with `auto` the fastest that loses at most `ACCEPTABLE_LOSS_DB`."""
    if asked == "bf16" and not has_bf16(core):
        raise UnknownName("precision bf16: this processor has no bfloat16; it must be one of auto, fp32, int8")
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
    """The model of a precision. OpenVINO is given bytes, since it would go on reading files as long as the model lives:
    whatever overwrote them would reach pictures and cache."""
    return core.read_model(*(verified_bytes(weights, name) for name in model_files(weights, precision)))


def verified_bytes(weights: Weights, name: str) -> bytes:
    """The bytes of a file, verified against the card; raises `UnknownName` or `EngineMismatch`."""
    data = weights.file(name).read_bytes()
    if hashlib.sha256(data).hexdigest() != weights.card.files[name]:
        raise EngineMismatch(f"{weights.folder / name} was changed while it was read")
    return data


def model_files(weights: Weights, precision: str) -> list[str]:
    """The files that hold the model of a precision; large weights may come as fp16.onnx alone."""
    if precision == "int8":
        return ["int8.xml", "int8.bin"]
    return [FILES[precision] if weights.has("fp32.onnx") else "fp16.onnx"]
