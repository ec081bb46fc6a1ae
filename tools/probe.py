"""`nightbridge probe`: what does a source hold, and what would the relay do with it?"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from tools.common.report import JsonFile, print_values, write_json
from tools.common.signals import stop_on_signals_then_reraise

if TYPE_CHECKING:
    from stream.frame import Frame, SourcePacket
    from stream.settings import FeedSettings
    from stream.sources.segment import Segment

REORDERED, LONGEST_GAP = 2.0, 60.0
"""Seconds: a time stamp further back, or further ahead, from the one before it counts as a jump."""


def probe(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="rtsp://, rtsps://, udp://, http:// or https:// address, an SDP file or recordings."
        ),
    ],
    json: JsonFile = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Seconds of video to look at.")] = 5,
    username: Annotated[str | None, typer.Option(help="User name for the source; any characters.")] = None,
    password_file: Annotated[Path | None, typer.Option(metavar="FILE", help="File that holds the password.")] = None,
    transport: Annotated[
        Literal["auto", "udp", "tcp"], typer.Option(help="RTSP transport; auto: UDP, else TCP.")
    ] = "auto",
    tls_ca_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CA certificates that verify the source's.")
    ] = None,
) -> None:
    """Say what the source at URL holds and what the relay would do with it, or what is wrong with it."""
    from stream.errors import SettingsError, SourceError

    stop = Event()
    try:
        with stop_on_signals_then_reraise(stop.set):
            values = survey(feed_at(url, username, password_file, transport, tls_ca_file), seconds, stop)
    except SourceError as error:
        write_json(json, {"error": str(error), "reason": error.reason})
        if error.reason == "address":  # wrong use, exit code 2
            raise SettingsError(str(error)) from None
        raise
    print_values(Console(), values)
    write_json(json, values)


def feed_at(
    url: str,
    username: str | None = None,
    password_file: Path | None = None,
    transport: Literal["auto", "udp", "tcp"] = "auto",
    tls_ca_file: Path | None = None,
) -> FeedSettings:
    """A feed with all other settings at their defaults; raises `SettingsError` for values that are not allowed."""
    from pydantic import ValidationError

    from stream.address import redact
    from stream.errors import SettingsError
    from stream.settings import FeedSettings

    try:
        return FeedSettings(
            url=url, username=username, password_file=password_file, transport=transport, tls_ca_file=tls_ca_file
        )
    except ValidationError as error:
        mistake = error.errors()[0]
        named = {"url": redact(url), "password_file": password_file, "tls_ca_file": tls_ca_file}
        value = named.get(str(mistake["loc"][0]))
        raise SettingsError(f"{str(value)!r}; must be {mistake['ctx']['error']}") from None


def survey(feed: FeedSettings, seconds: float, stop: Event | None = None) -> dict[str, object]:
    """What `seconds` of the first segment show; raises `SourceError` for a source that cannot be relayed.

    Setting `stop`, from any thread, ends this within a second; what it returns or raises then means nothing.
    """
    from stream.address import redact
    from stream.errors import SourceUnsupported
    from stream.source import open_source

    with open_source(feed, stop) as source:
        segment = next(source.segments())
        seen = look(segment, seconds)
        if seen.ended:
            next(source.segments(), None)  # raises if it should not have ended
        if seen.picture is None:
            keys = sum(unit.key for unit in seen.units)
            raise SourceUnsupported(
                f"{redact(feed.url)}: no picture could be decoded from {len(seen.units)} access units, "
                f"{keys} of them key frames",
                reason="no video",
            )
        return {
            "source": redact(feed.url),
            "container": segment.info.container,
            "video": video_values(segment, seen, seen.picture),
            "data": seen.data,
            "ignored": segment.info.ignored,
            "relay": relay_values(feed, seen.picture, seen.clock),
        }


@dataclass(frozen=True)
class Unit:
    """An access unit that was seen."""

    seconds: float
    """Since the first one, by the source's time stamps, or by its frame rate where they are missing or jump."""
    stamp: float | None
    """The source's own time stamp, in seconds."""
    size: int
    """Bytes."""
    key: bool


@dataclass
class Sight:
    """What was seen of a segment."""

    data: dict[str, int]
    """Packets of the data streams, by codec."""
    units: list[Unit] = field(default_factory=list)
    picture: Frame | None = None
    """The first decoded one."""
    clock: str = "arrival"
    """Capture clock of the latest picture."""
    states: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    interlaced: bool = False
    ended: bool = False
    """Whether the segment ended before the time was up."""


def look(segment: Segment, seconds: float) -> Sight:
    """Read and decode `seconds` of a segment: of a recording's own time, else of real time."""
    from stream.decode import Decoder

    seen = Sight(dict.fromkeys(segment.info.data, 0), ended=True)
    decoder = Decoder(segment.video)
    began = time.monotonic()
    for packet in segment.packets():
        if packet.kind == "data":
            seen.data[packet.packet.stream.name or "unknown"] += 1
            continue
        step = float(1 / segment.rate) if segment.rate else 0.0
        seen.units.append(unit_of(packet, seen.units[-1] if seen.units else None, step))
        seen.lost -= packet.packet.is_discard  # not lost: an edit list cuts it off
        note(seen, decoder.decode(packet))
        elapsed = seen.units[-1].seconds if segment.recorded else time.monotonic() - began
        if elapsed >= seconds:
            seen.ended = False
            break
    note(seen, decoder.flush())
    seen.lost += decoder.lost
    seen.interlaced = decoder.deinterlaces
    return seen


def note(seen: Sight, frames: list[Frame]) -> None:
    """Add decoded frames to what was seen."""
    for frame in frames:
        seen.picture = seen.picture or frame
        seen.clock = frame.capture_clock
        seen.states[frame.state] += 1


def unit_of(packet: SourcePacket, before: Unit | None, step: float) -> Unit:
    """The `Unit` of a packet; without a usable time stamp it comes `step` seconds after the one `before`."""
    ticks = packet.packet.dts if packet.packet.dts is not None else packet.packet.pts
    stamp = None if ticks is None else float(ticks * packet.packet.time_base)
    if before and before.stamp is not None and stamp is not None:
        told = stamp - before.stamp
        step = told if -REORDERED <= told <= LONGEST_GAP else step
    return Unit(before.seconds + step if before else 0.0, stamp, packet.packet.size, packet.packet.is_keyframe)


def video_values(segment: Segment, seen: Sight, picture: Frame) -> dict[str, object]:
    """The video stream: what it declares, and what was measured."""
    from stream.codecs.plain import states_matrix

    context = segment.video.codec_context
    keys = [unit.seconds for unit in seen.units if unit.key]
    duration = seen.units[-1].seconds
    measured = sum(unit.size for unit in seen.units[:-1]) * 8 / duration if duration > 0 else None
    return {
        "codec": segment.info.codec,
        "profile": context.profile,
        "width": picture.width,
        "height": picture.height,
        "pixel_format": context.pix_fmt,
        "interlaced": seen.interlaced,
        "rate": float(segment.rate) if segment.rate else None,
        "bit_rate": round(measured) if measured else segment.info.bit_rate,
        "key_interval_seconds": (keys[-1] - keys[0]) / (len(keys) - 1) if len(keys) > 1 else None,
        "matrix": picture.colour.matrix,
        "matrix_stated": states_matrix(context),
        "full_range": picture.colour.full_range,
        "grey": picture.colour.grey,
        "seconds": duration,
        "access_units": len(seen.units),
        "pictures": dict(seen.states),
        "lost": seen.lost,
    }


def refusal(feed: FeedSettings, picture: Frame) -> str | None:
    """Why the relay would refuse pictures of this size with the default settings; None if it would not."""
    from engines.door import EngineInfo
    from stream.frame import BYTES_PER_PIXEL, memory_for

    width, height = picture.width, picture.height
    (least_width, least_height), (most_width, most_height) = EngineInfo.smallest, EngineInfo.largest
    if not (least_width <= width <= most_width and least_height <= height <= most_height):
        allowed = f"{least_width}x{least_height} to {most_width}x{most_height}"
        return f"its pictures are {width}x{height}; they must be {allowed}"
    if BYTES_PER_PIXEL * width * height > feed.memory:
        return f"its pictures are {width}x{height}; {memory_for(width, height)}"
    return None


def relay_values(feed: FeedSettings, picture: Frame, clock: str) -> dict[str, object]:
    """What the relay would publish with the default settings."""
    from engines.door import SCALE

    return {
        "decoded_to": picture.picture.format.name,
        "capture_clock": clock,
        "width": SCALE * picture.width,
        "height": SCALE * picture.height,
        "codec": feed.encoder.codec,
        "bit_rate": feed.encoder.bit_rate,
        "refused": refusal(feed, picture),
    }
