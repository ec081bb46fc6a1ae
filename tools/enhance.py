"""`nightbridge enhance`: a picture, a folder of pictures or a video file, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from engines.door import Engine

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".avif", ".tif", ".tiff"}


def enhance(
    source: Annotated[
        Path, typer.Argument(metavar="IN", exists=True, help="A picture, a folder of pictures, a video.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A file, or a folder for a folder.")],
    weights: Annotated[str, typer.Option(help="Shipped weights, or a folder made by `export`.")] = "field",
    runtime: Annotated[str, typer.Option(help="auto, openvino or torch.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16 or int8.")] = "auto",
) -> None:
    """Light up and double IN, and write it to OUT; a folder's pictures become PNG files of the same names."""
    from engines.runtime import EngineOptions, open_engine

    is_picture = source.suffix.lower() in PICTURES
    if source.is_dir():
        jobs = [
            (path, target / f"{path.stem}.png") for path in sorted(source.iterdir()) if path.suffix.lower() in PICTURES
        ]
        if not jobs:
            raise typer.BadParameter(f"{source} holds no pictures ({', '.join(sorted(PICTURES))})")
        target.mkdir(parents=True, exist_ok=True)
    else:
        jobs = [(source, target)]
        target.parent.mkdir(parents=True, exist_ok=True)
    with open_engine(runtime, weights, EngineOptions(precision=precision)) as engine:
        if source.is_dir() or is_picture:
            enhance_pictures(engine, jobs)
        else:
            enhance_video(engine, source, target)


def enhance_pictures(engine: Engine, jobs: list[tuple[Path, Path]]) -> None:
    """Every picture to its file; a file is there when it is complete."""
    from PIL import Image
    from rich.console import Console
    from rich.progress import track

    from engines.errors import EngineError
    from engines.evaluate import enhance_picture
    from engines.lol import read_picture

    console = Console(stderr=True)
    for source, target in track(jobs, "enhancing", console=console, transient=True, disable=len(jobs) == 1):
        part = target.with_name(f".{target.stem}.part{target.suffix}")
        try:
            Image.fromarray(enhance_picture(engine, read_picture(source))).save(part)
            part.replace(target)
        except (OSError, ValueError) as error:
            raise EngineError(f"{source} to {target}: {error}") from error
        finally:
            part.unlink(missing_ok=True)
    print(f"{len(jobs)} pictures to {jobs[0][1] if len(jobs) == 1 else jobs[0][1].parent}")


def enhance_video(engine: Engine, source: Path, target: Path) -> None:
    """One video file, with its sound."""
    from rich.console import Console
    from rich.progress import Progress

    from stream.convert import convert

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("enhancing", total=None)
        count = convert(engine, source, target, lambda done, total: progress.update(task, completed=done, total=total))
    print(f"{count} pictures to {target}")
