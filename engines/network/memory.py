"""What a network keeps of a feed from picture to picture: feature fusing's channel weights, smoothed over time.

They come from the mean over a whole picture, so noise that moves them a little moves the brightness of every pixel.
"""

from __future__ import annotations

from torch import Tensor

SAME, OTHER = 0.02, 0.04
"""Mean distance between channel weights up to which two pictures show one scene, and from which on they show two.

Measured with the weights `field`: noise of 2/255 moves them by 0.001 to 0.007, nine of ten changes of scene by more
than 0.03.
"""


def remember(weights: Tensor, memory: Tensor, keep: Tensor) -> Tensor:
    """The weights that are used for a picture, and remembered for the next one: float32 (N, C).

    `weights` are the picture's own and `memory` those of the picture before, (N, C) in [0, 1]; `keep` (N, 1) is the
    share in [0, 1] of what is remembered. The further apart they are the less is kept, and nothing across a cut or of
    an empty memory (zeros). In float32: halves would not feel the small steps.
    """
    own = weights.float()
    distance = (own - memory).abs().mean(1, keepdim=True)
    kept = keep * ((OTHER - distance) / (OTHER - SAME)).clamp(0, 1)
    return own + kept * (memory - own)
