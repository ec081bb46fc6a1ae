"""NEID: light enhancement fused with detail refinement (paper figure 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.network.config import NetworkConfig
from engines.network.decoder import Decoder
from engines.network.detail import DetailBranch, DetailReconstruction
from engines.network.encoder import Encoder
from engines.network.fusion import FeatureFusing
from engines.network.memory import remember

SCALE = 2


class Neid(nn.Module):
    """The network: a dark picture to a bright one of twice the size."""

    def __init__(self, config: NetworkConfig, *, with_reconstruction: bool = False) -> None:
        """`with_reconstruction` adds the detail branch's decoder, which only training needs."""
        super().__init__()
        self.config = config
        parts, bottom = config.parts, config.widths[-1]
        doubled = 3 * (config.unshuffle * SCALE) ** 2
        self.encoder = Encoder(3 * config.unshuffle**2, config.widths)
        self.detail = DetailBranch(bottom) if "detail" in parts else None
        self.fusing = FeatureFusing(bottom, config.reduction) if "fusing" in parts else None
        self.light = Decoder(config.widths, doubled if "subpixels" in parts else 3 * config.unshuffle**2)
        reconstructs = with_reconstruction and self.detail is not None
        self.reconstruction = DetailReconstruction(config.widths, doubled) if reconstructs else None

    def subpixels(self, folded: Tensor, memory: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """The network between its foldings: (N, 3u^2, H/u, W/u) to (N, 3(2u)^2, H/u, W/u), u = unshuffle.

        Also takes each feed's memory and returns the next one, see `remember`; without feature fusing it is returned as
        it came.
        """
        features, _, skips, memory_next = self._features(folded, memory, keep)
        return self._lit(features, skips), memory if memory_next is None else memory_next

    def forward(self, picture: Tensor) -> Tensor:
        """RGB (N, 3, H, W) in [0, 1], H and W multiples of `config.multiple`; returns RGB (N, 3, 2H, 2W), unclamped."""
        folded = functional.pixel_unshuffle(picture, self.config.unshuffle)
        features, _, skips, _ = self._features(folded)
        return functional.pixel_shuffle(self._lit(features, skips), SCALE * self.config.unshuffle)

    def forward_both(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Like `forward`, with the detail branch's doubled dark picture as a second result (training only)."""
        if self.reconstruction is None:
            raise ValueError("this network was built without its reconstruction decoder")
        folded = functional.pixel_unshuffle(picture, self.config.unshuffle)
        features, detail, skips, _ = self._features(folded)
        bright = self._lit(features, skips)
        dark = self.reconstruction(detail, skips)
        unfold = SCALE * self.config.unshuffle
        return functional.pixel_shuffle(bright, unfold), functional.pixel_shuffle(dark, unfold)

    def _features(
        self, folded: Tensor, memory: Tensor | None = None, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, list[Tensor], Tensor | None]:
        """The inputs of the light decoder and of the reconstruction, the skips of both, and the fusing weights."""
        *skips, light = self.encoder(folded)
        if self.detail is None:
            return light, None, skips, None
        detail = self.detail(light)
        if self.fusing is None:
            return light, detail, skips, None
        weights = self.fusing.weights(detail)
        if memory is not None and keep is not None:
            weights = remember(weights, memory, keep)
        return self.fusing(light, detail, weights), detail, skips, weights

    def _lit(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """The light decoder's sub-pixels; interpolated if the network has no sub-pixel convolution."""
        lit: Tensor = self.light(features, skips)
        if "subpixels" in self.config.parts:
            return lit
        fold = self.config.unshuffle
        picture = functional.pixel_shuffle(lit, fold)
        doubled = functional.interpolate(picture, scale_factor=SCALE, mode="bicubic", align_corners=False)
        return functional.pixel_unshuffle(doubled, SCALE * fold)


def initialise(network: Neid, generator: torch.Generator) -> None:
    """He initialisation for LeakyReLU, with a last layer of a tenth of the weights and a bias of 0.3.

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


def initialise_as_the_paper(network: Neid, generator: torch.Generator) -> None:
    """Weights from N(0, 0.02) and biases 0 (section 3.2)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


STARTS: dict[str, Callable[[Neid, torch.Generator], None]] = {"he": initialise, "paper": initialise_as_the_paper}
"""Initialisations by the name that recipes use."""
