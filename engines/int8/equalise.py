"""Rescales channels to equal ranges, which int8 needs and which changes nothing in floating point.

An int8 tensor has one range for all its channels, so weak channels get few of its 256 levels. LeakyReLU, pooling and
mixing preserve a factor, so a channel can be divided where it is made and multiplied back where it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from engines.data.lol import Picture
from engines.network.neid import Neid
from engines.picture import pad

Convolution = nn.Conv2d | nn.ConvTranspose2d
WEAKEST = 0.01
"""Least strength of a channel, as a share of the strongest: for channels that are almost never active."""


@dataclass(frozen=True)
class Channels:
    """The channels between the convolutions that make them and those that read them."""

    makers: Sequence[Convolution]
    readers: Sequence[tuple[Convolution, int]]
    """Each with the index of the first of these channels in its input."""

    @property
    def count(self) -> int:
        """How many channels."""
        return self.makers[0].out_channels

    def scale(self, strength: Tensor) -> None:
        """Divide what the makers make by `strength` (count,), and multiply it back in the readers' weights."""
        factor = strength[:, None, None, None]
        for maker in self.makers:
            by_output(maker).div_(factor)
            if maker.bias is not None:
                maker.bias.div_(strength)
        for reader, first in self.readers:
            by_input(reader)[first : first + self.count].mul_(factor)


def equalised(network: Neid, pictures: Sequence[Picture]) -> Neid:
    """A copy that computes the same, with every channel's largest magnitude on `pictures` at 1.

    `pictures` are RGB (H, W, 3) uint8 as cameras send them, by night and by day. Raises `ValueError` without any.
    """
    if not pictures:
        raise ValueError("no pictures to equalise the channels with; at least one is needed")
    network = deepcopy(network).eval()
    between = list(channels_of(network))
    with torch.inference_mode():
        strengths = measure(network, between, pictures)
    with torch.no_grad():
        for channels, strength in zip(between, strengths, strict=True):
            channels.scale(strength.clone())
    return network


def channels_of(network: Neid) -> Iterator[Channels]:
    """All channels between the network's first convolution and its last, at inference."""
    encoder = [pair(level) for level in network.encoder.levels]
    decoder = [pair(level) for level in network.light.levels]
    ups = [up for up in network.light.ups if isinstance(up, nn.ConvTranspose2d)]
    for first, second in (*encoder, *decoder):
        yield Channels([first], [(second, 0)])
    for (finer, coarser), level in zip(pairwise(encoder), reversed(decoder), strict=True):
        skip = finer[1]
        yield Channels([skip], [(coarser[0], 0), (level[0], skip.out_channels)])
    for up, level in zip(ups, decoder, strict=True):
        yield Channels([up], [(level[0], 0)])
    next_readers: list[Convolution] = [*ups[1:], network.light.subpixels]
    for level, reader in zip(decoder, next_readers, strict=True):
        yield Channels([level[1]], [(reader, 0)])
    yield from bottleneck(network, encoder[-1][1], ups[0])


def bottleneck(network: Neid, light: Convolution, up: Convolution) -> Iterator[Channels]:
    """Channels of the deepest level; light and detail are mixed channel by channel, so they share their factors."""
    if network.detail is None:
        yield Channels([light], [(up, 0)])
        return
    first, second = pair(network.detail.stage)
    yield Channels([first], [(second, 0)])
    if network.fusing is None:
        yield Channels([light], [(up, 0), (first, 0)])
    else:
        squeeze = next(layer for layer in network.fusing.weigh if isinstance(layer, nn.Conv2d))
        yield Channels([light, second], [(up, 0), (first, 0), (squeeze, 0)])


def pair(block: nn.Module) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The convolutions of a `double_conv`."""
    first, second = (layer for layer in block.children() if isinstance(layer, nn.Conv2d))
    return first, second


def measure(network: Neid, between: Sequence[Channels], pictures: Sequence[Picture]) -> list[Tensor]:
    """The largest magnitude of every channel that any reader sees on `pictures`, at least `WEAKEST`."""
    strengths = [torch.zeros(channels.count) for channels in between]

    def watch(strength: Tensor, first: int) -> object:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            read = inputs[0][:, first : first + len(strength)].abs().amax((0, 2, 3))
            torch.maximum(strength, read, out=strength)

        return hook

    handles = [
        reader.register_forward_pre_hook(watch(strength, first))  # type: ignore[arg-type]
        for channels, strength in zip(between, strengths, strict=True)
        for reader, first in channels.readers
    ]
    for picture in pictures:
        rgb = torch.tensor(picture).permute(2, 0, 1)[None].float() / 255
        network(pad(rgb, network.config.multiple))
    for handle in handles:
        handle.remove()
    return [strength.clamp_min(max(WEAKEST * float(strength.max()), 1e-6)) for strength in strengths]


def by_output(convolution: Convolution) -> Tensor:
    """A view of the weights, output channels first."""
    return convolution.weight.transpose(0, 1) if isinstance(convolution, nn.ConvTranspose2d) else convolution.weight


def by_input(convolution: Convolution) -> Tensor:
    """A view of the weights, input channels first."""
    return convolution.weight if isinstance(convolution, nn.ConvTranspose2d) else convolution.weight.transpose(0, 1)
