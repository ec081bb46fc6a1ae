"""Training from the first step to the stored weights; every pause can be resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engines import losses
from engines.cards import NUMBERS, Card, write_card
from engines.checkpoint import load_network, save_network
from engines.errors import EngineMismatch, EngineMissing
from engines.network.config import CONFIGS
from engines.network.neid import Neid, initialise
from engines.pairs import PHOTO_CROP, Sample, batch, subsample_chroma
from engines.picture import cut, pad


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
    """The detail branch, whose decoder costs as much as the light one, is supervised in every n-th step; 0: never."""
    mix: tuple[float, float, float] = (0.7, 0.2, 0.1)
    """Shares of LOL, night and day batches."""
    gain: float = 1.0
    """LOL's dark pictures are made brighter or darker at random, by this factor at most: exposure must be seen in
    the picture, not remembered with the scene."""
    hold_out: bool = True
    """Whether some scenes of LOL are kept for choosing; False when nothing is left to be chosen."""
    seed: int = 1


SAVE_EVERY = 200
"""Steps between two checkpoints."""

RECIPES = Path(__file__).parent / "recipes"

WHOLE = (10_000, 10_000)
"""A crop that no picture is larger than."""

Report = Callable[[int, float, dict[str, float]], None]
"""Called with the step, the share of the budget that is used up, and the parts of the loss."""


@dataclass(frozen=True)
class Budget:
    """When training ends, whichever comes first; counted over all sittings."""

    minutes: float = math.inf
    steps: float = math.inf

    def share(self, step: int, seconds: float) -> float:
        """How much of it is used up, 0 to 1."""
        return min(1.0, max(step / self.steps, seconds / 60 / self.minutes))


def train(
    recipe: Recipe,
    samples: tuple[list[Sample], ...],
    budget: Budget,
    checkpoint: Path,
    report: Report,
    start: Path | None = None,
) -> Neid:
    """Train until the budget is used up, and return the averaged (EMA) network.

    `start` are stored numbers to begin with, in place of random ones.
    `samples` are the LOL, night and day pairs that `recipe.mix` weighs. `checkpoint` is written every
    200 steps; where it exists the run goes on from it. A budget of steps makes a run repeatable: it gives the
    same network, interrupted or not.
    """
    run = Run.begin(recipe, start)
    if checkpoint.exists():
        run.load(checkpoint)
    while (share := budget.share(run.step, run.seconds)) < 1:
        started = time.monotonic()
        random = np.random.default_rng((recipe.seed, run.step))
        kind = int(random.choice(len(samples), p=recipe.mix))
        size = PHOTO_CROP if kind else WHOLE if share >= 1 - recipe.whole else recipe.crop
        pictures = batch(samples[kind], size, recipe.batch, random)
        if kind == 0:
            pictures[0] = expose(pictures[0], recipe.gain, random)
        for group in run.optimiser.param_groups:
            group["lr"] = learning_rate(recipe, run.step, share)
        parts = train_step(recipe, run.network, run.optimiser, pictures, run.step, random)
        run.follow(recipe.ema)
        run.seconds += time.monotonic() - started
        share = budget.share(run.step, run.seconds)
        report(run.step, share, parts)
        if run.step % SAVE_EVERY == 0 or share >= 1:
            run.save(checkpoint)
    run.network.load_state_dict(run.average)
    run.network.eval()
    return run.network


@dataclass
class Run:
    """Everything that a later sitting needs."""

    network: Neid
    optimiser: torch.optim.Optimizer
    average: dict[str, Tensor]
    """The moving average of the network's numbers."""
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def begin(cls, recipe: Recipe, start: Path | None = None) -> Self:
        """A network that knows nothing yet, or what the stored numbers `start` hold, and its optimiser."""
        network = Neid(CONFIGS[recipe.network], with_reconstruction=True)
        initialise(network, torch.Generator().manual_seed(recipe.seed))
        if start is not None:
            network.load_state_dict(load_network(start).state_dict(), strict=False)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=1e-4)
        average = {name: value.detach().clone() for name, value in network.state_dict().items()}
        return cls(network, optimiser, average)

    def follow(self, decay: float) -> None:
        """Count a step, and let the average follow the network; faster at the beginning."""
        self.step += 1
        blend = 1 - min(decay, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value, blend)

    def save(self, checkpoint: Path) -> None:
        """Write it in one move."""
        part = checkpoint.with_suffix(".part")
        state = {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, part)
        part.replace(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Go on from what was saved."""
        state = torch.load(checkpoint, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]


def expose(pictures: Tensor, gain: float, random: np.random.Generator) -> Tensor:
    """(N, 3, H, W) in [0, 1], each picture brighter or darker by up to the factor `gain`."""
    factors = np.exp(random.uniform(-np.log(gain), np.log(gain), len(pictures)))
    return (pictures * torch.from_numpy(factors).float().view(-1, 1, 1, 1)).clamp(0, 1)


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
    with_detail = recipe.detail_every > 0 and step % recipe.detail_every == 0
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
        parts["detail"] = losses.detail_mse(cut(detail.float(), height, width), target)
    bright = cut(bright.float(), height, width)
    parts["huber"] = losses.huber(bright, large)
    parts["chroma"] = losses.chroma(bright, large)
    top, left = int(random.integers(height // 2)), int(random.integers(width // 2))
    window = (..., slice(top, top + height // 2), slice(left, left + width // 2))
    parts["ssim"] = 1 - losses.ssim(bright[window].contiguous(), large[window].contiguous())
    return parts


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
            bright = cut(network(padded), height, width).clamp(0, 1)
            scores.append(-10 * math.log10(functional.mse_loss(bright, large).item()))
    return sum(scores) / len(scores)


def read_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or one's own by the path of its TOML file; raises `EngineMismatch`."""
    path = RECIPES / f"{name}.toml" if "/" not in name and (RECIPES / f"{name}.toml").is_file() else Path(name)
    try:
        recipe = msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except FileNotFoundError:
        shipped = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
        raise EngineMissing(f"no recipe {name!r}: give one of {shipped}, or a TOML file") from None
    except msgspec.MsgspecError as error:
        raise EngineMismatch(f"{path}: {error}") from error
    if recipe.network not in CONFIGS:
        raise EngineMismatch(f"{path}: network is {recipe.network!r}; it must be one of {', '.join(CONFIGS)}")
    return recipe


def store(network: Neid, recipe: Recipe, folder: Path, scores: dict[str, object]) -> None:
    """Write the numbers and a card that says how they came about; `export` adds the engine files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_network(network, folder / NUMBERS)
    card = Card(
        name=folder.name,
        network=recipe.network,
        files={},
        recipe=msgspec.to_builtins(recipe),
        scores=scores,
    )
    write_card(folder, card)
