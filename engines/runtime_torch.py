"""torch: on the CPU, the reference for the other runtimes; on a GPU, `engines.nvidia.torch_cuda`."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from engines.cards import NUMBERS, Weights
from engines.door import SCALE, EngineInfo, Slot
from engines.errors import EngineMismatch, EngineMissing
from engines.padding import past_shapes
from engines.ring import Engine
from engines.runtime import EngineOptions

try:
    import torch

    from engines.checkpoint import load_network
    from engines.nvidia.torch_cuda import TorchCudaEngine
    from engines.picture import PictureGraph
except ImportError as error:
    raise EngineMissing(f"runtime torch needs the extra `train`: pip install 'nightbridge[train]' ({error})") from error


class TorchEngine(Engine):
    """torch on the CPU. Computes a batch within `submit`; `wait` returns at once."""

    def __init__(self, weights: Weights, options: EngineOptions) -> None:
        super().__init__(
            EngineInfo(
                runtime="torch",
                device="cpu",
                precision="fp32",
                weights=weights.card.name,
                weights_id=weights.id,
            ),
            options.slots,
        )
        self._weights = weights
        self._computing = threading.Lock()
        self._graph: PictureGraph | None = None

    def _open(self) -> None:
        network = load_network(self._weights.file(NUMBERS))
        self._graph = PictureGraph(network).eval()
        self._memory_size = network.config.memory_size

    def _close(self) -> None:
        self._graph = None

    def _make(self, width: int, height: int) -> Slot:
        return Slot(
            width=width,
            height=height,
            y=np.zeros((height, width), np.uint8),
            uv=np.zeros((2, (height + 1) // 2, (width + 1) // 2), np.uint8),
            y_out=np.zeros((SCALE * height, SCALE * width), np.uint8),
            uv_out=np.zeros((2, height, width), np.uint8),
            engine=self,
        )

    def _start(self, slots: Sequence[Slot]) -> None:
        assert self._graph is not None
        with self._computing, torch.inference_mode():
            shapes = past_shapes(self._graph.network.config, slots[0].width, slots[0].height)
            memories = [slot.memory or self.new_memory() for slot in slots]
            numbers = [memory.swap() for memory in memories]
            pasts = [memory.swap_past(shapes) for memory in memories]
            inputs = (
                np.stack([slot.y[None] for slot in slots]),
                np.stack([slot.uv for slot in slots]),
                np.stack([slot.colour.coefficients() for slot in slots]),
                np.concatenate([before for before, _ in numbers]),
                np.array([[slot.keep if slot.memory else 0] for slot in slots], np.float32),
                *(np.concatenate([before[name] for before, _ in pasts]) for name in shapes),
            )
            y, uv, remembered, *kept = self._graph(*map(torch.from_numpy, inputs))
            for index, (slot, (_, after), (_, past)) in enumerate(zip(slots, numbers, pasts, strict=True)):
                slot.y_out[:] = y[index, 0].numpy()
                slot.uv_out[:] = uv[index].numpy()
                after[:] = remembered[index].numpy()
                for plane, left in zip(past.values(), kept, strict=True):
                    plane[:] = left[index].numpy()

    def _finish(self, slot: Slot) -> None:
        """Nothing is under way after `submit`."""


def open_engine(weights: Weights, options: EngineOptions) -> TorchEngine | TorchCudaEngine:
    """See `engines.runtime.RuntimeModule`. fp16 on CUDA, fp32 on the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.cuda_only and device.type != "cuda":
        raise EngineMissing("torch finds no CUDA device")
    allowed = ("fp32", "fp16") if device.type == "cuda" else ("fp32",)
    precision = allowed[-1] if options.precision == "auto" else options.precision
    if precision not in allowed:
        raise EngineMismatch(f"precision {precision!r}: torch on {device.type} takes one of auto, {', '.join(allowed)}")
    if device.type == "cuda":
        return TorchCudaEngine(weights, device, precision, options)
    return TorchEngine(weights, options)
