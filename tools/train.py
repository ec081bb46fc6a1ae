"""`nightbridge train`: trains weights on pairs of pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import msgspec
import typer


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file, or a shipped recipe such as field.")],
    lol: Annotated[Path, typer.Option(help="Folder of LOL v1: `our485/`, or its tar shards.", exists=True)],
    photos: Annotated[
        Path | None,
        typer.Option(help="Folder of sharp daylight photos and clips, to be darkened.", exists=True, file_okay=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the weights and the checkpoint; a run found there resumes.", show_default="runs/RECIPE"
        ),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="weights.safetensors to start from, also of a wider network.", exists=True)
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="weights.safetensors of the teacher, for a recipe with lessons (`taught`).", exists=True),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Time budget, resumed runs included.", show_default="120 where no steps are set"),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Step budget, likewise; a recipe can have its own.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed in place of the recipe's.")] = None,
) -> None:
    """Train a network by a recipe within a budget, score it on held-out scenes, and store its weights."""
    from contextlib import ExitStack

    from rich.console import Console

    from engines.errors import EngineMissing
    from tools.train_progress import TrainProgress, open_log

    try:
        from engines.data.photos import read_samples
        from engines.training import train as training
    except ImportError as error:
        raise EngineMissing(f"train needs the extra `train`: pip install 'nightbridge[train]' ({error})") from error

    plan = training.read_recipe(recipe)
    if seed is not None:
        plan = msgspec.structs.replace(plan, seed=seed)
    if photos is None and any(plan.mix[1:]):
        raise typer.BadParameter(f"recipe {recipe} also needs daylight photos: give their folder with --photos")
    if any(plan.taught) and teacher is None:
        raise typer.BadParameter(f"recipe {recipe} has lessons (`taught`): give --teacher, the weights of a network")
    if teacher is not None and not any(plan.taught):
        raise typer.BadParameter(f"recipe {recipe} has no lessons (`taught`), so it takes no --teacher")
    if minutes is None:
        minutes = math.inf if steps or plan.steps else 120
    out = out or Path("runs") / Path(recipe).stem
    console = Console(stderr=True)
    with console.status("reading pictures"):
        photos = photos if any(plan.mix[1:]) else None
        samples, held_out = read_samples(lol, photos, plan.seed, plan.hold_out, plan.wide > 0)
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        log = open_log(out / "log", console)
        if log is not None:
            stack.callback(log[1])
        progress = stack.enter_context(TrainProgress(console, plan.batch, log[0] if log else None))
        network = training.train(
            plan,
            samples,
            training.Budget(minutes, steps or math.inf),
            out / "checkpoint.pt",
            progress.report,
            start,
            training.HeldOut(held_out, progress.report_score) if plan.hold_out else None,
            teacher=teacher,
        )
    scores: dict[str, object] = {}
    origin = training.read_origin(out / "checkpoint.pt")
    if plan.hold_out and not origin.get("knows_all"):
        scores["held_out_psnr_db"] = round(training.validate(network, held_out), 3)
        console.print(f"raw PSNR {scores['held_out_psnr_db']} dB on {len(held_out)} pictures of held-out scenes")
    if progress.step_ms:
        console.print(f"{progress.step_ms:.1f} ms a step, {progress.pictures_per_second:.1f} pictures/s")
    if not progress.steps:
        console.print(
            "earlier runs have used up the budget, so nothing was trained: give a larger budget or another --out"
        )
    training.store(network, plan, out, scores, origin)
    console.print(f"{out}: stored; `nightbridge export {out}` makes the files that runtimes open")
