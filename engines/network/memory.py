"""What a network keeps of a feed from picture to picture: feature fusing's channel weights, smoothed over time.

They come from the mean over a whole picture, so noise that shifts them a little shifts the brightness of every pixel.
"""

from __future__ import annotations

from torch import Tensor

SAME, OTHER = 0.02, 0.04
"""Mean distance between channel weights: up to the first, two pictures show one scene; from the second on, two.

Measured with the weights `field`: noise of 2/255 shifts them by 0.001 to 0.007, nine of ten changes of scene by more
than 0.03.
"""


def remember(weights: Tensor, memory: Tensor, keep: Tensor) -> Tensor:
    """The weights to use for a picture, and to remember for the next one: float32 (N, C).

    `weights` are the picture's own and `memory` those of the previous picture, (N, C) in [0, 1]; `keep` (N, 1) is the
    share of the memory to keep, in [0, 1]. The further apart the two are, the less is kept: nothing across a cut, or of
    an empty memory (zeros). Computed in float32, since float16 would lose the small steps.
    """
    own = weights.float()
    distance = (own - memory).abs().mean(1, keepdim=True)
    kept = keep * ((OTHER - distance) / (OTHER - SAME)).clamp(0, 1)
    return own + kept * (memory - own)
