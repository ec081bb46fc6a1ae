"""The graph around the network: planar 8-bit 4:2:0 in, the same at twice the size out (docs/models.md).

Colour conversion, padding, scaling, clamping and rounding live here and nowhere else, so that every
runtime does them identically.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.colour import CENTRE
from engines.network.config import NetworkConfig
from engines.network.neid import SCALE, Neid

INPUTS = ("y", "uv", "colour", "memory", "keep")
OUTPUTS = ("y_out", "uv_out", "memory_out")
"""Names in the exported graph."""

MARGIN = 8
"""Least padding on every side, in pixels: a convolution's zeros would darken the border of the picture."""


class Subpixels(Protocol):
    """What the graph needs of a network."""

    config: NetworkConfig

    def subpixels(self, folded: Tensor, memory: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """See `Neid.subpixels`."""
        ...


class HalfNetwork(nn.Module):
    """A network computed in float16 between float32 ends."""

    def __init__(self, network: Neid) -> None:
        super().__init__()
        self.config = network.config
        self.network = Neid(network.config)
        self.network.load_state_dict(
            {name: value for name, value in network.state_dict().items() if not name.startswith("reconstruction.")}
        )
        self.network.half()

    def subpixels(self, folded: Tensor, memory: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """As `Neid.subpixels`."""
        subpixels, memory = self.network.subpixels(folded.half(), memory, keep)
        return subpixels.float(), memory


class PictureGraph(nn.Module):
    """What is exported: decoder planes in, encoder planes out."""

    def __init__(self, network: Subpixels, *, bytes_last: bool = False) -> None:
        """`bytes_last` converts code values to uint8 in the last step, since TensorRT has no uint8 inside a graph;
        otherwise they become uint8 once rounded, which moves less memory."""
        super().__init__()
        self.network = network
        self._rounded = torch.float32 if bytes_last else torch.uint8

    def forward(
        self, y: Tensor, uv: Tensor, colour: Tensor, memory: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Enhance N pictures.

        y: (N, 1, H, W) uint8; uv: (N, 2, ceil(H/2), ceil(W/2)) uint8; colour: (N, 2, 3, 4) float32, see
        `engines.colour`; memory (N, C) and keep (N, 1) float32, see `engines.network.memory`. Returns y (N, 1, 2H, 2W)
        and uv (N, 2, H, W), uint8, in the same matrix and range, and the memory for each feed's next picture.
        """
        height, width = y.shape[-2:]
        fold = self.network.config.unshuffle
        folded = self.fold(*self.pad(y, uv), colour[:, 0])
        subpixels, memory_out = self.network.subpixels(folded, memory, keep)
        bright_y, bright_uv = self.unfold(subpixels.clamp(0, 1), colour[:, 1], SCALE * fold)
        bright_y = cut(bright_y, SCALE * height, SCALE * width)
        bright_uv = bright_uv[..., MARGIN : MARGIN + height, MARGIN : MARGIN + width]
        return bright_y.to(torch.uint8).contiguous(), bright_uv.to(torch.uint8).contiguous(), memory_out

    def pad(self, y: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
        """Repeat the border of both planes, see `padding`."""
        (height, width), (chroma_height, chroma_width) = y.shape[-2:], uv.shape[-2:]
        left, right, top, bottom = padding(height, width, self.network.config.multiple)
        y = functional.pad(y.float(), (left, right, top, bottom), mode="replicate")
        chroma_right = (left + width + right) // 2 - left // 2 - chroma_width
        chroma_bottom = (top + height + bottom) // 2 - top // 2 - chroma_height
        uv = functional.pad(uv.float(), (left // 2, chroma_right, top // 2, chroma_bottom), mode="replicate")
        return y, uv

    def fold(self, y: Tensor, uv: Tensor, to_rgb: Tensor) -> Tensor:
        """Code values (N, 1, H, W), (N, 2, H/2, W/2) to RGB in [0, 1], folded: (N, 3u^2, H/u, W/u)."""
        fold = self.network.config.unshuffle
        luma_centre, chroma_centre, _ = CENTRE.tolist()
        y, uv = y - luma_centre, uv - chroma_centre
        y = functional.pixel_unshuffle(y, fold)  # (N, u^2, H/u, W/u)
        if fold == 1:
            uv = functional.interpolate(uv, scale_factor=2, mode="nearest")
        u, v = uv[:, :1], uv[:, 1:]  # (N, 1, H/u, W/u)
        m = to_rgb[:, :, :, None, None, None]  # (N, 3, 4, 1, 1, 1)
        planes = [m[:, c, 0] * y + (m[:, c, 1] * u + (m[:, c, 2] * v + m[:, c, 3])) for c in range(3)]
        return torch.cat(planes, dim=1).clamp(0, 1)

    def unfold(self, subpixels: Tensor, to_yuv: Tensor, fold: int) -> tuple[Tensor, Tensor]:
        """RGB sub-pixels (N, 3f^2, h, w) to code values: y (N, 1, fh, fw) and uv (N, 2, fh/2, fw/2).

        Colour conversion and the halving of chroma are linear, so one matrix product over the channels makes each.
        Luma's offset, 0 or 16, is added after rounding, so that a runtime can round where it multiplies.
        """
        (batch, _, height, width), half = subpixels.shape, fold // 2
        pixels = subpixels.permute(0, 2, 3, 1).flatten(1, 2)  # (N, hw, 3f^2)
        to_y, to_uv = unfolding(to_yuv[:, :, :3], fold)
        _, chroma_centre, _ = CENTRE.tolist()
        y = self.codes(pixels @ to_y) + to_yuv[:, :1, 3].to(self._rounded)  # (N, hwf^2)
        uv = self.codes(pixels @ to_uv + chroma_centre)  # (N, hwf^2/2)
        y = y.reshape(batch, height, width, fold, fold).permute(0, 1, 3, 2, 4)
        uv = uv.reshape(batch, height, width, 2, half, half).permute(0, 3, 1, 4, 2, 5)
        return (
            y.reshape(batch, 1, height * fold, width * fold),
            uv.reshape(batch, 2, height * half, width * half),
        )

    def codes(self, values: Tensor) -> Tensor:
        """Round to code values from 0 to 255: (N, hw, C) to (N, hwC), long rows for element-wise operations."""
        return values.clamp(0, 255).round().flatten(1).to(self._rounded)


def unfolding(to_yuv: Tensor, fold: int) -> tuple[Tensor, Tensor]:
    """Expand RGB to YUV (N, 3, 3) to folded RGB to folded Y (N, 3f^2, f^2) and to half-size UV (N, 3f^2, f^2/2)."""
    squares = fold * fold
    position = torch.arange(squares, device=to_yuv.device)
    square = position // fold // 2 * (fold // 2) + position % fold // 2
    same = torch.eye(squares, device=to_yuv.device)
    mean = (square[:, None] == position[: squares // 4]).float() / 4  # (f^2, f^2/4)
    rgb = to_yuv.transpose(1, 2)  # (N, rgb, yuv)
    luma = rgb[:, :, :1, None, None] * same  # (N, 3, 1, f^2, f^2)
    chroma = rgb[:, :, 1:, None, None] * mean  # (N, 3, 2, f^2, f^2/4)
    to_y, to_uv = (part.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2) for part in (luma, chroma))
    return to_y, to_uv


def padding(height: int, width: int, multiple: int) -> tuple[int, int, int, int]:
    """Pixels to add left, right, above and below: `MARGIN`, and then up to the network's multiple."""
    right = MARGIN + -(width + 2 * MARGIN) % multiple
    bottom = MARGIN + -(height + 2 * MARGIN) % multiple
    return MARGIN, right, MARGIN, bottom


def pad(picture: Tensor, multiple: int) -> Tensor:
    """Pad (N, C, H, W) by repeating its border, as the exported graph does: training pads like inference."""
    height, width = picture.shape[-2:]
    return functional.pad(picture, padding(height, width, multiple), mode="replicate")


def cut(doubled: Tensor, height: int, width: int) -> Tensor:
    """Cut the padding off the double of a padded picture: (N, C, height, width)."""
    edge = SCALE * MARGIN
    return doubled[..., edge : edge + height, edge : edge + width]
