"""`nightbridge record`: a feed into files, without decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from tools.signals import stopped_by_signals
from tools.view_feed import Span, Wanted, why_silent
from tools.wire_options import Endpoint, RelayKey, SecretKey, as_feed_name, viewer_keys

if TYPE_CHECKING:
    from stream.record import Recorder
    from stream.subscribe import Subscriber


SILENCE_SECONDS = 5.0
"""After which it is told that nothing comes."""


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
    feed: Annotated[str, typer.Argument(parser=as_feed_name, metavar="FEED", help="Its name.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", file_okay=False, help="Where the files go.")],
    segment: Annotated[str, typer.Option(metavar="DURATION", help="Length of a file, such as 90s or 5m.")] = "5m",
    source: Annotated[bool, typer.Option("--source", help="The camera's own pictures, not the enhanced.")] = False,
    relay_key: RelayKey = None,
    secret_key: SecretKey = None,
) -> None:
    """Record FEED into DIR as the relay sends it, with data such as KLV, until SIGINT, SIGTERM or SIGHUP."""
    from stream.record import Recorder
    from stream.subscribe import Subscriber
    from stream.wire import Kind

    kind: Kind = "source" if source else "video"
    wanted = Wanted(endpoint, feed, kind, viewer_keys(relay_key, secret_key))
    with (
        Recorder(folder, as_seconds(segment), kind) as recorder,
        Subscriber(endpoint, feed, (kind, "data"), max_age=None, keys=wanted.keys) as subscriber,
        stopped_by_signals(subscriber.close),
        summed_up(recorder, subscriber),
    ):
        tell(f"recording {feed} from {endpoint} into {folder}")
        keep(subscriber, recorder, lambda: tell(silence(wanted, subscriber), err=True))


def tell(text: str, err: bool = False) -> None:
    """Print a line, if it can be: a reader that has gone, or a log on a full disk, must not end a recording."""
    with suppress(OSError):
        typer.echo(text, err=err)


def silence(wanted: Wanted, subscriber: Subscriber) -> str:
    """That nothing comes, and what the relay says to that."""
    since = f"for {SILENCE_SECONDS:g} s" if subscriber.received else "yet"
    return f"nothing of {wanted} {since}{why_silent(wanted, None, Span(Event(), None))}"


def keep(subscriber: Subscriber, recorder: Recorder, tell_silence: Callable[[], None]) -> None:
    """Record until the subscriber is closed, and name every file as it begins; every silence is told once."""
    while True:
        message = subscriber.receive(SILENCE_SECONDS)
        if message is None and not subscriber.is_closed:
            tell_silence()
        message = message or subscriber.receive()
        if message is None:
            return
        with naming(recorder):
            recorder.write(message)


@contextmanager
def naming(recorder: Recorder) -> Iterator[None]:
    """Name the files that begin inside the block, however it ends."""
    known = len(recorder.paths)
    try:
        yield
    finally:
        for path in recorder.paths[known:]:
            tell(str(path))


@contextmanager
def summed_up(recorder: Recorder, subscriber: Subscriber) -> Iterator[None]:
    """After the block, however it ends, write what is left and tell what became of the messages."""
    try:
        yield
    finally:
        try:
            with naming(recorder):
                recorder.close()
        finally:
            tell(summary(recorder, subscriber))


def summary(recorder: Recorder, subscriber: Subscriber) -> str:
    """What became of the messages, for people."""
    pictures = recorder.written["video"] + recorder.written["source"]
    parts = [f"{pictures} pictures and {recorder.written['data']} data packets in {len(recorder.paths)} files"]
    parts += [f"{subscriber.lost} lost on the way"] if subscriber.lost else []
    parts += [f"{number} not recorded: {why}" for why, number in recorder.lost.items()]
    parts += [f"{number} dropped: {why}" for why, number in subscriber.dropped.items()]
    return "; ".join(parts)
