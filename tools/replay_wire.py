"""The half of `replay` that publishes to viewers."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools.common.progress import Meter
from tools.common.signals import stop_on_signals

if TYPE_CHECKING:
    from stream.feed import Feed
    from stream.files.replay import Bookmark, Playlist
    from stream.publish import Publisher
    from stream.relay import Relay
    from stream.settings import FeedSettings, Settings

log = logging.getLogger("nightbridge")

REMEMBER_SECONDS = 1.0
"""Interval at which the bookmark is written, and a message of kind `status` is sent."""

LOOK_SECONDS = 0.2
"""Interval of checks while waiting for the first viewer, or for all viewers to have the last pictures."""

UNSENT = 32
"""Published pictures that may be lost if the process is killed: they wait for a viewer, here or in the kernel."""


@dataclass(frozen=True)
class ReplayRequest:
    """What is played."""

    paths: Sequence[Path]
    """As the user named them."""
    files: Sequence[Path]
    feed: str
    speed: float | None
    """A multiple of the recordings' own; None: as fast as possible."""


def feed_settings(settings: Settings, request: ReplayRequest) -> FeedSettings:
    """The settings of the replayed feed: the defaults, but with the URL, mode and speed of a replay."""
    from stream.settings import FeedSettings

    table = {"url": request.files[0].absolute().as_uri(), "mode": "replay", "speed": request.speed}
    return FeedSettings.model_validate(settings.defaults.model_dump(mode="json", exclude_unset=True) | table)


def to_wire(settings: Settings, request: ReplayRequest, *, wait: bool, from_start: bool) -> dict[str, object]:
    """Play to viewers and return the summary. At full speed, playing begins with the first viewer, if `wait`."""
    from engines.runtime import EngineOptions, open_engine
    from stream.files.replay import Bookmark, Playlist
    from stream.publish import Publisher
    from stream.relay import Relay

    feed = feed_settings(settings, request)
    with Bookmark(request.paths, request.feed) as bookmark:
        if from_start:
            bookmark.remove()
        start = bookmark.read(request.files)
        playlist = Playlist(request.files, start)
        stop = threading.Event()
        engine = settings.engine
        options = EngineOptions(precision=engine.precision, threads=engine.threads, cache=engine.cache, batch=1)
        with (
            stop_on_signals(stop.set),
            open_engine(engine.runtime, engine.weights, options) as opened,
            Publisher(settings.relay, uuid.uuid4().hex, lossless=True) as publisher,
        ):
            log.info("publishing %s at %s", request.feed, publisher.endpoint)
            if start:
                log.info(
                    "resuming %s at picture %d; use --from-start to start over", request.files[start.file], start.unit
                )
            if wait and request.speed is None:
                wait_for_viewer(publisher, request.feed, stop)
            with Relay(settings.model_copy(update={"feeds": {}}), opened, publisher) as relay:
                playing = relay.add(request.feed, feed, playlist.open)
                complete = play(relay, playing, playlist, bookmark, stop)
            relay.publish_status()
            if complete:
                complete = close_when_sent(publisher, stop)
        if complete:
            bookmark.remove()
        if relay.failure is not None:
            raise relay.failure
        told = summary(request, playing, playlist, complete and not playlist.failed, kept=bookmark.kept)
        began = {"file": str(request.files[start.file]), "picture": start.unit} if start else None
        return told | {"went_on_from": began}


def wait_for_viewer(publisher: Publisher, feed: str, stop: threading.Event) -> None:
    """Return when somebody has subscribed to the feed, or `stop` is set."""
    log.info("waiting for a viewer of %s; use --no-wait to start at once", feed)
    while not stop.is_set() and not publisher.wait_for_viewer(feed, LOOK_SECONDS):
        pass


def close_when_sent(publisher: Publisher, stop: threading.Event) -> bool:
    """Close the publisher as soon as the viewers have its last messages; False if `stop` is set before that."""
    from stream.publish import LONGEST_LINGER

    usual, publisher.linger = publisher.linger, LONGEST_LINGER
    # in another thread: a signal would end pyzmq's own wait unnoticed, or be missed if it came just before it
    closing = threading.Thread(target=publisher.__exit__, args=(None, None, None), daemon=True)
    closing.start()
    closing.join(LOOK_SECONDS)
    if closing.is_alive():
        log.info("waiting until the viewers have the last pictures; press Ctrl-C to stop waiting")
    while closing.is_alive() and not stop.is_set():
        closing.join(LOOK_SECONDS)
    publisher.linger = usual
    return not closing.is_alive()


def play(relay: Relay, feed: Feed, playlist: Playlist, bookmark: Bookmark, stop: threading.Event) -> bool:
    """Wait for the end, and write the bookmark meanwhile; returns whether the replay came to its own end."""

    def remember() -> None:
        figures = feed.figures()
        finished = figures.published + sum(figures.lost.values())
        bookmark.write(playlist.files, playlist.position(finished - UNSENT))
        meter.update(playlist.files[playlist.file].name, playlist.bytes_read, figures.published)

    ended = False
    with Meter(sum(playlist.sizes)) as meter:
        while not (ended or stop.is_set() or relay.failure):
            ended = relay.wait(REMEMBER_SECONDS)
            remember()
            relay.publish_status()
    return ended and not stop.is_set() and feed.state == "ended" and relay.failure is None


def summary(request: ReplayRequest, feed: Feed, playlist: Playlist, complete: bool, *, kept: bool) -> dict[str, object]:
    """Print what became of the replay, and return it as values for programs. `kept`: the bookmark is stored."""
    figures = feed.figures()
    print(f"feed {feed.name}: {figures}")
    if feed.reason:
        print(f"feed {feed.name}: {feed.state}: {feed.reason}")
    elif kept and not complete and not playlist.failed:
        print("run the same command again to resume")
    return {
        "feed": request.feed,
        "recordings": len(request.files),
        "received": figures.received,
        "published": figures.published,
        "dropped": dict(figures.dropped),
        "lost": dict(figures.lost),
        "failed": {str(path): reason for path, reason in playlist.failed.items()},
        "complete": complete,
    }
