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
from engines.padding import MARGIN, padding
from engines.temporal import blended, still_share

INPUTS = ("y", "uv", "colour", "memory", "keep", "past_y", "past_uv")
OUTPUTS = ("y_out", "uv_out", "memory_out", "past_y_out", "past_uv_out")
"""Names in the exported graph."""


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
        self._fold = SCALE * network.config.unshuffle
        self._rounded = torch.float32 if bytes_last else torch.uint8

    def forward(
        self, y: Tensor, uv: Tensor, colour: Tensor, memory: Tensor, keep: Tensor, past_y: Tensor, past_uv: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Enhance N pictures.

        y: (N, 1, H, W) uint8; uv: (N, 2, ceil(H/2), ceil(W/2)) uint8; colour: (N, 2, 3, 4) float32, see
        `engines.colour`; memory (N, C) and keep (N, 1) float32, see `engines.network.memory`. past_y (N, hw, f^2) and
        past_uv (N, hw, f^2/2), float16, are what the feed's last picture returned, see `engines.temporal`: its code
        values with the padding, by place of the folded picture, where h and w are the padded sides over u = unshuffle,
        and f = 2u. Returns y (N, 1, 2H, 2W) and uv (N, 2, H, W), uint8, in the same matrix and range, and the memory
        and the past for each feed's next picture.
        """
        height, width = y.shape[-2:]
        folded = self.fold(*self.pad(y, uv), colour[:, 0])
        subpixels, memory_out = self.network.subpixels(folded, memory, keep)
        size = (subpixels.shape[2], subpixels.shape[3])
        bright_y, bright_uv = self.codes(subpixels.clamp(0, 1), colour[:, 1])
        bright_y, bright_uv = self.steadied(bright_y, bright_uv, past_y, past_uv, keep, size)
        y_out, uv_out = self.unfold(bright_y, bright_uv, size)
        y_out = cut(y_out, SCALE * height, SCALE * width).to(torch.uint8).contiguous()
        uv_out = uv_out[..., MARGIN : MARGIN + height, MARGIN : MARGIN + width].to(torch.uint8).contiguous()
        return y_out, uv_out, memory_out, bright_y.half(), bright_uv.half()

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

    def codes(self, subpixels: Tensor, to_yuv: Tensor) -> tuple[Tensor, Tensor]:
        """RGB sub-pixels (N, 3f^2, h, w) to code values: y (N, hw, f^2) and uv (N, hw, f^2/2).

        Colour conversion and the halving of chroma are linear, so one matrix product over the channels makes each.
        Luma's offset, 0 or 16, is added after rounding, so that a runtime can round where it multiplies.
        """
        pixels = subpixels.permute(0, 2, 3, 1).flatten(1, 2)  # (N, hw, 3f^2)
        to_y, to_uv = unfolding(to_yuv[:, :, :3], self._fold)
        _, chroma_centre, _ = CENTRE.tolist()
        y = self.rounded(pixels @ to_y) + to_yuv[:, :1, 3].to(self._rounded)
        uv = self.rounded(pixels @ to_uv + chroma_centre)
        return y.reshape(*pixels.shape[:2], -1), uv.reshape(*pixels.shape[:2], -1)

    def steadied(
        self, y: Tensor, uv: Tensor, past_y: Tensor, past_uv: Tensor, keep: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Code values with what stays the same of the last picture: float32, of the same shapes, not rounded.

        Written so that OpenVINO stores each change only, in float32, and reads the code values twice as bytes: all the
        values of a picture in float32 take more memory than the network.
        """
        change_y = (past_y.flatten(1).float() - y.flatten(1).float()).reshape(past_y.shape)
        change_uv = (past_uv.flatten(1).float() - uv.flatten(1).float()).reshape(past_uv.shape)
        share = still_share(change_y, keep, size, self._fold)
        return blended(y.float(), change_y, share), blended(uv.float(), change_uv, share)

    def unfold(self, y: Tensor, uv: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Code values (N, hw, f^2) and (N, hw, f^2/2) to rounded planes: y (N, 1, fh, fw) and uv (N, 2, fh/2, fw/2)."""
        (height, width), fold, half = size, self._fold, self._fold // 2
        y, uv = y.round().to(self._rounded), uv.round().to(self._rounded)
        y = y.reshape(-1, height, width, fold, fold).permute(0, 1, 3, 2, 4)
        uv = uv.reshape(-1, height, width, 2, half, half).permute(0, 3, 1, 4, 2, 5)
        return (
            y.reshape(-1, 1, height * fold, width * fold),
            uv.reshape(-1, 2, height * half, width * half),
        )

    def rounded(self, values: Tensor) -> Tensor:
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


def pad(picture: Tensor, multiple: int) -> Tensor:
    """Pad (N, C, H, W) by repeating its border, as the exported graph does: training pads like inference."""
    height, width = picture.shape[-2:]
    return functional.pad(picture, padding(height, width, multiple), mode="replicate")


def cut(doubled: Tensor, height: int, width: int) -> Tensor:
    """Cut the padding off the double of a padded picture: (N, C, height, width)."""
    edge = SCALE * MARGIN
    return doubled[..., edge : edge + height, edge : edge + width]
