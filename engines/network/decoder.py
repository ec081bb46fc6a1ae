"""The expanding path of the U-net with sub-pixel convolution at its end (paper section 2.2, figure 4)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from engines.network.blocks import double_conv


class Decoder(nn.Module):
    """From bottleneck features and the encoder's skips to the sub-pixels of the doubled picture."""

    def __init__(self, widths: tuple[int, ...], channels_out: int) -> None:
        super().__init__()
        fine_to_coarse = list(pairwise(widths))
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in reversed(fine_to_coarse)
        )
        self.levels = nn.ModuleList(double_conv(2 * fine, fine) for fine, _ in reversed(fine_to_coarse))
        self.subpixels = nn.Conv2d(widths[0], channels_out, 3, padding=1)

    def forward(self, bottleneck: Tensor, skips: list[Tensor]) -> Tensor:
        """`bottleneck` (N, widths[-1], h, w), `skips` finest first; returns (N, channels_out, H, W)."""
        features = bottleneck
        for up, level, skip in zip(self.ups, self.levels, reversed(skips), strict=True):
            features = level(torch.cat((up(features), skip), dim=1))
        return self.subpixels(features)  # type: ignore[no-any-return]
