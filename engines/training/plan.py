"""`python -m engines.training.plan`: trains all networks, one job after the other, in a few minutes on a GPU.

    python -m engines.training.plan pack LOL PHOTOS DATA    # where the data is: a few files of 26 MB at most
    python -m engines.training.plan train DATA OUT --minutes 7.5 --sitting 9    # where the GPU is, for each sitting

A finished job is not repeated (it fails if its recipe has changed; `--seed`, `--small` and `--steps` are part of that),
an interrupted one resumes, a failed one stops no other, and one that does not fit into the rest of the sitting is not
started. `OUT/JOB/` holds a job's checkpoint, weights in half precision (25 MB for `neid`) and card; `OUT/plan.json` the
recipes and scores of all finished jobs, also on LOL's `eval15`. `--only` chooses jobs, which then share all minutes;
`--limit` bounds the size of a file of DATA. Needs torch, numpy, safetensors, msgspec, and Pillow with AVIF (11.3 or
later); of the shipped weights only `engines/weights/field/weights.safetensors`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engines.cards import CARD, NUMBERS, SHIPPED
from engines.data.packs import QUALITY, VOLUME_BYTES, read_packs, write_packs
from engines.data.pairs import Sample, eval15_samples
from engines.evaluation.evaluate import Score, summary
from engines.evaluation.scores import mean_ratio, psnr, psnr_gt_mean, ssim
from engines.network.neid import Neid
from engines.training.recipe import Recipe, read_recipe
from engines.training.train import (
    Budget,
    HeldOut,
    as_shown,
    read_origin,
    read_seconds,
    read_trials,
    store,
    train,
    validate,
)

RESERVE_MINUTES = 0.5
"""Reserve of a sitting for what a job does besides its steps."""

SMALL: dict[str, Any] = {"network": "neid-live", "batch": 4, "whole": 0.1}
"""What `--small` changes in every recipe: a step is then less than a tenth of the work."""

AS_PACKED: dict[str, Any] = {"phases": False}
"""What packs change in every recipe: their full-size dark pictures are not exact enough to be halved again."""

CHECKPOINT = "checkpoint.pt"

TELL_EVERY = 1_000
"""Steps between two lines of progress."""


@dataclass(frozen=True)
class Job:
    """One training run of the plan."""

    name: str
    recipe: str
    share: float
    """Share of the plan's minutes, relative to the other chosen jobs."""
    seed: int = 1
    start: str | None = None
    """The shipped weights that it starts from."""
    paced_by: str | None = None
    """The job whose number of steps it takes, however long they last, so that the rows of a table are comparable."""


WHOLE_NETWORK = "table2-le-dr-ff"
"""The row of table 2 whose steps cost most."""

JOBS = (
    Job("paper-best-1", "paper-best", 0.2),
    Job("field", "field-text", 0.2, start="field"),
    Job(WHOLE_NETWORK, WHOLE_NETWORK, 0.09),
    *(Job(row, row, 0.09, paced_by=WHOLE_NETWORK) for row in ("table2-le-dr", "table2-le", "table2-unet")),
    *(Job(f"paper-best-{seed}", "paper-best", 0.1, seed) for seed in (2, 3)),
    Job("paper", "paper", 0.04),
)
"""Most important first."""


@dataclass
class Clock:
    """Measures how long a job's steps take, without the scoring in between."""

    began: float
    """When the first step began, moved forward by all time that is not spent on steps."""
    last: float = 0.0
    first: int = 0
    """The first reported step, which is above 1 in a resumed job; 0 before any report."""
    step: int = 0

    def report(self, step: int, share: float, parts: Mapping[str, float]) -> None:
        """Count a step, and print progress at times; see `engines.training.train.Report`."""
        self.first = self.first or step
        self.step, self.last = step, time.monotonic()
        if step % TELL_EVERY == 0:
            values = ", ".join(f"{name} {value:.4f}" for name, value in parts.items())
            print(f"  step {step}, {100 * share:.0f} %, {self.step_ms or 0:.2f} ms a step: {values}", flush=True)

    def scored(self) -> None:
        """Exclude the time since the last step."""
        now = time.monotonic()
        self.began, self.last = self.began + now - self.last, now

    @property
    def step_ms(self) -> float | None:
        """Wall time of a step, including the loading of data onto a device and graph capture; None without a step."""
        return 1e3 * (self.last - self.began) / (self.step - self.first + 1) if self.first else None


def run_plan(
    sets: Mapping[str, Sequence[Sample]],
    out: Path,
    minutes: float,
    sitting: float,
    jobs: Sequence[Job] = JOBS,
    steps: int | None = None,
    began: float | None = None,
    small: bool = False,
) -> list[str]:
    """Run the unfinished jobs, within a sitting of so many minutes; `steps` ends every job early.

    The sitting began at `began` on the monotonic clock, or begins now. `small` changes all recipes by `SMALL`. Returns
    the names of the jobs that failed, including those that were finished with another recipe.
    """
    deadline = (time.monotonic() if began is None else began) + 60 * sitting
    whole, failed = sum(job.share for job in jobs), []
    for job in jobs:
        folder, given = out / job.name, job.share / whole * minutes
        recipe = recipe_of(job, steps, small)
        needed = given - read_seconds(folder / CHECKPOINT) / 60
        pace = steps_of(out / job.paced_by) if job.paced_by and job.paced_by not in failed else None
        if (done := recipe_done(folder)) == json.loads(msgspec.json.encode(recipe)):
            print(f"{job.name}: done before")
        elif done is not None:
            print(f"{job.name}: done before with other settings; give another OUT")
            failed.append(job.name)
        elif job.paced_by and pace is None:
            print(f"{job.name}: waits for {job.paced_by}")
        elif time.monotonic() + 60 * (needed + RESERVE_MINUTES) > deadline:
            print(f"{job.name}: needs {needed:.1f} minutes, more than this sitting has left")
        else:
            print(f"{job.name}: {f'{pace} steps' if pace else f'{needed:.1f} minutes at most'}", flush=True)
            budget = Budget(steps=pace) if pace else Budget(minutes=given)
            try:
                run_job(job, sets, out, budget, recipe)
            except Exception:  # whatever it is, it must not stop the other jobs
                print(f"{job.name}: failed\n{traceback.format_exc()}", flush=True)
                failed.append(job.name)
        write_summary(out)
    return failed


def recipe_of(job: Job, steps: int | None = None, small: bool = False) -> Recipe:
    """The job's recipe with its seed and the changes of `AS_PACKED` and `run_plan`'s `steps` and `small`."""
    recipe = read_recipe(job.recipe)
    fewest = min((each for each in (steps, recipe.steps) if each is not None), default=None)
    changes: dict[str, Any] = {"seed": job.seed, "steps": fewest, **AS_PACKED, **(SMALL if small else {})}
    return msgspec.structs.replace(recipe, **changes)


def run_job(job: Job, sets: Mapping[str, Sequence[Sample]], out: Path, budget: Budget, recipe: Recipe) -> None:
    """Train one network and store it with its scores."""
    folder = out / job.name
    folder.mkdir(parents=True, exist_ok=True)
    clock = Clock(time.monotonic())

    def report_score(step: int, score: float) -> None:
        clock.scored()
        print(f"  step {step}: {score:.3f} dB held out", flush=True)

    start = SHIPPED / job.start / NUMBERS if job.start else None
    held_out = HeldOut(sets["held_out"], report_score) if recipe.hold_out else None
    checkpoint = folder / CHECKPOINT
    network = train(
        recipe, pairs(recipe, sets), budget, checkpoint, clock.report, start=start, held_out=held_out
    ).half()
    steps, trials = read_trials(checkpoint)
    scores: dict[str, object] = {"steps": steps}
    if clock.step_ms:
        scores["step_ms"] = round(clock.step_ms, 3)
        scores["pictures_per_second"] = round(1e3 * recipe.batch / clock.step_ms, 1)
    if recipe.hold_out:
        scores["held_out_psnr_db"] = round(validate(copy.deepcopy(network).float(), sets["held_out"]), 3)
        scores["held_out_on_the_way"] = [(step, round(score, 3)) for step, score in trials]
    if sets.get("eval15"):
        scores["eval15"] = summary(list(evaluated(copy.deepcopy(network).float(), sets["eval15"])))
    store(network, recipe, folder, scores, read_origin(checkpoint))


def evaluated(network: Neid, samples: Sequence[Sample]) -> Iterator[Score]:
    """A score for each sample, named by its number. Unlike in use, the output does not pass through 4:2:0, and scores a
    few hundredths of a dB better for that."""
    for number, sample in enumerate(samples, start=1):
        bright = as_shown(network, sample.small)[0].permute(1, 2, 0).cpu().numpy()
        picture = np.rint(255 * bright).astype(np.uint8)
        figures = (measure(picture, sample.large) for measure in (psnr, psnr_gt_mean, ssim, mean_ratio))
        yield Score(str(number), *figures)


def recipe_done(folder: Path) -> dict[str, Any] | None:
    """The recipe of a finished job, as decoded JSON, else None."""
    card = folder / CARD
    return dict(json.loads(card.read_bytes())["recipe"]) if card.exists() else None


def steps_of(folder: Path) -> int | None:
    """The number of steps of a finished job, else None."""
    card = folder / CARD
    return int(json.loads(card.read_bytes())["scores"]["steps"]) if card.exists() else None


def pairs(recipe: Recipe, sets: Mapping[str, Sequence[Sample]]) -> tuple[Sequence[Sample], ...]:
    """LOL, night and day pairs, with the held-out ones if the recipe holds none out."""
    lol = [*sets["lol"], *([] if recipe.hold_out else sets["held_out"])]
    return lol, sets.get("night", ()), sets.get("day", ())


def write_summary(out: Path) -> None:
    """Write the scores and recipes of all finished jobs to `plan.json`."""
    cards = {path.parent.name: json.loads(path.read_bytes()) for path in sorted(out.glob(f"*/{CARD}"))}
    summary = {name: {"scores": card["scores"], "recipe": card["recipe"]} for name, card in cards.items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "plan.json").write_text(json.dumps(summary, indent=2) + "\n")


def pack(lol: Path, photos: Path, data: Path, limit: int, quality: int, share: float) -> None:
    """Write all pairs of LOL and a `share` of the night and day pairs as a few files."""
    from engines.data.photos import read_samples  # needs PyAV, which the GPU machine may lack

    (train_lol, night, day), held_out = read_samples(lol, photos, seed=1, wide=True)
    night, day = (some_of(pairs, share) for pairs in (night, day))
    sets = {"lol": train_lol, "held_out": held_out, "eval15": eval15_samples(lol), "night": night, "day": day}
    for path in write_packs(sets, data, limit, quality, exact=("eval15",)):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def some_of(samples: Sequence[Sample], share: float) -> list[Sample]:
    """A share of the samples, evenly spaced."""
    return [samples[n] for n in np.linspace(0, len(samples) - 1, round(share * len(samples)), dtype=int)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m engines.training.plan", description=(__doc__ or "").partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write all training pairs as a few files")
    for name in ("lol", "photos", "data"):
        packing.add_argument(name, type=Path)
    packing.add_argument("--limit", type=int, default=VOLUME_BYTES, help="largest file in bytes")
    packing.add_argument("--quality", type=int, default=QUALITY, help="AVIF quality of the bright pictures, 1 to 100")
    packing.add_argument("--share", type=float, default=1.0, help="share of the night and day pairs, 0 to 1")
    training = commands.add_parser("train", help="run the jobs that are not finished")
    for name in ("data", "out"):
        training.add_argument(name, type=Path)
    training.add_argument("--minutes", type=float, default=7.5, help="total minutes of all chosen jobs")
    training.add_argument("--sitting", type=float, default=9, help="minutes for this call")
    training.add_argument("--steps", type=int, help="end every job after so many steps, for a rehearsal")
    training.add_argument("--only", nargs="+", choices=[job.name for job in JOBS], help="run only these jobs")
    training.add_argument("--seed", type=int, help="replaces the seeds of the jobs")
    training.add_argument("--small", action="store_true", help="small enough for a CPU: neid-live, small batches")
    given, began = parser.parse_args(arguments), time.monotonic()
    if given.command == "pack":
        pack(given.lol, given.photos, given.data, given.limit, given.quality, given.share)
        return
    chosen = [job for job in JOBS if given.only is None or job.name in given.only]
    if given.seed is not None:
        chosen = [replace(job, seed=given.seed) for job in chosen]
    data = read_packs(given.data)
    if run_plan(data, given.out, given.minutes, given.sitting, chosen, given.steps, began, given.small):
        sys.exit(1)


if __name__ == "__main__":
    main()
