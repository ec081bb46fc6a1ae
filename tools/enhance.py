"""`nightbridge enhance`: enhances a picture, a folder of pictures or a video file, without the wire."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engines.choices import Precision, Runtime
from engines.data.kinds import PICTURES

if TYPE_CHECKING:
    from PIL import Image

    from engines.data.lol import Picture
    from engines.door import Door

log = logging.getLogger(__name__)

KNOWN = ", ".join(sorted(PICTURES))
QUALITY = 95
"""Of JPEG, WebP and AVIF, of 100: high, to keep what the network has made."""


def enhance(
    source: Annotated[
        Path, typer.Argument(metavar="IN", exists=True, help="A picture, a folder of pictures or a video.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A file; a folder if IN is one.")],
    weights: Annotated[str, typer.Option(help="Shipped weights, or a folder with exported ones.")] = "field",
    runtime: Annotated[Runtime, typer.Option(help="Library that runs the network.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Number format of the network.")] = "auto",
) -> None:
    """Brighten IN, double its size and write it to OUT; a folder's pictures become PNG files of the same names."""
    from engines.runtime import EngineOptions, open_engine

    if target.exists() and target.samefile(source):
        raise typer.BadParameter(f"OUT {target} is the same file as IN and would overwrite it; choose another")
    jobs = picture_jobs(source, target)
    with open_engine(runtime, weights, EngineOptions(precision=precision, batch=1)) as engine:
        if jobs:
            enhance_pictures(engine, jobs)
        else:
            enhance_video(engine, source, target)


def picture_jobs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Each picture with its output file; empty if `source` is a video."""
    if source.is_dir():
        if target.exists() and not target.is_dir():
            raise typer.BadParameter(f"{target} is not a folder; if IN is a folder, OUT must be one too")
        return folder_jobs(source, target)
    if target.is_dir():
        raise typer.BadParameter(f"{target} is a folder; if IN is a file, OUT must be one too")
    if source.suffix.lower() not in PICTURES:
        require_container(target)
        return []
    if target.suffix.lower() not in PICTURES:
        raise typer.BadParameter(f"{target} is not a picture file; OUT must end in one of {KNOWN}")
    return [(source, target)]


def require_container(target: Path) -> None:
    """Raise `typer.BadParameter` if a video file cannot have this suffix."""
    from stream.errors import CodecError
    from stream.files.join import container_of

    try:
        container_of(target)
    except CodecError as error:
        raise typer.BadParameter(str(error)) from None


def folder_jobs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """The pictures of a folder, each with its PNG file."""
    sources: dict[Path, Path] = {}
    for path in find_files(source, PICTURES):
        file = target / f"{path.stem}.png"
        if file in sources:
            raise typer.BadParameter(f"{sources[file]} and {path} would both become {file}")
        sources[file] = path
    for file in sources:
        if file.exists() and any(file.samefile(path) for path in sources.values()):
            raise typer.BadParameter(
                f"{file} is one of IN's pictures and would be overwritten; choose another folder for OUT"
            )
    return [(path, file) for file, path in sources.items()]


def find_files(folder: Path, kinds: Collection[str]) -> list[Path]:
    """The files with these suffixes in a folder, sorted by name. Raises `typer.BadParameter` if there is none.

    Hidden files, such as `._a.jpg` from a Mac, are left out.
    """
    files = [path for path in folder.iterdir() if path.suffix.lower() in kinds and not path.name.startswith(".")]
    if not (found := sorted(path for path in files if path.is_file())):
        raise typer.BadParameter(f"{folder} holds no pictures ({', '.join(sorted(kinds))})")
    return found


def enhance_pictures(engine: Door, jobs: list[tuple[Path, Path]]) -> None:
    """Enhance every picture into its file, which appears when it is complete.

    If one of several fails, that is logged, and `EngineError` is raised at the end.
    """
    from rich.console import Console
    from rich.progress import track

    from engines.errors import EngineError

    console = Console(stderr=True)
    quiet = len(jobs) == 1 or not console.is_terminal
    failed = 0
    for source, target in track(jobs, "enhancing", console=console, transient=True, disable=quiet):
        try:
            enhance_file(engine, source, target)
        except (OSError, EngineError) as error:
            if len(jobs) == 1:
                raise
            failed += 1
            log.error("%s", error)
    (_, first), *others = jobs
    print(f"{len(jobs) - failed} pictures to {first.parent}" if others else f"1 picture to {first}")
    if failed:
        raise EngineError(f"{failed} of {len(jobs)} pictures could not be enhanced")


def enhance_file(engine: Door, source: Path, target: Path) -> None:
    """Enhance one picture into its file; raises `OSError` or `EngineError`, which name it."""
    from engines.data.lol import read_picture
    from engines.errors import EngineError

    picture = read_picture(source)
    try:
        save(enhance_image(engine, picture), target)
    except (OSError, ValueError) as error:
        raise EngineError(f"{source} to {target}: {error}") from error


def save(image: Image.Image, target: Path) -> None:
    """Write a picture file, which appears when it is complete, and its folder. Raises `OSError` or `ValueError`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    short = zlib.crc32(os.fsencode(target.name))  # the name may already be as long as possible
    part = target.with_name(f".part-{short:08x}.{os.getpid()}{target.suffix}")
    try:
        image.save(part, quality=QUALITY)
        part.replace(target)
    except OSError as error:
        if error.filename is not None:  # name the target, not the temporary file
            error.filename = str(target)
        raise
    finally:
        part.unlink(missing_ok=True)


def enhance_image(engine: Door, picture: Picture) -> Image.Image:
    """Enhance RGB (H, W, 3) uint8 to a Pillow image of twice the size. Raises `EngineError`.

    A large one is assembled in the image itself: converting it from an array would take as much memory again.
    """
    from PIL import Image

    from engines.door import SCALE
    from engines.evaluation.evaluate import enhance_picture, picture_colour
    from engines.tiles import enhance_tiles, is_large

    engine.set_limits(1, 1)  # keeps memory for one size at a time
    if not is_large(engine, picture):
        return Image.fromarray(enhance_picture(engine, picture))
    height, width = picture.shape[:2]
    image = Image.new("RGB", (SCALE * width, SCALE * height))
    for row, column, part in enhance_tiles(engine, picture, picture_colour(picture)):
        image.paste(Image.fromarray(part), (column, row))
    return image


def enhance_video(engine: Door, source: Path, target: Path) -> None:
    """Enhance one video file, and keep its sound."""
    from rich.console import Console
    from rich.progress import Progress

    from stream.files.convert import convert

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("enhancing", total=source.stat().st_size)
        done = convert(engine, source, target, lambda now: progress.update(task, completed=now.bytes_read))
    print(f"{done.pictures} pictures to {target}{said_of_lost(done.lost)}")


def said_of_lost(lost: int) -> str:
    """The end of a message with a number of pictures."""
    return f"; {lost} access units gave no picture" if lost else ""
