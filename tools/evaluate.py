"""`nightbridge evaluate`: scores on LOL by the half-size protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    lol: Annotated[Path, typer.Option(help="Folder of LOL v1: `eval15/`, or `eval15.tar`.", exists=True)],
    weights: Annotated[str, typer.Option(help="Shipped weights, or a folder made by `export`.")] = "field",
    runtime: Annotated[str, typer.Option(help="auto, openvino or torch.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16 or int8.")] = "auto",
    part: Annotated[str, typer.Option(help="eval15, or our485 for the training pictures.")] = "eval15",
    json: Annotated[Path | None, typer.Option(help="Write all figures, a row for each picture.")] = None,
) -> None:
    """Halve LOL's dark pictures, enhance them to full size through the engine's door, and compare."""
    from rich.console import Console
    from rich.progress import track

    from engines.evaluate import evaluate as scores_of
    from engines.evaluate import summary
    from engines.lol import read_lol
    from engines.runtime import EngineOptions, open_engine
    from tools.report import print_values, write_json

    console = Console(stderr=True)
    pairs = read_lol(lol, part)
    with open_engine(runtime, weights, EngineOptions(precision=precision)) as engine:
        progress = track(
            scores_of(engine, pairs),
            "evaluating",
            total=len(pairs),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        figures = summary(list(progress))
        rows = figures.pop("pictures")
        values = {
            "weights": engine.info.weights,
            "weights_id": engine.info.weights_id,
            "runtime": engine.info.runtime,
            "precision": engine.info.precision,
            "protocol": "half-size input, antialiased bicubic; raw PSNR; SSIM on RGB",
            **figures,
        }
    print_values(Console(), values)
    write_json(json, {**values, "pictures": rows})
