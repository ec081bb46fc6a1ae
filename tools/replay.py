"""`nightbridge replay`: recorded missions through the engine, to viewers or to files."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated

import typer

from tools.common.report import JsonFile, write_json
from tools.common.wire_options import as_endpoint, as_feed_name


def as_speed(text: str) -> float:
    """A multiple of a recording's own speed; infinity for `max`."""
    try:
        speed = float(text) if text != "max" else float("inf")
    except ValueError:
        speed = 0.0
    if not (0.01 <= speed <= 100 or text == "max"):
        raise typer.BadParameter(f"{text!r}; must be a number from 0.01 to 100, or max")
    return speed


def replay(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", exists=True, help="Recordings or folders of them.")],
    to: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write files there, and publish nothing; for one recording also a file."),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            parser=as_speed,
            metavar="NUMBER|max",
            help="1 is real time, 4 four times as fast, max as fast as possible.",
            show_default="1; for files max",
        ),
    ] = None,
    feed: Annotated[str, typer.Option(parser=as_feed_name, metavar="NAME", help="Name of the feed.")] = "replay",
    endpoint: Annotated[
        str | None,
        typer.Option(
            parser=as_endpoint, metavar="ADDRESS", help="Where viewers connect.", show_default="that of the settings"
        ),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="At max, begin without a viewer.")] = False,
    from_start: Annotated[bool, typer.Option("--from-start", help="Start over; forget earlier calls.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Settings of relay, engine and encoder.", show_default="none"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Shipped weights, or a path.", show_default="those of the settings")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Play recorded missions through the engine, one after another: to viewers, as a relay does, or to files.

    Nothing is dropped. After a stop or a kill, the same command resumes where it was.
    """
    from stream.errors import SourceUnsupported
    from stream.settings import load_settings, require_weights
    from stream.sources.recording import find_recordings
    from tools.replay_files import file_jobs, to_files
    from tools.replay_wire import ReplayRequest, to_wire

    if to is not None and speed not in (None, float("inf")):
        raise typer.BadParameter("--to always converts as fast as possible: leave out --speed or --to")
    settings = load_settings(config)
    relay = settings.relay.model_copy(update={"endpoint": endpoint} if endpoint else {})
    engine = settings.engine.model_copy(update={"weights": weights} if weights else {})
    settings = settings.model_copy(update={"relay": relay, "engine": engine})
    require_weights(engine, "--weights:" if weights else f"{config or 'environment'}: [engine]")
    logging.getLogger().setLevel(settings.relay.log_level.upper())
    try:
        files = find_recordings(paths)
    except SourceUnsupported as error:
        raise typer.BadParameter(str(error)) from None
    began = time.monotonic()
    if to is not None:
        done = to_files(settings, file_jobs(files, to), from_start)
    else:
        request = ReplayRequest(paths, files, feed, None if speed == float("inf") else speed or 1.0)
        done = to_wire(settings, request, wait=not no_wait, from_start=from_start)
    write_json(json, done | {"seconds": round(time.monotonic() - began, 3)})
    if not done["complete"]:
        raise typer.Exit(1)
