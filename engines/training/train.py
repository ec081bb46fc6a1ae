"""Training from the first step to the stored weights; an interrupted run can be resumed."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engines.cards import FILES, NUMBERS, Card, Weights, sha256, write_card
from engines.checkpoint import load_network, packed, save_network
from engines.data.lol import Picture
from engines.data.pairs import (
    NEARBY,
    PHOTO_CROP,
    Draw,
    Sample,
    draw,
    even_out,
    in_phases,
    small_sizes,
    subsample_chroma,
)
from engines.errors import EngineError, EngineMismatch
from engines.network.config import CONFIGS
from engines.network.neid import STARTS, Neid
from engines.picture import cut, pad
from engines.training.graphs import GraphSteps
from engines.training.guard import Guard
from engines.training.hold import held_back
from engines.training.narrow import fits, narrowed
from engines.training.recipe import Recipe, learning_rate
from engines.training.recipe import read_recipe as read_recipe
from engines.training.steps import NO_LESSONS, EagerSteps, Lesson, Steps, has_bfloat16

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]

SAVE_EVERY = {"cpu": 200, "cuda": 5_000}
"""Steps between two checkpoints, by the kind of device."""

TRY_EVERY = {"cpu": 500, "cuda": 2_000}
"""Steps between two scores on held-out scenes."""

LARGE_CROPS = 0.5
"""Share of the night and day batches whose crops are as large as LOL's; those of the others fit into every photo."""

WHOLE = (10_000, 10_000)
"""A crop size that no picture exceeds."""

Report = Callable[[int, float, dict[str, float]], None]
"""Called with the step, the share of the budget used up, and the parts of the loss; not after a signal that ends the
process."""


@dataclass(frozen=True)
class Budget:
    """When training ends: at the first limit reached, counted over all sittings."""

    minutes: float = math.inf
    steps: float = math.inf

    def share(self, step: int, seconds: float) -> float:
        """The share of the budget used up, 0 to 1."""
        return min(1.0, max(step / self.steps, seconds / 60 / self.minutes))


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs on which the averaged network is scored, during training and at the end."""

    samples: Sequence[Sample]
    report: Callable[[int, float], None] = lambda _step, _score: None
    """Called with the step and the raw PSNR in dB; not after a signal that ends the process."""


def train(
    recipe: Recipe,
    samples: Sequence[Sequence[Sample]],
    budget: Budget,
    checkpoint: Path,
    report: Report,
    start: Path | None = None,
    held_out: HeldOut | None = None,
    device: torch.device | None = None,
    teacher: Path | None = None,
) -> Neid:
    """Train until the budget or the recipe's steps are used up; returns the averaged (EMA) network, on the CPU.

    `samples` are the LOL, night and day pairs that `recipe.mix` weighs. `start` holds stored numbers to begin with, in
    place of random ones; of a wider network, the most important channels are taken. `teacher` holds the numbers of the
    network that `recipe.taught` needs. `device` is a GPU by default, if there is one. With `select = "best"` the result
    is the average that scored best on the `held_out` pairs. Raises `ValueError` if held-out pairs or a teacher that the
    recipe needs are missing, or if a teacher is given that it does not use.

    `checkpoint` is written every `SAVE_EVERY` steps, and after the step in which a signal to end the process arrives.
    If it exists, the run resumes from it, on any device. Raises `EngineMismatch` if it was begun with another recipe,
    `start` or `teacher`; other pairs only log a warning. On a CPU, a budget of steps makes a run repeatable: it gives
    the same network, interrupted or not. A budget of minutes does not, since the learning rate follows the clock.

    A step whose gradient is not finite changes neither network nor optimiser. Too many in a row raise `EngineError`,
    and leave the checkpoint as it is.
    """
    if recipe.select == "best" and held_out is None:
        raise ValueError("the recipe selects the best network, but no held-out pairs were given to try it on")
    if any(recipe.taught) != (teacher is not None):
        raise ValueError("a teacher must be given where the recipe has lessons of one, and nowhere else")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    budget = replace(budget, steps=min(budget.steps, recipe.steps or math.inf))
    run = Run.begin(recipe, start, device, teacher)
    run.origin |= {"pairs": digest(samples), "commit": checked_out()}
    if checkpoint.exists():
        run.load(checkpoint)
    if held_out is not None and run.origin.get("knows_all"):
        log.warning("the starting weights were trained on the held-out scenes, so scores on these mean nothing")
    lol, night, *day = samples
    lol = even_out(even_out(lol, recipe.evened[0]), recipe.evened_nearby, NEARBY)
    if recipe.phases:
        lol = in_phases(lol)
    samples = (lol, even_out(night, recipe.evened[1]), *day)
    steps = open_steps(recipe, run, samples, lessons(recipe, teacher, device))
    sizes = [small_sizes(some) for some in samples]
    with held_back() as signals:
        while (share := budget.share(run.step, run.seconds)) < 1 and not signals:
            started = time.monotonic()
            random = np.random.default_rng((recipe.seed, run.step))
            kind, chosen = choose(recipe, sizes, share, random)
            parts = steps.take(kind, chosen, run.step, learning_rate(recipe, run.step, share), random)
            run.follow(recipe.ema)
            run.seconds += time.monotonic() - started
            share = budget.share(run.step, run.seconds)
            if not signals:
                report(run.step, share, parts)
            if held_out is not None and (run.step % TRY_EVERY[device.type] == 0 or share >= 1):
                score = run.attempt(held_out.samples)
                if not signals:  # else save first: the listener may be gone with the terminal
                    held_out.report(run.step, score)
            if run.step % SAVE_EVERY[device.type] == 0 or share >= 1:
                run.save(checkpoint)
        if signals:
            run.save(checkpoint)
            log.warning("interrupted after step %d; saved to %s; run the same command to resume", run.step, checkpoint)
    return run.result(recipe)


def choose(
    recipe: Recipe, sizes: Sequence[Sequence[tuple[int, int]]], share: float, random: np.random.Generator
) -> tuple[int, Draw]:
    """The kind of the next batch's pairs (0 LOL, 1 night, 2 day), and what to cut from them."""
    kind = int(random.choice(len(sizes), p=recipe.mix))
    options: dict[str, Any] = {name: getattr(recipe, name) for name in ("turn", "noise", "twins", "twin_noise")}
    if kind and recipe.wide and random.random() < recipe.wide:
        options["twins"] = 0.0
        return kind, draw(sizes[kind], twice(recipe.crop), max(1, recipe.batch // 4), random, **options)
    if kind:
        options["below"] = twice(recipe.crop) if recipe.wide else None  # only a whole wide picture tells day from night
        crop = recipe.crop if random.random() < LARGE_CROPS else PHOTO_CROP  # only two sizes: a GPU captures each
        return kind, draw(sizes[kind], crop, recipe.batch, random, **options)
    size = WHOLE if share >= 1 - recipe.whole else recipe.crop
    return kind, draw(sizes[kind], size, recipe.batch, random, gain=recipe.gain, mixup=recipe.mixup, **options)


def twice(crop: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the crops of wide batches."""
    return 2 * crop[0], 2 * crop[1]


def lessons(recipe: Recipe, teacher: Path | None, device: torch.device) -> Sequence[Lesson | None]:
    """What the network stored in `teacher` adds to the LOL, night and day pairs."""
    if teacher is None:
        return NO_LESSONS
    kind = torch.bfloat16 if has_bfloat16(device) else torch.float32
    network = load_network(teacher).to(device, kind).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return [Lesson(network, share) if share > 0 else None for share in recipe.taught]


def open_steps(
    recipe: Recipe, run: Run, samples: Sequence[Sequence[Sample]], lessons: Sequence[Lesson | None] = NO_LESSONS
) -> Steps:
    """The `Steps` for the run's device."""
    if run.device.type == "cuda":
        return GraphSteps(recipe, run.network, run.optimiser, samples, run.device, run.guard, lessons)
    return EagerSteps(recipe, run.network, run.optimiser, samples, run.guard, lessons)


@dataclass
class Run:
    """The state of a training run: everything that a later sitting needs."""

    network: Neid
    optimiser: torch.optim.Optimizer
    average: dict[str, Tensor]
    """The moving average of the network's numbers."""
    device: torch.device
    guard: Guard
    step: int = 0
    seconds: float = 0.0
    best: dict[str, Tensor] | None = None
    """The average that scored best so far."""
    best_score: float = -math.inf
    best_step: int = 0
    trials: list[tuple[int, float]] = field(default_factory=list)
    """The step and the score of every attempt."""
    origin: dict[str, object] = field(default_factory=dict)
    """What the run began with, as builtins: the recipe, the SHA-256 of the starting numbers, of the teacher's and of
    the pairs, whether the starting numbers have learned the held-out scenes, and the commit that was checked out."""

    @classmethod
    def begin(
        cls,
        recipe: Recipe,
        start: Path | None = None,
        device: torch.device | None = None,
        teacher: Path | None = None,
    ) -> Self:
        """A run at step 0, with random numbers or those stored in `start`."""
        device = device or torch.device("cpu")
        config = replace(CONFIGS[recipe.network], parts=recipe.parts)
        network = Neid(config, with_reconstruction=True)
        STARTS[recipe.start](network, torch.Generator().manual_seed(recipe.seed))
        if start is not None:
            stored = load_network(start)
            if not fits(stored.config, config):
                raise EngineMismatch(f"{start} holds a network {stored.config.name}; the recipe is for {config.name}")
            network.load_state_dict(narrowed(stored, config).state_dict(), strict=False)
        network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = torch.optim.AdamW(network.parameters(), **optimiser_options(recipe, device))
        average = {name: value.detach().clone() for name, value in network.state_dict().items()}
        origin = {
            "recipe": msgspec.to_builtins(recipe),
            "start": sha256(start) if start else None,
            "teacher": sha256(teacher) if teacher else None,
            "knows_all": start is not None and _knows_all(start),
        }
        return cls(network, optimiser, average, device, Guard(device), origin=origin)

    def follow(self, decay: float) -> None:
        """Count a step, and move the average towards the network; faster at the beginning."""
        self.step += 1
        blend = 1 - min(decay, (1 + self.step) / (10 + self.step))
        numbers = self.network.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [numbers[name] for name in self.average], blend)

    def attempt(self, samples: Sequence[Sample]) -> float:
        """Score the average on held-out pairs, and keep it if it is the best; returns the raw PSNR in dB."""
        score = validate(self.averaged(self.average), samples)
        if score > self.best_score:
            self.best = {name: value.clone() for name, value in self.average.items()}
            self.best_score, self.best_step = score, self.step
        self.trials.append((self.step, score))
        return score

    def averaged(self, numbers: dict[str, Tensor]) -> Neid:
        """A new network with these numbers, ready for inference."""
        network = copy.deepcopy(self.network)
        network.load_state_dict(numbers)
        return network.eval()

    def result(self, recipe: Recipe) -> Neid:
        """The network that the recipe selects, on the CPU."""
        best = self.best if recipe.select == "best" else None
        return self.averaged(best or self.average).cpu()

    def save(self, checkpoint: Path) -> None:
        """Write the checkpoint atomically; raises `EngineError` if that fails, and leaves the old one as it was."""
        part = checkpoint.with_suffix(".part")
        state = {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "best_score": self.best_score,
            "best_step": self.best_step,
            "trials": self.trials,
            "origin": self.origin,
            "unfit": self.guard.counts,
        }
        try:
            with part.open("wb") as file:
                torch.save(state, file)
                os.fsync(file.fileno())  # else a power cut might leave neither the old nor the new one
            part.replace(checkpoint)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError if the disk is full
            raise EngineError(f"{checkpoint} cannot be written: {error}") from error
        finally:
            part.unlink(missing_ok=True)

    def load(self, checkpoint: Path) -> None:
        """Resume from a checkpoint of any device; raises `EngineMismatch` if it is another run's, or cannot be read."""
        try:
            state = torch.load(checkpoint, weights_only=True, map_location=self.device)
            if (
                not isinstance(state, dict)
                or not {"network", "optimiser", "average", "step", "seconds"} <= state.keys()
            ):
                raise UnpicklingError("it holds something else")
        except (EOFError, RuntimeError, UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise EngineMismatch(f"{checkpoint} cannot be read as a checkpoint: {reason}") from error
        if (wrong := _difference(state.get("origin"), self.origin)) is not None:
            raise EngineMismatch(f"{checkpoint} was started with {wrong}; give the same again, or another folder")
        self.network.load_state_dict(state["network"])
        options = [{k: v for k, v in group.items() if k != "params"} for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state["optimiser"])
        for group, own in zip(self.optimiser.param_groups, options, strict=True):
            group.update(own)
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]
        self.best = state.get("best")
        self.best_score, self.best_step = state.get("best_score", -math.inf), state.get("best_step", 0)
        own, self.trials, self.origin = self.origin, state.get("trials", []), state.get("origin", self.origin)
        if self.origin.get("pairs", own.get("pairs")) != own.get("pairs"):
            log.warning(
                "%s was started with other pairs; from step %d on it learns from the new ones", checkpoint, self.step
            )
        self.guard.load(state.get("unfit", torch.zeros(2, dtype=torch.int64)))


def read_trials(checkpoint: Path) -> tuple[int, list[tuple[int, float]]]:
    """The number of steps a run has taken, and the step and score of every attempt, over all sittings."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    return state["step"], state["trials"]


def read_seconds(checkpoint: Path) -> float:
    """How long a run has trained, over all sittings; 0 if there is no checkpoint."""
    if not checkpoint.exists():
        return 0.0
    return float(torch.load(checkpoint, weights_only=True, map_location="cpu")["seconds"])


def read_origin(checkpoint: Path) -> dict[str, Any]:
    """What a run began with, see `Run.origin`; empty for older checkpoints, which do not hold it."""
    return torch.load(checkpoint, weights_only=True, map_location="cpu").get("origin") or {}


def _knows_all(numbers: Path) -> bool:
    """Whether stored numbers have learned every scene; False if no card beside them says so."""
    try:
        return Weights(numbers.parent).card.learned_all()
    except EngineError:
        return False


def _difference(saved: dict[str, Any] | None, own: dict[str, Any]) -> str | None:
    """What a saved run began with, if this run asks for something else; a `start` need not be given again."""
    if saved is None:
        return None  # an older checkpoint, which does not hold it
    usual = msgspec.to_builtins(Recipe())
    for name, value in own["recipe"].items():
        if (was := saved["recipe"].get(name, usual[name])) != value:
            return f"{name} = {was}, not {value}"
    if own["start"] not in (None, saved["start"]):
        return "other numbers" if saved["start"] else "random numbers"
    if own["teacher"] != saved.get("teacher"):
        return "another teacher"
    return None


def digest(samples: Sequence[Sequence[Sample]]) -> str:
    """SHA-256, in hex, of the pairs of each kind."""
    total = hashlib.sha256()
    for number, sample in ((number, sample) for number, some in enumerate(samples) for sample in some):
        total.update(f"{number} {sample.small.shape} {sample.large.shape} {sample.mean}".encode())
        for picture in (sample.small, sample.large):
            total.update(picture.tobytes())
    return total.hexdigest()


def optimiser_options(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Options of AdamW; a CUDA graph replays the optimiser too, and reads its learning rate from a tensor."""
    options: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if device.type == "cuda":
        rate = torch.tensor(recipe.learning_rate, device=device)
        options |= {"lr": rate, "capturable": True, "fused": True}
    return options


def checked_out() -> str:
    """The checked-out commit of this project, in hex, with `-dirty` if its files differ; empty if the project is not a
    checkout."""
    if not (ROOT / ".git").exists():  # an installed package may lie inside another checkout
        return ""
    describe = ("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        described = subprocess.run(describe, capture_output=True, text=True, check=True)  # noqa: S603 - nothing given
        return described.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def validate(network: Neid, samples: Sequence[Sample]) -> float:
    """Mean raw PSNR in dB over whole pictures, on the network's device."""
    scores = []
    for sample in samples:
        bright = as_shown(network, sample.small)
        large = torch.from_numpy(sample.large.copy()).to(bright.device).permute(2, 0, 1)[None].float() / 255
        scores.append(-10 * math.log10(functional.mse_loss(bright, large).item()))
    return sum(scores) / len(scores)


@torch.no_grad()
def as_shown(network: Neid, small: Picture) -> Tensor:
    """The network's output for a whole picture (h, w, 3) sent as 4:2:0: (1, 3, 2h, 2w) in [0, 1], on its device."""
    device = next(network.parameters()).device
    given = torch.from_numpy(small.copy()).to(device).permute(2, 0, 1)[None].float() / 255
    padded = pad(subsample_chroma(given), network.config.multiple)
    return cut(network(padded), 2 * small.shape[0], 2 * small.shape[1]).clamp(0, 1)


def store(
    network: Neid, recipe: Recipe, folder: Path, scores: dict[str, object], origin: Mapping[str, Any] | None = None
) -> None:
    """Write the numbers and a card that says how they were made; `export` adds the engine files.

    `origin` is the run's `read_origin`. Existing engine files, made from older numbers, are removed. If these numbers
    are already stored, everything stays as it is.
    """
    origin = origin or {}
    folder.mkdir(parents=True, exist_ok=True)
    if _stored(folder) == hashlib.sha256(packed(network)).hexdigest():
        return
    save_network(network, folder / NUMBERS)
    for name in FILES - {NUMBERS}:
        (folder / name).unlink(missing_ok=True)
    card = Card(
        name=folder.name,
        network=recipe.network,
        files={},
        recipe=msgspec.to_builtins(recipe),
        commit=origin.get("commit", ""),
        scores=scores,
        scored=sha256(folder / NUMBERS) if scores else "",
        began_with_all=bool(origin.get("knows_all")),
    )
    write_card(folder, card)


def _stored(folder: Path) -> str | None:
    """SHA-256 of the numbers that a folder's card vouches for; None without a sound card."""
    try:
        weights = Weights(folder)
        return weights.id if weights.is_sound(NUMBERS) else None
    except EngineError:
        return None
