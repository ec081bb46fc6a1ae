"""The shared encoder: the contracting path of the U-net (paper section 2.1, figure 3)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from engines.network.blocks import double_conv


class Encoder(nn.Module):
    """Features of one picture at every level, shared by the light and the detail branch."""

    def __init__(self, channels_in: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(double_conv(a, b) for a, b in pairwise((channels_in, *widths)))
        self.pool = nn.MaxPool2d(2)

    def forward(self, picture: Tensor) -> list[Tensor]:
        """(N, C, H, W) to one tensor a level, (N, widths[i], H / 2^i, W / 2^i), finest first."""
        features = [self.levels[0](picture)]
        for level in list(self.levels)[1:]:
            features.append(level(self.pool(features[-1])))
        return features
