"""The dimensions that build a network; stored with every set of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["subpixels", "detail", "fusing"]
"""A box of the paper's figure 3 beyond the plain U-net."""

PARTS: tuple[Part, ...] = ("subpixels", "detail", "fusing")


@dataclass(frozen=True)
class NetworkConfig:
    """What `Neid` is built from."""

    name: str
    """`neid`, `neid-live` or `neid-lite`."""
    widths: tuple[int, ...]
    """Channels of each encoder level, from full size to the bottleneck."""
    unshuffle: int
    """Side of the squares of pixels that are folded into channels before the first level; 1 folds nothing."""
    reduction: int = 16
    """Feature fusing: the channel vector is squeezed by this factor."""
    parts: tuple[Part, ...] = PARTS
    """Without `subpixels` the U-net's picture is doubled by bicubic interpolation, without `fusing` the light decoder
    reads the encoder's features alone, and without `detail` there is no second branch."""

    @property
    def memory_size(self) -> int:
        """How many numbers are kept of a feed between two pictures, see `engines.network.memory`."""
        return self.widths[-1]

    @property
    def multiple(self) -> int:
        """Pictures are padded to a multiple of this many pixels, so that every pooling can halve them."""
        return self.unshuffle << (len(self.widths) - 1)


NEID = NetworkConfig(name="neid", widths=(32, 64, 128, 256, 512), unshuffle=1)
NEID_LIVE = NetworkConfig(name="neid-live", widths=(32, 64, 128, 256), unshuffle=2)
NEID_LITE = NetworkConfig(name="neid-lite", widths=(16, 48, 96, 192), unshuffle=2)

CONFIGS = {config.name: config for config in (NEID, NEID_LIVE, NEID_LITE)}
