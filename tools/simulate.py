"""`nightbridge simulate`: makes a night camera of a daylight clip."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from tools.common.signals import stop_on_signals

if TYPE_CHECKING:
    from stream.simulator.camera import NightCamera, Sent

LINE_SECONDS = 10
"""Seconds of video between two lines if the output is no terminal."""
FINEST_RATE = 100_000
"""The largest denominator of a rate: FFmpeg's fractions have 32 bits."""


def as_size(text: str) -> tuple[int, int]:
    """Width and height of a text such as 352x288."""
    width, mark, height = text.lower().partition("x")
    if not (mark and width.isdecimal() and height.isdecimal()):
        raise typer.BadParameter(f"{text!r}; must be WIDTHxHEIGHT such as 352x288")
    return int(width), int(height)


def as_rate(text: str) -> Fraction:
    """Pictures per second of a text such as 25, 12.5 or 30000/1001; 29.97002997 means the last one, too."""
    try:
        return Fraction(text).limit_denominator(FINEST_RATE)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"{text!r}; must be a number such as 25, 12.5 or 30000/1001") from None


def as_bit_rate(text: str) -> int:
    """Bits per second of a text such as 300k."""
    from pydantic import TypeAdapter, ValidationError

    from stream.settings.values import bits_from
    from stream.simulator.camera import LOWEST_BIT_RATE

    try:
        return TypeAdapter[int](Annotated[int, bits_from(LOWEST_BIT_RATE)]).validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r}; must be {error.errors()[0]['ctx']['error']}") from None


def simulate(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", exists=True, dir_okay=False, help="A daylight video.")],
    url: Annotated[
        str, typer.Argument(metavar="URL", help="udp://HOST:PORT to send to, or rtsp://HOST:PORT/PATH to serve.")
    ],
    exposure: Annotated[float, typer.Option(min=0, max=1, help="Share of the light that is left; 1 is day.")] = 0.02,
    photons: Annotated[float, typer.Option(min=1, help="Photons of a white daylight pixel; fewer are noisier.")] = 4000,
    read_noise: Annotated[float, typer.Option(min=0, max=1, help="Standard deviation; white is 1.")] = 0.0005,
    bit_rate: Annotated[
        int,
        typer.Option(
            parser=as_bit_rate, metavar="RATE", help="Bit rate of the video, such as 300k or 1M.", show_default="300k"
        ),
    ] = 300_000,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Size of the sent pictures.", show_default="half of the clip's")
    ] = None,
    rate: Annotated[
        Fraction | None,
        typer.Option(parser=as_rate, metavar="NUMBER", help="Pictures per second.", show_default="the clip's"),
    ] = None,
    codec: Annotated[Literal["h264", "hevc", "mpeg4"], typer.Option(help="Codec of the sent video.")] = "h264",
    loop: Annotated[bool, typer.Option("--loop", help="Begin again when the clip is over.")] = False,
    seconds: Annotated[float | None, typer.Option(help="Seconds of video to send.", show_default="no limit")] = None,
    loss: Annotated[float, typer.Option(min=0, max=100, help="Percentage of datagrams to lose.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of noise and loss; the same seed sends the same bytes.")] = 0,
) -> None:
    """Be a night camera: darken CLIP, add sensor noise, halve its size, send it to or serve it at URL in real time."""
    from engines.data.darken import Night
    from stream.simulator.camera import NightCamera

    try:
        camera = NightCamera(
            clip,
            url,
            Night(exposure, photons, read_noise),
            size=as_size(size) if size else None,
            rate=rate,
            bit_rate=bit_rate,
            codec=codec,
            loop=loop,
            seconds=seconds,
            loss=loss / 100,
            seed=seed,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with stop_on_signals(camera.stop):
        run_camera(camera, Console())


def run_camera(camera: NightCamera, console: Console) -> None:
    """Run the camera and show progress: one line that changes on a terminal, a line now and then elsewhere."""
    console.print(f"{camera.clip} to {camera.url} at {camera.bit_rate / 1000:g} kbit/s", markup=False, highlight=False)
    if console.is_terminal:
        with console.status("starting") as status:
            camera.run(lambda sent: status.update(as_line(sent)))
    else:
        camera.run(periodic_report(console))
    console.print(as_line(camera.sent), highlight=False)


def periodic_report(console: Console) -> Callable[[Sent], None]:
    """A callback that prints a line after every `LINE_SECONDS` of video."""
    due = LINE_SECONDS

    def report(sent: Sent) -> None:
        nonlocal due
        if sent.seconds > due:
            console.print(as_line(sent), highlight=False)
            due += LINE_SECONDS

    return report


def as_line(sent: Sent) -> str:
    """What was sent, for people."""
    return (
        f"sent {sent.pictures} pictures, {sent.seconds:.1f} s, {sent.bit_rate / 1000:.0f} kbit/s;"
        f" {sent.lost} of {sent.datagrams} datagrams lost"
    )
