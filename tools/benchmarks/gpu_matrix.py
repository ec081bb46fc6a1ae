"""How much of the GPU's arithmetic the network uses: its operations, and the rate of a plain matrix product."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from engines.cards import NUMBERS, Weights
from engines.checkpoint import load_network
from engines.door import Size
from engines.padding import past_shapes
from engines.picture import PictureGraph

SIDES = (4096, 8192, 16384)
"""Of the square matrices; the fastest product counts."""
ROUNDS = 7


def flop(weights: Weights, size: Size) -> int:
    """Floating-point operations of one picture: twice the multiply-accumulates of its convolutions and products.

    Counted without computing anything, with padding, but without sums, activations and pooling.
    """
    width, height = size
    graph = PictureGraph(network := load_network(weights.file(NUMBERS))).eval().to("meta")
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        graph(
            torch.zeros(1, 1, height, width, dtype=torch.uint8),
            torch.zeros(1, 2, (height + 1) // 2, (width + 1) // 2, dtype=torch.uint8),
            torch.zeros(1, 2, 3, 4),
            torch.zeros(1, network.config.memory_size),
            torch.zeros(1, 1),
            *(torch.zeros(1, *shape) for shape in past_shapes(network.config, width, height).values()),
        )
    return int(counter.get_total_flops())


def matrix_peak(
    device: str = "cuda", kind: torch.dtype = torch.float16, sides: Sequence[int] = SIDES
) -> tuple[float, int]:
    """Operations per second of the fastest product of two square matrices (median of its rounds), and its side."""
    return max((product_rate(device, kind, side), side) for side in sides)


def product_rate(device: str, kind: torch.dtype, side: int) -> float:
    """Operations per second of one product of square matrices."""
    one, other = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    product = torch.empty_like(one)
    seconds = []
    for _ in range(ROUNDS + 1):  # the first one chooses kernels
        synchronise(device)
        began = time.perf_counter()
        torch.mm(one, other, out=product)
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return float(2 * side**3 / median(seconds[1:]))


def synchronise(device: str) -> None:
    """Wait until the device has finished its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
