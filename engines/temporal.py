"""The temporal filter behind the network: where nothing has changed, a picture keeps most of the last one.

Noise that the network has made bright flickers from picture to picture, though the brightness of the whole is steady
(`engines.network.memory`). So every code value is averaged over time with those before it (a recursive filter), except
where something moves. The mean difference of the neighbourhood finds changes that are large and faint, that of the
pixel those that are small and strong. What has moved is taken from the new picture alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

STILL, MOVED = 2.0, 4.0
"""Mean difference over a neighbourhood, in code values of luma: up to the first it is still, from the second on not."""
NOISE, EDGE = 14.0, 24.0
"""The same for the difference of a single pixel, luma or chroma."""
SIDE = 12
"""Side of the neighbourhood in output pixels, about."""
FASTER = 2.8
"""How many times faster the last picture is forgotten than the memory: with a time constant of 0.14 s, after which the
share that is kept at 25 pictures a second is three quarters."""


def still_share(change: Tensor, keep: Tensor, size: tuple[int, int], fold: int) -> Tensor:
    """The share of the last picture that each place may keep: float32 (N, hw, 1) in [0, 1].

    `change` is luma of the last picture less that of this one, float32 (N, hw, fold^2), `size` is (h, w), and `keep`
    (N, 1) is the share of the memory to keep, see `engines.network.memory`.
    """
    window = SIDE // fold | 1
    places = change.mean(2).reshape(-1, 1, *size)  # (N, 1, h, w)
    moved = functional.avg_pool2d(places, window, 1, window // 2, count_include_pad=False).abs()
    still = ((MOVED - moved) / (MOVED - STILL)).clamp(0, 1)
    return still.flatten(1)[..., None] * (keep**FASTER)[..., None]


def blended(codes: Tensor, change: Tensor, share: Tensor) -> Tensor:
    """Code values (N, hw, C) float32 with that `share` (N, hw, 1) of the last picture; `change` is that less these.

    What is kept is share * clamp((EDGE - |change|) / (EDGE - NOISE), 0, 1), in terms that all depend on the share, so
    that a runtime computes none of them before it and stores it.
    """
    slope = share / (EDGE - NOISE)
    kept = torch.minimum(slope * EDGE - slope * change, slope * EDGE + slope * change)
    return codes + torch.minimum(kept, share).clamp(min=0) * change
