"""TensorRT's plans, built on first use and kept in the user's cache folder.

A plan is executable code. It is built here, from an ONNX file whose digest its card vouches for, or read from a file
that `engines.private_cache` accepts; none ever comes from elsewhere.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
from platformdirs import user_cache_path

from engines.cards import SHIPPED, Weights, find_weights
from engines.door import EngineInfo
from engines.errors import EngineError, EngineMismatch
from engines.network.config import CONFIGS
from engines.nvidia.gpu import NO_GPU, Gpu
from engines.nvidia.tensorrt_builder import build_plan
from engines.nvidia.tensorrt_library import Library
from engines.private_cache import Entry, PrivateCache

FILES = {"fp16": "fp16.onnx"}
"""The file that each precision is built from; TensorRT computes in the file's own precision. fp32.onnx has uint8 inside
the graph, which TensorRT does not support."""
PLAN, RUNTIME, TIMING, TRIAL = "plan", "runtime", "timing", "trial"
"""Kinds of cache files."""
REFUSED_SECONDS = 24 * 3600
"""How long a refusal holds: the GPU may have been at fault, or the machine too busy."""

log = logging.getLogger(__name__)


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What builds and runs a plan; a plan of another machine is not used."""

    library: str
    """`tensorrt` or `tensorrt_rtx`."""
    version: str
    gpu: str
    """Name, or "none"."""
    driver: str
    """Version, or "none"."""


class PlanKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that tells one plan from another."""

    machine: Machine
    weights: str
    """A shipped name, or the path of a folder."""
    onnx: str
    """SHA-256 of the file, in hex."""
    precision: str
    """`fp16`."""
    width: int
    height: int
    batch: int
    """The largest batch; the plan takes all from 1 on."""
    capability: str = ""
    """What it was built for, see `engines.nvidia.tensorrt_builder.capabilities`."""


class TrialKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that tells one trial from another, see `engines.nvidia.trial`."""

    machine: Machine
    onnx: str
    """SHA-256 of the file, in hex."""
    capability: str


@dataclass(frozen=True)
class Plan:
    """A plan that may be given to TensorRT."""

    key: PlanKey
    data: bytes
    path: Path | None
    """None if it could not be stored."""
    built: bool
    """Whether it was built just now."""


@dataclass(frozen=True)
class PlanFile:
    """A file of the cache, as `Plans.files` found it."""

    path: Path
    key: PlanKey | None
    """None if the file does not say."""
    bytes: int
    made: float
    """Seconds since 1970."""
    useless: str
    """Why it is not used here; empty if it is."""


def check_fits(width: int, height: int, batch: int, precision: str = "fp16") -> None:
    """Raise `EngineMismatch` for values that no engine takes."""
    low, high, largest = EngineInfo.smallest, EngineInfo.largest, EngineInfo.largest_batch
    if not (low[0] <= width <= high[0] and low[1] <= height <= high[1]):
        raise EngineMismatch(f"size {width}x{height}: it must be {low[0]}x{low[1]} to {high[0]}x{high[1]}")
    if not 1 <= batch <= largest:
        raise EngineMismatch(f"batch {batch}: it must be 1 to {largest}")
    if precision not in FILES:
        raise EngineMismatch(f"precision {precision!r}: TensorRT takes one of {', '.join(FILES)}")


class Plans:
    """The plans of one user for one machine. Any number of processes and threads may use it at once."""

    def __init__(self, library: Library | None, gpu: Gpu = NO_GPU, cache: Path | None = None) -> None:
        """`cache` is `EngineOptions.cache`; `library` may be None if plans are only listed."""
        self._library = library
        self._machine = Machine(library.name, library.version, gpu.name, gpu.driver) if library else None
        self._cache = PrivateCache((cache or user_cache_path("nightbridge")) / "tensorrt")

    @property
    def folder(self) -> Path:
        """Where plans are kept."""
        return self._cache.folder

    def key(
        self, weights: Weights, width: int, height: int, batch: int, precision: str = "fp16", capability: str = ""
    ) -> PlanKey:
        """The key of a plan.

        Raises `EngineMismatch` for values that no engine takes, and `EngineMissing` if the weights have no such file.
        """
        check_fits(width, height, batch, precision)
        assert self._machine is not None
        weights.file(FILES[precision])
        return PlanKey(
            machine=self._machine,
            weights=_called(weights),
            onnx=weights.card.files[FILES[precision]],
            precision=precision,
            width=width,
            height=height,
            batch=batch,
            capability=capability,
        )

    def get(
        self, weights: Weights, width: int, height: int, batch: int, precision: str = "fp16", capability: str = ""
    ) -> Plan:
        """A plan for pictures of this size in batches of 1 to `batch`, from the cache or built.

        Raises `EngineMismatch` for values that no engine takes, `EngineMissing` if a file or a GPU is missing, and
        `EngineError` if the library cannot build it or the cache folder is another user's.
        """
        key = self.key(weights, width, height, batch, precision, capability)
        kept = self._cache.get(PLAN, key, lambda: self._build(key, weights))
        return Plan(key, kept.data, kept.path, kept.made)

    def load_cache(self, key: PlanKey) -> bytes | None:
        """What TensorRT-RTX compiled for a plan when it ran (its runtime cache), or None."""
        return self._cache.load(RUNTIME, key)

    def store_cache(self, key: PlanKey, data: bytes) -> None:
        """Store the runtime cache of a plan."""
        self._cache.store(RUNTIME, key, data)

    def trial_result(self, key: PlanKey) -> str | None:
        """Why this machine refused a plan for the same capability when tried; empty if it ran one, None if a trial is
        due."""
        kept = self._cache.load(TRIAL, trial_of(key))
        if kept is None:
            return None
        made, _, refusal = kept.decode().partition("\n")
        holds = not refusal or 0 <= time.time() - int(made) < REFUSED_SECONDS
        return refusal if holds else None

    def store_trial_result(self, key: PlanKey, refusal: str) -> None:
        """Store the result of a trial for the capability of this plan."""
        self._cache.store(TRIAL, trial_of(key), f"{int(time.time())}\n{refusal}".encode())

    def files(self) -> list[PlanFile]:
        """All plans in the cache, newest first."""
        return [self._file(entry) for entry in self._cache.entries(PLAN)]

    def _build(self, key: PlanKey, weights: Weights) -> bytes:
        """Build a plan from an ONNX file, after checking the file against the key."""
        assert self._library is not None
        path, config = weights.folder / FILES[key.precision], CONFIGS[weights.card.network]
        onnx = path.read_bytes()
        if hashlib.sha256(onnx).hexdigest() != key.onnx:
            raise EngineMismatch(f"{path} was changed while it was read")
        log.info("building a plan of %s for %dx%d", key.weights, key.width, key.height)
        known = self._cache.load(TIMING, key.machine) or b""
        built = build_plan(self._library, onnx, key.width, key.height, key.batch, config, known, key.capability)
        if built.timing:
            self._cache.store(TIMING, key.machine, built.timing)
        return built.plan

    def _file(self, entry: Entry) -> PlanFile:
        try:
            key = msgspec.convert(entry.key, PlanKey) if entry.key else None
        except msgspec.ValidationError:
            key = None
        useless = f"it {entry.unfit}" if entry.unfit else self._why_useless(entry, key)
        return PlanFile(entry.path, key, entry.bytes, entry.made, useless)

    def _why_useless(self, entry: Entry, key: PlanKey | None) -> str:
        """Empty for a plan that the engine takes."""
        if key is None or self._cache.path(PLAN, key) != entry.path:
            return "it holds something other than its name says"
        if key.machine.gpu == NO_GPU.name:
            return "built without a GPU, to test building only"
        if self._machine is None:
            return "TensorRT is not installed"
        if key.machine != self._machine:
            return "built for another GPU, driver or library"
        try:
            present = find_weights(key.weights).card.files.get(FILES[key.precision])
        except EngineError:
            return "its weights are missing"
        return "" if present == key.onnx else "its weights have changed"


def trial_of(key: PlanKey) -> TrialKey:
    """The trial that counts for a plan, whatever its size and batch."""
    return TrialKey(key.machine, key.onnx, key.capability)


def _called(weights: Weights) -> str:
    """The name by which `find_weights` finds these weights."""
    return weights.folder.name if weights.folder.parent == SHIPPED else str(weights.folder.resolve())
