"""`nightbridge evaluate`: measures how good an engine's pictures are, by day and by night, still and moving."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import typer

from engines.choices import Precision, Runtime
from tools.common.report import JsonFile
from tools.enhance import find_files

if TYPE_CHECKING:
    from engines.door import Door

CLIP = Path(__file__).parent / "clip" / "day.mp4"
"""The clip that `--steady` measures on."""
TEXTS = 20
"""Its pictures that `--steady` shows with text, each with another."""
Split = Literal["eval15", "held-out", "our485"]
Row = TypeVar("Row")
Figures = Mapping[str, Any]
"""Measured values by name: numbers, texts, lists of rows, or nested figures."""


@dataclass(frozen=True)
class Failed:
    """Takes the place of a row that could not be measured."""

    reason: str


@dataclass(frozen=True)
class Measure:
    """One kind of measurement; it yields rows one by one, so that progress can be shown."""

    name: str
    total: int
    rows: Callable[[Door], Iterable[Any]]
    summary: Callable[[list[Any]], dict[str, Any]]
    """Turns the measured rows into figures; "failed" lists what went wrong, if anything did."""


def each_of(choices: object) -> Callable[[list[str] | None], list[str] | None]:
    """A callback that checks each value of a repeatable option against a `Literal`, which typer does not."""

    def check(values: list[str] | None) -> list[str] | None:
        for value in values or ():
            if value not in get_args(choices):
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(get_args(choices))}")
        return values

    return check


def evaluate(
    lol: Annotated[
        Path | None, typer.Option(help="Folder of LOL v1: score against its bright pictures.", exists=True)
    ] = None,
    split: Annotated[
        Split, typer.Option(help="Part of LOL: eval15, held-out (660 to 697 of our485) or our485.")
    ] = "eval15",
    full_size: Annotated[
        bool, typer.Option("--full-size", help="Enhance LOL's pictures at full size, and halve the output.")
    ] = False,
    daylight: Annotated[
        Path | None,
        typer.Option(
            help="Folder of daylight pictures and videos, which should only be doubled.", exists=True, file_okay=False
        ),
    ] = None,
    crf: Annotated[
        int | None, typer.Option(help="Compress --daylight by libx264 at this CRF first.", min=0, max=51)
    ] = None,
    steady: Annotated[bool, typer.Option("--steady", help="Measure steadiness on the shipped clip, darkened.")] = False,
    clips: Annotated[
        list[Path] | None,
        typer.Option(
            help="Daylight video, to be darkened and sent at 300 kbit/s; may be repeated.", exists=True, dir_okay=False
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of pictures without a reference.", exists=True, file_okay=False)
    ] = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(help="Picture file to write: input, bicubic double and output of --folder.", dir_okay=False),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="Shipped weights (default: field), or a folder with exported ones; may be repeated."),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(callback=each_of(Runtime), help="auto, tensorrt, torch or openvino; may be repeated."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(callback=each_of(Precision), help="auto, fp32, bf16, fp16 or int8; may be repeated."),
    ] = None,
    frames: Annotated[int, typer.Option(help="Pictures per scene of --steady and --clips.", min=2)] = 100,
    json: JsonFile = None,
) -> None:
    """Measure engines on LOL, by day, over time and on low-bit-rate video; compare several with one another.

    Pictures pass through the engine as in the relay. Several --weights count as seeds of one recipe: their mean and
    spread are printed. For several runtimes or precisions, the difference from the first is printed.
    """
    from rich.console import Console

    from engines.errors import EngineError
    from tools.common.report import print_values, write_json

    if (folder is None) != (contact_sheet is None):
        raise typer.BadParameter("--folder and --contact-sheet belong together")
    if crf is not None and daylight is None:
        raise typer.BadParameter("--crf is for --daylight")
    engines = list(product(weights or ["field"], runtime or ["auto"], precision or ["auto"]))
    if contact_sheet is not None and len(engines) > 1:
        raise typer.BadParameter("--contact-sheet shows one engine: name one of --weights, --runtime and --precision")
    measures = [
        *([lol_measure(lol, split, full_size)] if lol else []),
        *([daylight_measure(daylight, crf)] if daylight else []),
        *([steady_measure(frames)] if steady else []),
        *([clips_measure(clips, frames)] if clips else []),
        *([folder_measure(folder, contact_sheet)] if folder and contact_sheet else []),
    ]
    if not measures:
        raise typer.BadParameter("nothing to measure: give --lol, --daylight, --steady, --clips or --folder")
    results = [measure_engine(*engine, measures) for engine in engines]
    for name in {result["weights"]: None for result in results if result.get("lol", {}).get("learned_before")}:
        message = f"{name} was trained on these scenes: its scores on {split} do not show how it does on new ones"
        Console(stderr=True, soft_wrap=True).print(message, markup=False, highlight=False)
    console = Console()
    for result in results:
        print_values(console, without_rows(result))
    together = compare(results)
    if together:
        print_values(console, together)
    write_json(json, {**shown_first(results[0]), "engines": results, **together})
    failed = [reason for result in results for measure in measures for reason in result[measure.name].get("failed", ())]
    if failed:
        raise EngineError("\n".join(failed))


def shown_first(result: Mapping[str, Any]) -> dict[str, Any]:
    """The first engine and its LOL scores as top-level keys of the JSON: most calls ask for nothing else."""
    about = {key: value for key, value in result.items() if not isinstance(value, dict)}
    return {**about, **result.get("lol", {})}


def lol_measure(folder: Path, split: Split, full_size: bool) -> Measure:
    """Scores against LOL's bright pictures."""
    from engines.evaluation.evaluate import FULL_SIZE, HALF_SIZE, read_split, summary
    from engines.evaluation.evaluate import evaluate as scores_of

    pairs = read_split(folder, split)
    protocol = {"split": split, "protocol": FULL_SIZE if full_size else HALF_SIZE}
    return Measure(
        "lol", len(pairs), lambda engine: scores_of(engine, pairs, full_size), lambda rows: protocol | summary(rows)
    )


def daylight_measure(folder: Path, crf: int | None) -> Measure:
    """Scores on daylight pictures, which should only be doubled; pictures that are too dark are skipped."""
    from engines.data.kinds import PICTURES, VIDEOS
    from engines.evaluation.daylight import BRIGHT, DayScore, day_score, read_bright, summary

    paths = find_files(folder, PICTURES | VIDEOS)
    damage = "none" if crf is None else f"libx264 at CRF {crf}"

    def rows(engine: Door) -> Iterator[DayScore | Failed]:
        def scores(path: Path) -> Iterator[DayScore]:
            return (day_score(engine, name, picture, crf) for name, picture in read_bright(path))

        anything = False
        for row in rows_of_files(paths, scores):
            anything = True
            yield row
        if not anything:
            yield Failed(f"{folder} holds no daylight picture: none has a mean of {BRIGHT} of 255 or more")

    return Measure("daylight", len(paths), rows, lambda rows: {"damage": damage} | summary(rows))


def steady_measure(frames: int) -> Measure:
    """Flicker on a still and on a moving dark scene, and brightness of dark scenes with text."""
    from engines.data.clips import read_clip
    from engines.evaluation.steady import NOISE, moving_scene, still_scene
    from engines.evaluation.text import text_scenes

    clean = list(islice(read_clip(CLIP), frames))

    def scenes(engine: Door) -> Iterator[tuple[str, dict[str, float]]]:
        yield "still", still_scene(engine, clean[0], len(clean))
        yield "moving", moving_scene(engine, clean)
        yield "text", text_scenes(engine, clean[:: max(1, len(clean) // TEXTS)][:TEXTS])

    return Measure("steady", 3, scenes, lambda rows: {"frames": len(clean), "noise": NOISE, **dict(rows)})


def clips_measure(paths: Sequence[Path], frames: int) -> Measure:
    """Scores on daylight videos, darkened and encoded at a low bit rate."""
    from engines.evaluation.clips import score_clip, summary

    return Measure(
        "clips",
        len(paths),
        lambda engine: rows_of_files(paths, lambda path: [score_clip(engine, path, frames=frames)]),
        summary,
    )


def folder_measure(folder: Path, target: Path) -> Measure:
    """A contact sheet of pictures without a reference, to judge by eye."""
    from engines.data.kinds import PICTURES
    from engines.data.lol import read_picture
    from engines.evaluation.sheet import SheetRow, contact_sheet, sheet_row
    from tools.enhance import KNOWN, save

    if target.suffix.lower() not in PICTURES:
        raise typer.BadParameter(f"{target} is not a picture file; --contact-sheet must end in one of {KNOWN}")
    paths = find_files(folder, PICTURES)
    target.parent.mkdir(parents=True, exist_ok=True)

    def summary(rows: list[SheetRow]) -> dict[str, object]:
        told: dict[str, object] = {"contact_sheet": str(target)}
        try:
            save(contact_sheet(f"{folder.name}: {len(rows)} pictures", rows), target)
        except (OSError, ValueError) as error:  # such as more pictures than fit into a WebP file
            told = {"contact_sheet": None, "failed": [f"{target} cannot be written: {error}"]}
        pictures = [{"name": row.name, "mean_in": row.mean_in, "mean_out": row.mean_out} for row in rows]
        return told | {"pictures": pictures}

    return Measure(
        "folder",
        len(paths),
        lambda engine: rows_of_files(paths, lambda path: [sheet_row(engine, path.name, read_picture(path))]),
        summary,
    )


def rows_of_files(paths: Iterable[Path], rows_of: Callable[[Path], Iterable[Row]]) -> Iterator[Row | Failed]:
    """The rows of file after file. One that cannot be read or enhanced yields `Failed`, and the next one follows."""
    from engines.errors import EngineError

    for path in paths:
        try:
            yield from rows_of(path)
        except (OSError, EngineError) as error:
            yield Failed(str(error))


def measure_engine(weights: str, runtime: str, precision: str, measures: Sequence[Measure]) -> dict[str, Any]:
    """A description of one engine, and its figures by the names of the measures."""
    from engines.cards import find_weights
    from engines.evaluation.evaluate import learned_before
    from engines.runtime import EngineOptions, open_engine

    with open_engine(runtime, weights, EngineOptions(precision=precision, batch=1)) as engine:
        info = engine.info
        about: dict[str, Any] = {
            "weights": info.weights,
            "weights_id": info.weights_id,
            "runtime": info.runtime,
            "precision": info.precision,
        }
        figures = {measure.name: figures_of(measure, engine) for measure in measures}
    if "lol" in figures and learned_before(find_weights(weights).card, figures["lol"]["split"]):
        figures["lol"]["learned_before"] = True
    return about | figures


def figures_of(measure: Measure, engine: Door) -> dict[str, Any]:
    """The figures of one measure; "failed" lists what could not be measured."""
    rows = list(with_progress(measure.rows(engine), measure.name, measure.total))
    failed = [row.reason for row in rows if isinstance(row, Failed)]
    figures = measure.summary([row for row in rows if not isinstance(row, Failed)]) if len(failed) < len(rows) else {}
    failed += figures.pop("failed", [])
    return figures | ({"failed": failed} if failed else {})


def compare(results: Sequence[Figures]) -> dict[str, object]:
    """Mean and spread over several weights, differences between several runtimes or precisions; else empty."""
    from engines.evaluation.compare import difference, largest_difference, mean_and_spread

    def kind(result: Figures) -> str:
        return f"{result['runtime']} {result['precision']}"

    by_kind = [(name, list(group)) for name, group in groupby(sorted(results, key=kind), key=kind)]
    by_weights = [list(group) for _, group in groupby(results, key=lambda result: result["weights_id"])]
    several = [(name, {result["weights_id"]: result for result in group}.values()) for name, group in by_kind]
    seeds = {name: mean_and_spread(list(group)) for name, group in several if len(group) > 1}
    differences = []
    for first, *others in by_weights:
        for other in others:
            row: dict[str, Any] = {"weights": first["weights"], "between": f"{kind(other)} and {kind(first)}"}
            row |= difference(other, first)
            if "lol" in first:
                rows, references = (result["lol"]["pictures"] for result in (other, first))
                row["lol.psnr_db_largest"] = largest_difference(rows, references, "psnr_db")
            differences.append(row)
    return ({"seeds": seeds} if seeds else {}) | ({"differences": differences} if differences else {})


def without_rows(figures: Figures) -> dict[str, object]:
    """The figures to print: without a row for each picture."""
    return {
        key: without_rows(value) if isinstance(value, Mapping) else value
        for key, value in figures.items()
        if not isinstance(value, list)
    }


def with_progress(rows: Iterable[Row], name: str, total: int) -> Iterable[Row]:
    """The rows, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(rows, name, total=total, console=console, transient=True, disable=not console.is_terminal)
