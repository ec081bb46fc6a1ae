"""`nightbridge view`: shows what a relay publishes, in a window, as one picture or as figures."""

from __future__ import annotations

import logging
import time
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import asdict
from rich.console import Console

from tools.common.report import JsonFile, in_columns, print_values, require_folder, write_json, write_whole
from tools.common.signals import stop_on_signals
from tools.common.wire_options import Endpoint, RelayKey, SecretKey, as_feed_name, viewer_keys
from tools.view_feed import FeedAddress, Reception, Span, first_feed, listed_feeds
from tools.view_figures import Figures

if TYPE_CHECKING:
    import av

    from stream.subscribe import ViewerKeys
    from stream.view import PictureDecoder
    from stream.wire.messages import Kind, Stamped, Status

log = logging.getLogger(__name__)

SNAPSHOT_SECONDS = 10.0
"""The longest that `--snapshot` waits for a picture."""

FEEDS_SECONDS = 10.0
"""The longest that `--feeds` listens: a relay lists its feeds about once a second."""

AMBER, RED = (255, 176, 0), (230, 30, 30)
"""RGB of the frames around damaged pictures, and around old ones."""


def as_png(path: Path | None) -> Path | None:
    """The path of a picture file that can be written."""
    if path is not None and path.suffix.lower() != ".png" and (path.is_file() or not path.exists()):
        raise typer.BadParameter(f"{path}; must end in .png")
    return require_folder(path)


def view(
    endpoint: Endpoint,
    feed: Annotated[
        str | None,
        typer.Argument(parser=as_feed_name, metavar="FEED", help="Name of the feed.", show_default="the first"),
    ] = None,
    snapshot: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, callback=as_png, metavar="FILE.png", help="Write one picture there and end; no window."
        ),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print age, loss and rate; no window.")] = False,
    feeds: Annotated[bool, typer.Option("--feeds", help="List the feeds and their states.")] = False,
    seconds: Annotated[float | None, typer.Option(min=0, help="How long to run.", show_default="no limit")] = None,
    json: JsonFile = None,
    source: Annotated[bool, typer.Option("--source", help="The camera's own pictures, not the enhanced ones.")] = False,
    relay_key: RelayKey = None,
    secret_key: SecretKey = None,
) -> None:
    """Show FEED in a window until it is closed; q and Escape close it, too."""
    if (snapshot is not None) + stats + feeds > 1:
        raise typer.BadParameter("give only one of --snapshot, --stats and --feeds")
    if feeds and (feed or source):
        raise typer.BadParameter("--feeds lists all feeds and shows no pictures: it takes neither FEED nor --source")
    if json and not (stats or feeds):
        raise typer.BadParameter("--json needs --stats or --feeds: it writes what they print")
    kind: Kind = "source" if source else "video"
    keys = viewer_keys(relay_key, secret_key)
    stop = Event()
    if snapshot or feeds:
        longest = SNAPSHOT_SECONDS if snapshot else FEEDS_SECONDS
        seconds = longest if seconds is None else min(seconds, longest)
    span = Span(stop, seconds)
    with stop_on_signals(stop.set):
        if feeds:
            list_feeds(endpoint, keys, json, span)
            return
        if feed is None:
            feed = first_feed(endpoint, kind, keys, span)
            log.info("showing feed %s", feed)
        address = FeedAddress(endpoint, feed, kind, keys)
        if snapshot:
            take_snapshot(address, snapshot, span)
        elif stats:
            print_stats(address, json, span, Console())
        else:
            show_window(address, span)


def list_feeds(endpoint: str, keys: ViewerKeys | None, json: Path | None, span: Span) -> None:
    """Print a line per feed as soon as the relay lists its feeds. Raises `StreamError` if it does not."""
    feeds = listed_feeds(endpoint, keys, span)
    for line in in_columns([about_feed(name, feeds[name]) for name in sorted(feeds)]):
        print(line)
    write_json(json, {"feeds": {name: asdict(feeds[name]) for name in sorted(feeds)}})


def about_feed(name: str, status: Status) -> tuple[str, ...]:
    """One row of `--feeds`, column by column."""
    dropped, lost = sum(status.dropped.values()), sum(status.lost.values())
    counts = (f"{status.received} received", f"{status.published} published", f"{dropped} dropped", f"{lost} lost")
    return (name, status.state, *counts, status.reason or "")


def take_snapshot(address: FeedAddress, path: Path, span: Span) -> None:
    """Write a picture as PNG; log a warning if it is not clean. Raises `StreamError` if none comes, and `OSError`."""
    from PIL import Image

    from stream.view import PictureDecoder

    decoder = PictureDecoder()
    with Reception(address) as reception:
        best = best_picture(reception, decoder, span)
    if best is None:
        raise reception.missing(span, decoder.undecodable)
    picture, header = best
    file = BytesIO()
    Image.fromarray(decoder.rgb(picture)).save(file, format="PNG")
    write_whole(path, file.getvalue())
    if not is_clean(header):
        log.warning("%s: wrote a %s picture of %s: no clean one came%s", path, header.state, address, span)


def best_picture(reception: Reception, decoder: PictureDecoder, span: Span) -> tuple[av.VideoFrame, Stamped] | None:
    """The first clean picture and its header; if none comes in time, the latest one, or None without any."""
    best = None
    for messages in reception.messages(span):
        for message in messages:
            for picture in decoder.decode(message):
                best = picture, message.header
                if is_clean(message.header):
                    return best
    return best


def print_stats(address: FeedAddress, json: Path | None, span: Span, console: Console) -> None:
    """Print a line per second, and all figures at the end. Raises `StreamError` if no picture came."""
    figures, due = Figures(), time.monotonic() + 1
    with Reception(address) as reception:
        for messages in reception.messages(span):
            for message in messages:
                figures.add(message)
            figures.add_status(reception.status)
            if time.monotonic() >= due:
                due += 1
                console.print(figures.line(reception.pictures), markup=False, highlight=False, soft_wrap=True)
        values = figures.values(reception.pictures)
    print_values(console, values)
    write_json(json, values)
    if not figures.pictures:
        raise reception.missing(span)


def show_window(address: FeedAddress, span: Span) -> None:
    """Show the newest picture. A coloured frame and the caption tell if it is damaged or old, and why none comes."""
    from stream.view import PictureDecoder
    from tools.window import Window

    decoder, figures = PictureDecoder(), Figures()
    picture, told = None, (0, 0, figures.trouble())
    with Window(f"nightbridge {address.feed}  {address.endpoint}") as window, Reception(address) as reception:
        for messages in reception.messages(span):
            pictures = []
            for message in messages:  # pictures refer to earlier ones: decode all, show the newest
                decoded = decoder.decode(message)
                figures.add(message, bool(decoded))
                pictures += decoded
            figures.note_undecodable(decoder.undecodable)
            figures.add_status(reception.status)
            picture = pictures[-1] if pictures else picture
            seconds = int(figures.silence()) if figures.is_stale() else 0
            news = seconds, decoder.undecodable, figures.trouble()
            if pictures or news != told:
                caption = figures.line(reception.pictures)
                if picture is None:
                    window.set_caption(caption)
                else:
                    window.show(decoder.rgb(picture), caption, warning(figures.header, seconds > 0))
            told = news
            if window.is_closed():
                return


def warning(header: Stamped | None, is_stale: bool) -> tuple[int, int, int] | None:
    """The colour (RGB) of the frame around a picture; None for a picture that can be trusted."""
    if is_stale:
        return RED
    return None if header is None or is_clean(header) else AMBER


def is_clean(header: Stamped) -> bool:
    """Whether a picture has no known damage."""
    return header.state in ("clean", None)
