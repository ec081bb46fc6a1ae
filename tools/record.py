"""`nightbridge record`: writes a feed to files, without decoding."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from stream.errors import StreamError
from tools.common.signals import stop_on_signals
from tools.common.wire_options import Endpoint, RelayKey, SecretKey, as_feed_name, viewer_keys
from tools.view_feed import LISTING_SECONDS, FeedAddress, Span, listed_feeds, relay_says, why_silent

if TYPE_CHECKING:
    from stream.record import Recorder
    from stream.subscribe import Subscriber
    from stream.wire.messages import Status


SILENCE_SECONDS = 5.0
"""Time without a picture after which this is reported."""

RARE_GAPS = 3
"""A healthy feed may be silent for this many times the interval between its latest two pictures."""


def as_seconds(text: str) -> float:
    """Seconds of a duration such as 90s or 5m."""
    from pydantic import TypeAdapter, ValidationError

    from stream.settings import Duration

    try:
        return TypeAdapter[float](Duration).validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r}; must be {error.errors()[0]['ctx']['error']}") from None


def record(
    endpoint: Endpoint,
    feed: Annotated[str, typer.Argument(parser=as_feed_name, metavar="FEED", help="Name of the feed.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", file_okay=False, help="Folder for the files.")],
    segment: Annotated[str, typer.Option(metavar="DURATION", help="Length of a file, such as 90s or 5m.")] = "5m",
    source: Annotated[bool, typer.Option("--source", help="The camera's own pictures, not the enhanced ones.")] = False,
    relay_key: RelayKey = None,
    secret_key: SecretKey = None,
) -> None:
    """Record FEED into DIR as the relay sends it, with data such as KLV, until SIGINT, SIGTERM or SIGHUP."""
    from stream.record import Recorder
    from stream.subscribe import Subscriber
    from stream.wire.messages import Kind

    kind: Kind = "source" if source else "video"
    address = FeedAddress(endpoint, feed, kind, viewer_keys(relay_key, secret_key))
    stop = Event()

    def end() -> None:
        stop.set()
        subscriber.close()

    with (
        Recorder(folder, as_seconds(segment), kind) as recorder,
        Subscriber(endpoint, feed, (kind, "data"), max_age=None, keys=address.keys) as subscriber,
        stop_on_signals(end),
        summed_up(recorder, subscriber),
    ):
        print_line(f"recording {feed} from {endpoint} into {folder}")
        record_feed(subscriber, recorder, address, stop)


def print_line(text: str, err: bool = False) -> None:
    """Print a line if possible: a reader that has gone, or a log on a full disk, must not end a recording."""
    with suppress(OSError):
        typer.echo(text, err=err)


class Silence:
    """Measures how long no picture has come. Times are seconds of any clock, which the caller reads."""

    def __init__(self, now: float) -> None:
        self.has_come = False
        """Whether there was any picture."""
        self.due = now + SILENCE_SECONDS
        """When to look into the silence; infinite once it was reported."""
        self._since = now
        self._gap = SILENCE_SECONDS
        """Seconds between the latest two pictures, or this before there are two."""

    def picture_came(self, now: float) -> None:
        """A picture has come."""
        if self.has_come:
            self._gap = now - self._since
        self.has_come, self._since, self.due = True, now, now + SILENCE_SECONDS

    def describe(self, is_well: bool) -> str | None:
        """The end of a message: how long no picture has come. Call it when due. None if it is too early to report the
        silence of a healthy feed with few pictures."""
        silent, usual = self.due - self._since, RARE_GAPS * self._gap
        if self.has_come and is_well and silent < usual:
            self.due = self._since + usual
            return None
        self.due = math.inf
        return f"for {silent:.0f} s" if self.has_come else "yet"


def record_feed(subscriber: Subscriber, recorder: Recorder, address: FeedAddress, stop: Event) -> None:
    """Record until the subscriber is closed. Print each file's name as it begins, and report each silence once."""
    silence = Silence(time.monotonic())
    while True:
        message = subscriber.receive(None if silence.due == math.inf else silence.due - time.monotonic())
        if message is None and not subscriber.is_closed:
            report_silence(silence, subscriber, address, stop)
            continue
        message = message or subscriber.receive()
        if message is None:
            return
        if message.kind == address.kind:
            silence.picture_came(time.monotonic())
        with naming(recorder):
            recorder.write(message)


def report_silence(silence: Silence, subscriber: Subscriber, address: FeedAddress, stop: Event) -> None:
    """Report that no picture comes, with what the relay says about it. Setting `stop` ends the query."""
    feeds: dict[str, Status] | None = None
    if not subscriber.trouble:
        with suppress(StreamError, OSError, RuntimeError):  # the recording must go on
            feeds = listed_feeds(address.endpoint, address.keys, Span(stop, LISTING_SECONDS))
    if stop.is_set():
        return
    status = (feeds or {}).get(address.feed)
    is_well = status is not None and status.state == "live" and status.reason is None
    if since := silence.describe(is_well):
        why = subscriber.trouble or relay_says(address, status, feeds, silence.has_come)
        print_line(f"no picture of {address} {since}{why_silent(why)}", err=True)


@contextmanager
def naming(recorder: Recorder) -> Iterator[None]:
    """Print the names of files that begin inside the block, however it ends."""
    known = len(recorder.paths)
    try:
        yield
    finally:
        for path in recorder.paths[known:]:
            print_line(str(path))


@contextmanager
def summed_up(recorder: Recorder, subscriber: Subscriber) -> Iterator[None]:
    """After the block, however it ends, finish the recording and print what became of the messages."""
    try:
        yield
    finally:
        try:
            with naming(recorder):
                recorder.close()
        finally:
            print_line(summary(recorder, subscriber))


def summary(recorder: Recorder, subscriber: Subscriber) -> str:
    """What became of the messages, for people."""
    pictures = recorder.written["video"] + recorder.written["source"]
    parts = [f"{pictures} pictures and {recorder.written['data']} data packets in {len(recorder.paths)} files"]
    parts += [f"{subscriber.lost} lost on the way"] if subscriber.lost else []
    parts += [f"{number} not recorded: {why}" for why, number in recorder.lost.items()]
    parts += [f"{number} dropped: {why}" for why, number in subscriber.dropped.items()]
    return "; ".join(parts)
