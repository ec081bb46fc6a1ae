"""`nightbridge view`: what a relay publishes, in a window, as one picture or as figures."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import asdict
from rich.console import Console

from stream.errors import StreamError
from tools.report import JsonFile, in_a_folder, in_columns, print_values, write_json, write_whole
from tools.signals import stopped_by_signals
from tools.view_figures import Figures
from tools.wire_options import Endpoint, RelayKey, SecretKey, as_feed_name, viewer_keys

if TYPE_CHECKING:
    from stream.subscribe import Subscriber, ViewerKeys
    from stream.wire import Kind, Message, Stamped, Status

log = logging.getLogger(__name__)

SNAPSHOT_SECONDS = 10.0
"""The longest that `--snapshot` waits for a picture."""

FEEDS_SECONDS = 10.0
"""The longest that `--feeds` listens: a relay tells of its feeds about once a second."""

TURN_SECONDS = 0.05
"""The longest that a message is waited for before the window and the clock are looked at."""

QUIET_SECONDS = 5.0
"""After which it is told that nothing has come yet."""

MOST_A_TURN = 8
"""Messages between two looks at the window, on a machine that cannot keep up."""

AMBER, RED = (255, 176, 0), (230, 30, 30)
"""Frames around pictures that are damaged, and around old ones."""


def as_png(path: Path | None) -> Path | None:
    """The path of a picture file that can be written."""
    if path is not None and path.suffix.lower() != ".png" and (path.is_file() or not path.exists()):
        raise typer.BadParameter(f"{path}; must end in .png")
    return in_a_folder(path)


def view(
    endpoint: Endpoint,
    feed: Annotated[
        str | None,
        typer.Argument(parser=as_feed_name, metavar="FEED", help="Its name.", show_default="the first heard"),
    ] = None,
    snapshot: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, callback=as_png, metavar="FILE.png", help="Write one picture there and end; no window."
        ),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print age, loss and rate; no window.")] = False,
    feeds: Annotated[bool, typer.Option("--feeds", help="Print which feeds there are, and how they do.")] = False,
    seconds: Annotated[float | None, typer.Option(min=0, help="How long.", show_default="no limit")] = None,
    json: JsonFile = None,
    source: Annotated[bool, typer.Option("--source", help="The camera's own pictures, not the enhanced.")] = False,
    relay_key: RelayKey = None,
    secret_key: SecretKey = None,
) -> None:
    """Show FEED in a window until that is closed; q and Escape close it, too."""
    if (snapshot is not None) + stats + feeds > 1:
        raise typer.BadParameter("--snapshot, --stats and --feeds do not go together")
    if feeds and (feed or source):
        raise typer.BadParameter("--feeds tells of all feeds, and shows no pictures: it takes no FEED and no --source")
    if json and not (stats or feeds):
        raise typer.BadParameter("--json writes what --stats or --feeds prints, and both are missing")
    kind: Kind = "source" if source else "video"
    keys = viewer_keys(relay_key, secret_key)
    stop = Event()
    if snapshot or feeds:
        longest = SNAPSHOT_SECONDS if snapshot else FEEDS_SECONDS
        seconds = min(seconds or longest, longest)
    span = Span(stop, seconds)
    with stopped_by_signals(stop.set):
        if feeds:
            list_feeds(endpoint, keys, json, span)
            return
        wanted = Wanted(endpoint, feed or first_feed(endpoint, kind, keys, span), kind, keys)
        if snapshot:
            take_snapshot(wanted, snapshot, span)
        elif stats:
            print_stats(wanted, json, span, Console())
        else:
            show_window(wanted, span)


class Span:
    """The time from now until `stop` is set or `seconds` are over."""

    def __init__(self, stop: Event, seconds: float | None) -> None:
        self.seconds = seconds
        self.stop = stop
        self._end = None if seconds is None else time.monotonic() + seconds

    def __str__(self) -> str:
        return "" if self.seconds is None else f" within {self.seconds:g} s"

    def is_over(self) -> bool:
        """Whether it is time to end."""
        return self.stop.is_set() or (self._end is not None and time.monotonic() >= self._end)


@dataclass(frozen=True)
class Wanted:
    """What to look at, and where."""

    endpoint: str
    feed: str
    kind: Kind
    keys: ViewerKeys | None

    def subscribe(self) -> Subscriber:
        """A subscriber, not opened yet."""
        from stream.subscribe import Subscriber

        return Subscriber(self.endpoint, self.feed, (self.kind,), keys=self.keys)

    def __str__(self) -> str:
        return f"feed {self.feed} at {self.endpoint}"

    def missing(self, span: Span) -> StreamError:
        """That no picture came."""
        return StreamError(f"no picture of {self}{span}")


def first_feed(endpoint: str, kind: Kind, keys: ViewerKeys | None, span: Span) -> str:
    """The first feed that is heard. Raises `StreamError` where there is none."""
    from stream.subscribe import Subscriber

    with Subscriber(endpoint, None, (kind,), keys=keys) as subscriber:
        for messages in turns(subscriber, span, f"any feed at {endpoint}"):
            if messages:
                return messages[0].header.feed
    raise StreamError(f"no feed at {endpoint}{span}")


def list_feeds(endpoint: str, keys: ViewerKeys | None, json: Path | None, span: Span) -> None:
    """Print a line for each feed of a relay, as soon as that tells of them. Raises `StreamError` where it does not."""
    from stream.subscribe import Subscriber
    from stream.wire import ALL_FEEDS, decode_feeds

    with Subscriber(endpoint, ALL_FEEDS, ("feeds",), keys=keys) as subscriber:
        for messages in turns(subscriber, span, f"any feed at {endpoint}"):
            if messages:
                feeds = decode_feeds(messages[-1].payload)
                for line in in_columns([about_feed(name, feeds[name]) for name in sorted(feeds)]):
                    print(line)
                write_json(json, {"feeds": {name: asdict(feeds[name]) for name in sorted(feeds)}})
                return
    raise StreamError(f"no relay tells of its feeds at {endpoint}{span}")


def about_feed(name: str, status: Status) -> tuple[str, ...]:
    """What stands in the columns of `--feeds`."""
    dropped, lost = sum(status.dropped.values()), sum(status.lost.values())
    counts = (f"{status.received} received", f"{status.published} published", f"{dropped} dropped", f"{lost} lost")
    return (name, status.state, *counts, status.reason or "")


def turns(subscriber: Subscriber, span: Span, wanted: object) -> Iterator[list[Message]]:
    """What has come, a few messages at a time, and nothing as often as nothing comes, until the span is over.

    Where nothing of what is `wanted` has come for a while at the beginning, that is told: ZeroMQ goes on trying to
    connect for ever, and does not say why it fails.
    """
    quiet_until: float | None = time.monotonic() + QUIET_SECONDS
    while not span.is_over():
        messages = []
        message = subscriber.receive(TURN_SECONDS)
        while message is not None:
            messages.append(message)
            message = subscriber.receive(0) if len(messages) < MOST_A_TURN else None
        if messages:
            quiet_until = None
        elif quiet_until is not None and time.monotonic() >= quiet_until:
            quiet_until = None
            log.warning("nothing of %s yet: is the relay running there, and does it have that feed?", wanted)
        yield messages


def take_snapshot(wanted: Wanted, path: Path, span: Span) -> None:
    """Write the first picture that comes as PNG. Raises `StreamError` where none comes, and `OSError`."""
    from PIL import Image

    from stream.view import PictureDecoder

    decoder = PictureDecoder()
    with wanted.subscribe() as subscriber:
        for messages in turns(subscriber, span, wanted):
            for picture in (picture for message in messages for picture in decoder.decode(message)):
                file = BytesIO()
                Image.fromarray(decoder.rgb(picture)).save(file, format="PNG")
                write_whole(path, file.getvalue())
                return
    raise wanted.missing(span)


def print_stats(wanted: Wanted, json: Path | None, span: Span, console: Console) -> None:
    """Print a line a second and all figures at the end. Raises `StreamError` where no picture came."""
    figures, due = Figures(), time.monotonic() + 1
    with wanted.subscribe() as subscriber:
        for messages in turns(subscriber, span, wanted):
            for message in messages:
                figures.add(message)
            if time.monotonic() >= due:
                due += 1
                console.print(figures.line(subscriber), markup=False, highlight=False)
        values = figures.values(subscriber)
    print_values(console, values)
    write_json(json, values)
    if not figures.pictures:
        raise wanted.missing(span)


def show_window(wanted: Wanted, span: Span) -> None:
    """Show the newest picture, and tell by a coloured frame and the caption where it is damaged or old."""
    from stream.view import PictureDecoder
    from tools.window import Window

    decoder, figures = PictureDecoder(), Figures()
    picture, told = None, 0
    with Window(f"nightbridge {wanted.endpoint}") as window, wanted.subscribe() as subscriber:
        for messages in turns(subscriber, span, wanted):
            pictures = []
            for message in messages:  # pictures need the ones before them: all are decoded, the newest is shown
                figures.add(message)
                pictures += decoder.decode(message)
            picture = pictures[-1] if pictures else picture
            seconds = int(figures.silence()) if figures.is_stale() else 0
            if picture is not None and (pictures or seconds != told):
                window.show(decoder.rgb(picture), figures.line(subscriber), warning(figures.header, seconds > 0))
            told = seconds
            if window.is_closed():
                return


def warning(header: Stamped | None, is_stale: bool) -> tuple[int, int, int] | None:
    """The colour (RGB) of the frame around a picture; None around one that can be trusted."""
    if is_stale:
        return RED
    return None if header is None or header.state in ("clean", None) else AMBER
