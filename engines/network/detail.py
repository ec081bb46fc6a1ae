"""Detail refinement: features that carry the fine structure of the dark picture (paper section 2.2)."""

from __future__ import annotations

from torch import Tensor, nn

from engines.network.blocks import double_conv
from engines.network.decoder import Decoder


class DetailBranch(nn.Module):
    """A stage of its own after the shared encoder; the part of the branch that is kept at inference."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stage = double_conv(channels, channels)

    def forward(self, bottleneck: Tensor) -> Tensor:
        """(N, C, h, w) encoder features to (N, C, h, w) detail features."""
        return self.stage(bottleneck)  # type: ignore[no-any-return]


class DetailReconstruction(Decoder):
    """Detail features to the doubled *dark* picture; supervises the branch, in training only."""
