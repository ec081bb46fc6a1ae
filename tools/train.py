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
    from rich.console import Console
    from rich.progress import Progress

    from engines.errors import EngineMissing

    try:
        from engines import train as training
        from engines.pairs import read_samples
    except ImportError as error:
        raise EngineMissing(f"train needs the extra `train`: pip install 'nightbridge[train]' ({error})") from error

    plan = training.read_recipe(recipe)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    with console.status("reading pictures"):
        samples, held_out = read_samples(lol, photos, plan.seed, plan.hold_out)
    with Progress(console=console) as progress:
        task = progress.add_task("training", total=1.0)

        def report(step: int, share: float, parts: dict[str, float]) -> None:
            losses = ", ".join(f"{name} {value:.4f}" for name, value in parts.items())
            progress.update(task, completed=share, description=f"step {step}: {losses}")

        network = training.train(plan, samples, training.Budget(minutes), out / "checkpoint.pt", report, start)
    scores: dict[str, object] = {}
    if plan.hold_out:
        scores["held_out_psnr_db"] = round(training.validate(network, held_out), 3)
        console.print(f"raw PSNR {scores['held_out_psnr_db']} dB on {len(held_out)} pictures of held-out scenes")
    training.store(network, plan, out, scores)
    console.print(f"{out}: stored; `nightbridge export {out}` makes the files that runtimes open")
