"""NEID: light enhancement fused with detail refinement (paper figure 3); `forward` reads as the figure."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.network.config import NetworkConfig
from engines.network.decoder import Decoder
from engines.network.detail import DetailBranch, DetailReconstruction
from engines.network.encoder import Encoder
from engines.network.fusion import FeatureFusing

SCALE = 2


class Neid(nn.Module):
    """A dark picture to a bright one of twice the size."""

    def __init__(self, config: NetworkConfig, *, with_reconstruction: bool = False) -> None:
        """`with_reconstruction` adds the detail branch's decoder, which only training needs."""
        super().__init__()
        self.config = config
        subpixels = 3 * (config.unshuffle * SCALE) ** 2
        self.encoder = Encoder(3 * config.unshuffle**2, config.widths)
        self.detail = DetailBranch(config.widths[-1])
        self.fusing = FeatureFusing(config.widths[-1], config.reduction)
        self.light = Decoder(config.widths, subpixels)
        self.reconstruction = DetailReconstruction(config.widths, subpixels) if with_reconstruction else None

    def subpixels(self, folded: Tensor) -> Tensor:
        """The network between its foldings: (N, 3u^2, H/u, W/u) to (N, 3(2u)^2, H/u, W/u), u = unshuffle."""
        *skips, bottleneck = self.encoder(folded)
        fused = self.fusing(bottleneck, self.detail(bottleneck))
        return self.light(fused, skips)  # type: ignore[no-any-return]

    def forward(self, picture: Tensor) -> Tensor:
        """RGB (N, 3, H, W) in [0, 1], H and W multiples of `config.multiple`; returns RGB (N, 3, 2H, 2W), unclamped."""
        folded = functional.pixel_unshuffle(picture, self.config.unshuffle)
        return functional.pixel_shuffle(self.subpixels(folded), SCALE * self.config.unshuffle)

    def forward_both(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and the doubled dark picture of the detail branch beside it (training only)."""
        if self.reconstruction is None:
            raise ValueError("this network was built without its reconstruction decoder")
        folded = functional.pixel_unshuffle(picture, self.config.unshuffle)
        *skips, bottleneck = self.encoder(folded)
        detail = self.detail(bottleneck)
        bright = self.light(self.fusing(bottleneck, detail), skips)
        dark = self.reconstruction(detail, skips)
        unfold = SCALE * self.config.unshuffle
        return functional.pixel_shuffle(bright, unfold), functional.pixel_shuffle(dark, unfold)


def initialise(network: Neid, generator: torch.Generator) -> None:
    """He start for LeakyReLU with a faint last layer around 0.3.

    Without normalisation it trains faster than the paper's N(0, 0.02).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, a=0.2, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        for decoder in (network.light, network.reconstruction):
            if decoder is not None:
                decoder.subpixels.weight.mul_(0.1)
        network.light.subpixels.bias.fill_(0.3)  # type: ignore[union-attr]
