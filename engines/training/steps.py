"""One training step, written once for all devices; `EagerSteps` takes it on the CPU, `GraphSteps` on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engines.data.pairs import Draw, Sample, batch, shared_region, subsample_chroma
from engines.network.neid import Neid
from engines.picture import cut, pad
from engines.training import losses
from engines.training.guard import Guard
from engines.training.recipe import Recipe

COLOUR_LOSSES: dict[str, losses.Loss] = {"chroma": losses.chroma, "hue": losses.hue_saturation}

Window = tuple[slice, slice]
"""Rows and columns of the large picture over which SSIM is computed."""

Region = tuple[Tensor, Tensor]
"""Rows (N, h) and columns (N, w) of N large pictures, see `shared_region`."""


@dataclass(frozen=True)
class Lesson:
    """Distillation: what a teacher, a network trained before, adds to the targets of one kind of pairs.

    A small network learns faster from a larger one's output than from the truth alone, which has noise and a brightness
    that cannot be predicted (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015).
    """

    teacher: Neid
    """Ready for inference, on the device of the pictures."""
    share: float
    """From 0, the truth alone, to 1, the teacher's output alone."""

    @torch.no_grad()
    def target(self, small: Tensor, large: Tensor) -> Tensor:
        """`large` (N, 3, 2H, 2W), blended with the teacher's output for `small` (N, 3, H, W)."""
        number = next(self.teacher.parameters())
        bright = self.teacher(pad(small, self.teacher.config.multiple).to(number.dtype))
        return large.lerp(cut(bright.float(), *large.shape[-2:]).clamp(0, 1), self.share)


class Steps(Protocol):
    """Takes training steps on some device."""

    def take(self, kind: int, chosen: Draw, step: int, rate: float, random: np.random.Generator) -> dict[str, float]:
        """One step on pairs of this kind; returns the parts of the loss by name, the latest known on the host.

        Raises `EngineError` if too many steps had no finite gradient, see `Guard.check`.
        """
        ...


NO_LESSONS: tuple[Lesson | None, ...] = (None, None, None)


class EagerSteps:
    """Steps on the CPU, one operation after the other."""

    def __init__(
        self,
        recipe: Recipe,
        network: Neid,
        optimiser: torch.optim.Optimizer,
        samples: Sequence[Sequence[Sample]],
        guard: Guard,
        lessons: Sequence[Lesson | None] = NO_LESSONS,
    ) -> None:
        """`samples` and `lessons` are given by kind of pairs."""
        self._recipe, self._network, self._optimiser, self._samples = recipe, network, optimiser, samples
        self._guard, self._lessons = guard, lessons

    def take(self, kind: int, chosen: Draw, step: int, rate: float, random: np.random.Generator) -> dict[str, float]:
        """See `Steps`."""
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        pictures = batch(self._samples[kind], chosen)
        window = half_window(pictures[1], random)
        region = shared_region(chosen.places, chosen) if chosen.twins else None
        parts = train_step(
            self._recipe,
            self._network,
            self._optimiser,
            self._guard,
            pictures,
            window,
            self._recipe.with_detail(step),
            region,
            self._lessons[kind],
        )
        self._guard.check(step + 1)
        return {name: part.item() for name, part in parts.items()}


def train_step(
    recipe: Recipe,
    network: Neid,
    optimiser: torch.optim.Optimizer,
    guard: Guard,
    pictures: Iterable[Tensor],
    window: Window,
    with_detail: bool,
    region: Region | None = None,
    lesson: Lesson | None = None,
) -> dict[str, Tensor]:
    """One step on one batch [small, large, dark]; returns the unweighted parts of the loss by name.

    Dark may be left out if the detail branch is not supervised. `region` is what twins share, in a batch of twins;
    `lesson` is what a teacher adds. The `guard` decides whether the step changes anything.
    """
    small, large, *dark = (picture.contiguous(memory_format=torch.channels_last) for picture in pictures)
    if recipe.subsampled:
        small = subsample_chroma(small)
    if lesson is not None:
        large = lesson.target(small, large)
    parts = loss_parts(recipe, network, small, large, dark[0] if with_detail else None, window, region)
    weights = recipe.weights()
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    optimiser.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
    guard.step(optimiser, norm)
    return {name: part.detach() for name, part in parts.items()}


def loss_parts(
    recipe: Recipe,
    network: Neid,
    small: Tensor,
    large: Tensor,
    dark: Tensor | None,
    window: Window,
    region: Region | None = None,
) -> dict[str, Tensor]:
    """The parts of equation 7 for one batch, and more; the detail branch is supervised if `dark` is given."""
    height, width = large.shape[-2:]
    padded = pad(small, network.config.multiple)
    parts = {}
    with torch.autocast(small.device.type, torch.bfloat16, has_bfloat16(small.device), cache_enabled=False):
        if dark is None:
            bright = network(padded)
        else:
            bright, detail = network.forward_both(padded)
    if dark is not None:
        parts["detail"] = losses.detail_mse(cut(detail.float(), height, width), detail_target(recipe, dark))
    bright = cut(bright.float(), height, width)
    asked = recipe.weights()
    shape = losses.scale_to_mean(bright, large) if "structure" in asked else bright
    if "huber" in asked:
        parts["huber"] = losses.huber(bright, large)
    if "structure" in asked:
        parts["structure"] = losses.huber(shape, large)
    if "colour" in asked:
        parts["colour"] = COLOUR_LOSSES[recipe.colour](bright, large)
    if "ssim" in asked:
        parts["ssim"] = 1 - losses.ssim(shape[(..., *window)].contiguous(), large[(..., *window)].contiguous())
    if "steady" in asked and region is not None:
        parts["steady"] = losses.steady(*twins(bright, region))
    return parts


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16; a CPU without AVX-512 emulates it, fifty times slower."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"


def twins(pictures: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    """The region that both twins show, from pictures (N, 3, H, W): (N/2, 3, h, w) of the first and of the second."""
    rows, columns = region
    same = pictures.take_along_dim(rows[:, None, :, None], 2).take_along_dim(columns[:, None, None, :], 3)
    one, other = same.chunk(2)
    return one, other


def detail_target(recipe: Recipe, dark: Tensor) -> Tensor:
    """The detail branch's target for dark pictures (N, 3, H, W): the picture itself, or scaled to a mean of 0.4."""
    if recipe.detail_target == "dark":
        return dark
    gain = 0.4 / dark.mean((1, 2, 3), keepdim=True).clamp_min(0.01)
    return (gain * dark).clamp(0, 1)


def half_window(large: Tensor, random: np.random.Generator) -> Window:
    """A random window of half the height and width: on a CPU, SSIM of the whole would cost more than the network."""
    height, width = large.shape[-2:]
    top, left = (int(random.integers(side - side // 2 + 1)) for side in (height, width))
    return slice(top, top + height // 2), slice(left, left + width // 2)
