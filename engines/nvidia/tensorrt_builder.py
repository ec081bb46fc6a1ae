"""Builds a plan from an ONNX file, for pictures of one size in any batch up to the largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engines.door import Shape
from engines.errors import EngineError, EngineMissing
from engines.network.config import NetworkConfig
from engines.nvidia.cuda_lanes import USUAL_BATCH
from engines.nvidia.gpu import has_driver
from engines.nvidia.tensorrt_library import INSTALL, Library, collected_errors, message_log
from engines.padding import past_shapes


@dataclass(frozen=True)
class Built:
    """The result of a build."""

    plan: bytes
    """Serialised machine code: keep it where nobody else can write."""
    timing: bytes
    """What was learned about kernels, for the next build; empty for TensorRT-RTX, which times none."""


def capabilities(library: Library) -> tuple[str, ...]:
    """Compute capabilities to build for, in turn, until the GPU accepts a plan; "" is the library's default.

    TensorRT-RTX builds for the GPUs that it lists. On any other, the GPU's own capability and the oldest are tried.
    """
    return ("",) if library.times_kernels else ("", "CURRENT", "SM80")


def build_plan(
    library: Library,
    onnx: bytes,
    width: int,
    height: int,
    batch: int,
    config: NetworkConfig,
    timing: bytes = b"",
    capability: str = "",
) -> Built:
    """A plan of the exported graph `onnx` for pictures of `width` x `height`, in batches of 1 to `batch`.

    `config` is that of the network in it.
    The file determines the precision of every operation. TensorRT needs the GPU that it builds for, TensorRT-RTX needs
    none. `timing` is `Built.timing` of an earlier build on the same GPU, `capability` one of `capabilities`. Raises
    `EngineMissing`, and `EngineError` with the library's own words.
    """
    if library.times_kernels and not has_driver():
        raise EngineMissing(f"{library} builds only on a GPU, and none was found; {INSTALL}, which builds without")
    with collected_errors(library) as errors:
        try:
            return _build(library, onnx, sides(config, width, height), batch, timing, capability, errors)
        except (RuntimeError, TypeError, ValueError) as error:  # what the library raises for calls that it rejects
            raise EngineError(f"{library} cannot build a plan: {_joined([*errors, str(error)])}") from error


def _build(
    library: Library,
    onnx: bytes,
    sides: Mapping[str, Shape],
    batch: int,
    timing: bytes,
    capability: str,
    errors: Sequence[str],
) -> Built:
    trt, messages = library.module, message_log(library)
    builder = trt.Builder(messages)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages)  # holds the numbers until the plan is built
    if not parser.parse(onnx):
        told = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise EngineError(f"{library} cannot read the ONNX file: {_joined(told or errors)}")
    config = builder.create_builder_config()
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # it would cut fp32, in which colours are computed, to 10 bits
    config.add_optimization_profile(make_profile(builder, network, sides, batch))
    if capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    if library.times_kernels:
        config.set_timing_cache(config.create_timing_cache(timing), False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{library} cannot build a plan: {_joined(errors)}")
    times = config.get_timing_cache() if library.times_kernels else None
    return Built(bytes(plan), bytes(times.serialize()) if times else b"")


def make_profile(builder: Any, network: Any, sides: Mapping[str, Shape], batch: int) -> Any:
    """The shapes of all inputs for the smallest batch, the usual one, for which the plan is optimised, and the largest.

    Sets the last two sides of the network's inputs too, those in `sides`, so that the plan knows the shapes of all its
    inputs and outputs.
    """
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)[1:]
        fixed = (*shape[:-2], *sides[tensor.name]) if tensor.name in sides else shape
        tensor.shape = (-1, *fixed)
        profile.set_shape(tensor.name, *((count, *fixed) for count in (1, min(USUAL_BATCH, batch), batch)))
    return profile


def sides(config: NetworkConfig, width: int, height: int) -> dict[str, Shape]:
    """The last two sides of the inputs whose sides the file leaves open."""
    planes: dict[str, Shape] = {"y": (height, width), "uv": ((height + 1) // 2, (width + 1) // 2)}
    return planes | past_shapes(config, width, height)


def _joined(messages: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(messages)) or "no reason given"
