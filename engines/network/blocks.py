"""The one building block that encoder and decoders share (paper section 2.1)."""

from __future__ import annotations

from torch import nn

SLOPE = 0.2


def double_conv(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two 3x3 convolutions with LeakyReLU, size kept: (N, in, H, W) to (N, out, H, W)."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(channels_out, channels_out, 3, padding=1),
        nn.LeakyReLU(SLOPE),
    )
