"""torch on the CPU or on CUDA: the reference that the other runtimes are compared with."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from engines.cards import NUMBERS, Weights
from engines.door import SCALE, Engine, EngineInfo, Slot
from engines.errors import EngineMismatch, EngineMissing
from engines.runtime import EngineOptions

try:
    import torch

    from engines.checkpoint import load_network
    from engines.export import HalfNetwork
    from engines.picture import PictureGraph
except ImportError as error:
    raise EngineMissing(f"runtime torch needs the extra `train`: pip install 'nightbridge[train]' ({error})") from error


class TorchEngine(Engine):
    """Computes a batch within `submit`; `wait` returns at once."""

    def __init__(self, weights: Weights, device: torch.device, precision: str, options: EngineOptions) -> None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        super().__init__(
            EngineInfo(
                runtime="torch",
                device=name,
                precision=precision,
                weights=weights.card.name,
                weights_id=weights.id,
            ),
            options.slots,
        )
        self._weights = weights
        self._device = device
        self._computing = threading.Lock()
        self._graph: PictureGraph | None = None

    def _open(self) -> None:
        network = load_network(self._weights.file(NUMBERS))
        graph = PictureGraph(HalfNetwork(network) if self.info.precision == "fp16" else network)
        self._graph = graph.eval().to(self._device)

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
        inputs = (
            np.stack([slot.y[None] for slot in slots]),
            np.stack([slot.uv for slot in slots]),
            np.stack([slot.colour.coefficients() for slot in slots]),
        )
        with self._computing, torch.inference_mode():
            y, uv = self._graph(*(torch.from_numpy(array).to(self._device) for array in inputs))
        for index, slot in enumerate(slots):
            slot.y_out[:] = y[index, 0].cpu().numpy()
            slot.uv_out[:] = uv[index].cpu().numpy()

    def _finish(self, slot: Slot) -> None:
        """Nothing is under way after `submit`."""


def open_engine(weights: Weights, options: EngineOptions) -> TorchEngine:
    """See `engines.runtime.RuntimeModule`. fp16 on CUDA, fp32 on the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    allowed = ("fp32", "fp16") if device.type == "cuda" else ("fp32",)
    precision = allowed[-1] if options.precision == "auto" else options.precision
    if precision not in allowed:
        raise EngineMismatch(f"precision {precision!r}: torch on {device.type} takes one of auto, {', '.join(allowed)}")
    return TorchEngine(weights, device, precision, options)
