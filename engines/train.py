"""Training from the first step to the stored weights; every pause can be resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engines import losses
from engines.network.config import CONFIGS
from engines.network.neid import Neid, initialise
from engines.pairs import PHOTO_CROP, Sample, batch, subsample_chroma


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out of training, but the data and the budget."""

    network: str = "neid-live"
    batch: int = 4
    crop: tuple[int, int] = (192, 288)
    """Height and width of the small crops; whole pictures are used in the last `whole` of the run."""
    whole: float = 0.3
    learning_rate: float = 4e-4
    warm_up_steps: int = 200
    clip: float = 1.0
    ema: float = 0.999
    huber_weight: float = 10.0
    ssim_weight: float = 0.3
    chroma_weight: float = 0.05
    detail_weight: float = 1.0
    detail_every: int = 2
    """The detail branch is supervised in every n-th step: its decoder costs as much as the light one."""
    mix: tuple[float, float, float] = (0.7, 0.2, 0.1)
    """Shares of LOL, night and day batches."""
    seed: int = 1


WHOLE = (10_000, 10_000)
"""A crop that no picture is larger than."""

Report = Callable[[int, float, dict[str, float]], None]
"""Called with the step, the share of the budget that is used up, and the parts of the loss."""


def train(recipe: Recipe, samples: tuple[list[Sample], ...], minutes: float, checkpoint: Path, report: Report) -> Neid:
    """Train for `minutes`, over all sittings, and return the averaged (EMA) network.

    `samples` are the LOL, night and day pairs that `recipe.mix` weighs. `checkpoint` is written every
    200 steps; where it exists the run goes on from it.
    """
    torch.manual_seed(recipe.seed)
    random = np.random.default_rng(recipe.seed)
    network = Neid(CONFIGS[recipe.network], with_reconstruction=True)
    initialise(network, torch.Generator().manual_seed(recipe.seed))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=1e-4)
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    step, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        average, step, spent = state["average"], state["step"], state["spent"]
        random = np.random.default_rng((recipe.seed, step))
    while spent < minutes * 60:
        started = time.monotonic()
        progress = spent / (minutes * 60)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, step, progress)
        kind = int(random.choice(len(samples), p=recipe.mix))
        whole = progress >= 1 - recipe.whole
        size = PHOTO_CROP if kind else WHOLE if whole else recipe.crop
        pictures = batch(samples[kind], size, recipe.batch, random)
        parts = train_step(recipe, network, optimiser, pictures, step, random)
        step += 1
        blend = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in network.state_dict().items():
                average[name].lerp_(value, 1 - blend)
        spent += time.monotonic() - started
        report(step, spent / (minutes * 60), parts)
        if step % 200 == 0 or spent >= minutes * 60:
            save(checkpoint, network, optimiser, average, step, spent)
    network.load_state_dict(average)
    network.eval()
    return network


def learning_rate(recipe: Recipe, step: int, progress: float) -> float:
    """Linear warm-up by steps, then a cosine over the budget down to 1e-6."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return (1e-6 + (recipe.learning_rate - 1e-6) * cosine) * min(1.0, (step + 1) / recipe.warm_up_steps)


def train_step(
    recipe: Recipe,
    network: Neid,
    optimiser: torch.optim.Optimizer,
    pictures: list[Tensor],
    step: int,
    random: np.random.Generator,
) -> dict[str, float]:
    """One step on one batch; returns the parts of the loss by name."""
    small, large, dark = (picture.contiguous(memory_format=torch.channels_last) for picture in pictures)
    with_detail = step % recipe.detail_every == 0
    parts = loss_parts(network, subsample_chroma(small), large, dark if with_detail else None, random)
    weights = {
        "huber": recipe.huber_weight,
        "ssim": recipe.ssim_weight,
        "chroma": recipe.chroma_weight,
        "detail": recipe.detail_weight,
    }
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    optimiser.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
    optimiser.step()
    return {name: part.item() for name, part in parts.items()}


def loss_parts(
    network: Neid, small: Tensor, large: Tensor, dark: Tensor | None, random: np.random.Generator
) -> dict[str, Tensor]:
    """The parts of equation 7 for one batch; the detail branch is supervised where `dark` is given."""
    height, width = large.shape[-2:]
    padded = pad(small, network.config.multiple)
    parts = {}
    with torch.autocast("cpu", torch.bfloat16):
        if dark is None:
            bright = network(padded)
        else:
            bright, detail = network.forward_both(padded)
    if dark is not None:
        gain = 0.4 / dark.mean((1, 2, 3), keepdim=True).clamp_min(0.01)
        target = (gain * dark).clamp(0, 1)
        parts["detail"] = losses.detail_mse(detail.float()[..., :height, :width], target)
    bright = bright.float()[..., :height, :width]
    parts["huber"] = losses.huber(bright, large)
    parts["chroma"] = losses.chroma(bright, large)
    top, left = int(random.integers(height // 2)), int(random.integers(width // 2))
    window = (..., slice(top, top + height // 2), slice(left, left + width // 2))
    parts["ssim"] = 1 - losses.ssim(bright[window].contiguous(), large[window].contiguous())
    return parts


def pad(picture: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column up to a multiple, as the exported graph does."""
    height, width = picture.shape[-2:]
    return functional.pad(picture, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def validate(network: Neid, samples: list[Sample]) -> float:
    """Mean raw PSNR in dB over whole pictures."""
    scores = []
    with torch.no_grad():
        for sample in samples:
            small, large = (
                torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
                for picture in (sample.small, sample.large)
            )
            height, width = large.shape[-2:]
            padded = pad(subsample_chroma(small), network.config.multiple)
            bright = network(padded)[..., :height, :width].clamp(0, 1)
            scores.append(-10 * math.log10(functional.mse_loss(bright, large).item()))
    return sum(scores) / len(scores)


def save(
    checkpoint: Path,
    network: Neid,
    optimiser: torch.optim.Optimizer,
    average: dict[str, Tensor],
    step: int,
    spent: float,
) -> None:
    """Write everything that a later sitting needs, in one move."""
    part = checkpoint.with_suffix(".part")
    state = {
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "average": average,
        "step": step,
        "spent": spent,
    }
    torch.save(state, part)
    part.replace(checkpoint)
