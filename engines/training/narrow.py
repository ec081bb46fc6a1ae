"""Starts a narrower network from a wider one's numbers: the most important channels of every group.

This is pruning of filters by their norms (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017), except that
both norms of a channel count: of the weights that make it, and of those that read it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engines.network.config import NetworkConfig
from engines.network.neid import Neid


def fits(wide: NetworkConfig, config: NetworkConfig) -> bool:
    """Whether a network of `config` can start from channels of a network of `wide`."""
    pairs = zip(wide.widths, config.widths, strict=False)
    alike = (wide.unshuffle, len(wide.widths)) == (config.unshuffle, len(config.widths))
    return alike and all(width >= narrow for width, narrow in pairs)


def narrowed(wide: Neid, config: NetworkConfig) -> Neid:
    """A network of `config`, which must fit (see `fits`), with the most important channels of a wider one.

    A channel's importance is the norm of the weights that make it times the norm of those that read it. The result must
    be trained, since what the other channels contributed is missing.
    """
    narrow = Neid(replace(config, parts=wide.config.parts)).eval()
    old, new = wide.state_dict(), narrow.state_dict()
    layers = [layer for layer in _layers(len(config.widths)) if f"{layer.name}.weight" in old]
    made: dict[str, Tensor | float] = defaultdict(float)
    used: dict[str, Tensor | float] = defaultdict(float)
    for layer in layers:
        kernel = layer.outputs_first(old[f"{layer.name}.weight"]).square()
        made[layer.makes] += kernel.sum((1, 2, 3))
        for group, part in zip(layer.reads, kernel.chunk(len(layer.reads), 1), strict=True):
            used[group] += part.sum((0, 2, 3))
    kept: dict[str, Tensor] = {}
    for layer in layers:
        importance = torch.as_tensor(made[layer.makes] * used[layer.makes])
        kept[layer.makes] = importance.topk(len(new[f"{layer.name}.bias"])).indices.sort().values
    for layer in layers:
        kernel = layer.outputs_first(old[f"{layer.name}.weight"])
        each = kernel.shape[1] // len(layer.reads)
        read = [place * each + kept.get(group, torch.arange(each)) for place, group in enumerate(layer.reads)]
        new[f"{layer.name}.weight"] = layer.outputs_first(kernel[kept[layer.makes]][:, torch.cat(read)])
        new[f"{layer.name}.bias"] = old[f"{layer.name}.bias"][kept[layer.makes]]
    narrow.load_state_dict(new)
    return narrow


@dataclass(frozen=True)
class _Layer:
    name: str
    reads: tuple[str, ...]
    """Groups of channels that it reads, in order and of equal size."""
    makes: str
    """The group of channels that it makes; layers that fusing mixes channel by channel make the same group."""

    def outputs_first(self, kernel: Tensor) -> Tensor:
        """(out, in, h, w); swaps the axes of transposed convolutions, and so is its own inverse."""
        return kernel.transpose(0, 1) if ".ups." in self.name else kernel


def _layers(levels: int) -> Iterator[_Layer]:
    """Every convolution of `Neid`, except for those that exist in training only."""
    above = "picture"
    for level in range(levels):
        yield _Layer(f"encoder.levels.{level}.0", (above,), f"encoding {level}")
        yield _Layer(f"encoder.levels.{level}.2", (f"encoding {level}",), f"encoded {level}")
        above = f"encoded {level}"
    yield _Layer("detail.stage.0", (above,), "detailing")
    yield _Layer("detail.stage.2", ("detailing",), above)
    yield _Layer("fusing.weigh.0", (above,), "weighing")
    yield _Layer("fusing.weigh.2", ("weighing",), above)
    below = above
    for up, level in enumerate(reversed(range(levels - 1))):
        yield _Layer(f"light.ups.{up}", (below,), f"raised {level}")
        yield _Layer(f"light.levels.{up}.0", (f"raised {level}", f"encoded {level}"), f"lighting {level}")
        yield _Layer(f"light.levels.{up}.2", (f"lighting {level}",), f"lit {level}")
        below = f"lit {level}"
    yield _Layer("light.subpixels", (below,), "subpixels")
