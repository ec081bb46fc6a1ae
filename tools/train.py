"""`nightbridge train`: from pairs of pictures to weights of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    out: Annotated[Path, typer.Argument(help="Folder for the weights and the checkpoint; an old run there goes on.")],
    lol: Annotated[Path, typer.Option(help="Folder of LOL v1: `our485/`, or its tar shards.", exists=True)],
    photos: Annotated[Path, typer.Option(help="Folder of sharp photos by day, to be darkened.", exists=True)],
    start: Annotated[
        Path | None, typer.Option(help="weights.safetensors to begin with, in place of random ones.", exists=True)
    ] = None,
    recipe: Annotated[str, typer.Option(help="A shipped recipe, or a TOML file.")] = "field",
    minutes: Annotated[float, typer.Option(min=0.01, help="Budget, over all sittings.")] = 120,
) -> None:
    """Train a network by a recipe for some minutes, score it on held-out scenes, and store its weights."""
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
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    with console.status("reading pictures"):
        samples, held_out = read_samples(lol, photos, plan.seed, plan.hold_out)
    with ExitStack() as stack:
        log = open_log(out / "log", console)
        if log is not None:
            stack.callback(log[1])
        progress = stack.enter_context(TrainProgress(console, plan.batch, log[0] if log else None))
        network = training.train(
            plan,
            samples,
            training.Budget(minutes),
            out / "checkpoint.pt",
            progress.report,
            start,
            training.Trial(held_out, progress.told) if plan.hold_out else None,
        )
    scores: dict[str, object] = {}
    if plan.hold_out:
        scores["held_out_psnr_db"] = round(training.validate(network, held_out), 3)
        console.print(f"raw PSNR {scores['held_out_psnr_db']} dB on {len(held_out)} pictures of held-out scenes")
    if progress.step_ms:
        console.print(f"{progress.step_ms:.1f} ms a step, {progress.pictures_per_second:.1f} pictures/s")
    training.store(network, plan, out, scores)
    console.print(f"{out}: stored; `nightbridge export {out}` makes the files that runtimes open")
