"""The relay: runs the stages of `stream.pipeline` for all feeds, which come and go while it runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import ParamSpec, Self

from engines.door import Door
from stream.enhance import Gather
from stream.feed import Feed, FeedState, place_of, reason_of
from stream.pipeline import bring_in, light_up, send_out
from stream.publish import Publisher
from stream.settings import FeedSettings, Settings
from stream.source import Opener, opener_of
from stream.wire.messages import ALL_FEEDS, Header, Status, encode_feeds, encode_status

log = logging.getLogger(__name__)

P = ParamSpec("P")


@dataclass(frozen=True)
class Changes:
    """What new settings have changed: names of feeds, and of tables that take effect only at the next start.

    `reopened` feeds had failed and are opened again with the same settings.
    """

    added: list[str]
    removed: list[str]
    changed: list[str]
    reopened: list[str]
    need_restart: list[str]

    def __str__(self) -> str:
        feeds = {
            "added": self.added,
            "removed": self.removed,
            "changed": self.changed,
            "opened again": self.reopened,
        }
        parts = [f"{word} {', '.join(names)}" for word, names in feeds.items() if names]
        return "; ".join(parts) or "no feed changed"


@dataclass(frozen=True)
class Running:
    """A feed with its two threads."""

    feed: Feed
    way_in: threading.Thread
    way_out: threading.Thread

    def start(self) -> None:
        """Begin to relay the feed."""
        self.way_out.start()
        self.way_in.start()

    def join(self, until: float) -> bool:
        """Wait for the feed to end, until a time of `time.monotonic`; True if it has ended."""
        for thread in (self.way_in, self.way_out):
            thread.join(max(0.0, until - time.monotonic()))
        return not (self.way_in.is_alive() or self.way_out.is_alive())


class Relay:
    """Runs all feeds with one engine and one publisher, inside its `with` block; leaving it is a clean stop.

    `engine` and `publisher` are already open, belong to the caller and outlive the relay. Feeds come and go
    independently; `add`, `remove` and `apply` must be called from one thread. An error of one feed affects that feed
    alone; an error that affects all feeds ends the relay (see `failure`).
    """

    def __init__(self, settings: Settings, engine: Door, publisher: Publisher) -> None:
        self.failure: BaseException | None = None
        """The error that ended the relay before `stop`."""
        self.refused: str | None = None
        """Why the latest settings were refused, set by whoever read them; None if they were applied."""
        self.need_restart: list[str] = []
        """Tables of the last applied settings whose changes take effect only at the next start."""
        self._settings = settings
        self._engine = engine
        self._publisher = publisher
        self._gather: Gather[Feed] = Gather()
        self._running: dict[str, Running] = {}
        self._hanging: list[Running] = []
        """Removed feeds that have not ended yet; their pictures are still in the engine."""
        batch = min(settings.engine.batch, engine.info.largest_batch)
        self._shared = self._thread(light_up, engine, self._gather, batch)
        for name, feed in settings.feeds.items():
            self._prepare(name, feed)

    @property
    def feeds(self) -> dict[str, Feed]:
        """All feeds by name, including those that have ended by themselves."""
        return {name: running.feed for name, running in list(self._running.items())}

    @property
    def id(self) -> str:
        """Id of this run, as sent in every message."""
        return self._publisher.relay_id

    @property
    def engine(self) -> Door:
        """The engine, to read its state from."""
        return self._engine

    def __enter__(self) -> Self:
        self._shared.start()
        for running in self._running.values():
            running.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(self._running.values())
        self._gather.close()
        self._shared.join(self._settings.relay.stop_timeout)

    def add(self, name: str, settings: FeedSettings, opener: Opener | None = None) -> Feed:
        """Start relaying another feed; `opener` stands in for the address in its settings."""
        running = self._prepare(name, settings, opener)
        running.start()
        return running.feed

    def remove(self, *names: str) -> None:
        """End feeds, which first publish what they have decoded; takes at most twice the relay's `stop_timeout`."""
        leaving = [self._running[name] for name in names]
        self._end(leaving)
        for running in leaving:
            self._publish_status(running.feed, "ended")
            self._hanging.append(self._running.pop(running.feed.name))
        self._share_engine()

    def apply(self, settings: Settings, reopen_failed: bool = False) -> Changes:
        """Apply new settings; feeds whose settings are unchanged go on, but `reopen_failed` reopens failed ones."""
        before = {name: running.feed.settings for name, running in self._running.items()}
        after = settings.feeds
        failed = [name for name, feed in self.feeds.items() if feed.state == "failed" and reopen_failed]
        changes = Changes(
            added=[name for name in after if name not in before],
            removed=[name for name in before if name not in after],
            changed=[name for name in after if name in before and before[name] != after[name]],
            reopened=[name for name in failed if before[name] == after.get(name)],
            need_restart=[
                f"[{table}]"
                for table in ("relay", "engine")
                if getattr(settings, table) != getattr(self._settings, table)
            ],
        )
        self.need_restart = changes.need_restart
        self.remove(*changes.removed, *changes.changed, *changes.reopened)
        for name in changes.changed + changes.reopened + changes.added:
            self.add(name, after[name])
        return changes

    def publish_status(self) -> None:
        """Publish the status of every feed, and the list of all feeds.

        To be called from the thread of `apply`: it also frees the engine's places of removed feeds that have ended
        since.
        """
        if any(running.join(time.monotonic()) for running in self._hanging):
            self._share_engine()
        statuses = {name: self._publish_status(feed) for name, feed in self.feeds.items()}
        self._publisher.publish(ALL_FEEDS, "feeds", Header(), encode_feeds(statuses))

    def stop(self) -> None:
        """Ask every feed to end: what is decoded is still enhanced, encoded, flushed and published."""
        for feed in self.feeds.values():
            feed.stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until every feed has ended, at most `timeout` seconds; True if all have."""
        until = time.monotonic() + (threading.TIMEOUT_MAX / 2 if timeout is None else timeout)
        return all(running.join(until) for running in self._running.values())

    def _prepare(self, name: str, settings: FeedSettings, opener: Opener | None = None) -> Running:
        feed = Feed(name, settings, opener or opener_of(settings))
        self._gather.open_lane(feed, feed.lane)
        self._running[name] = Running(
            feed,
            self._thread(bring_in, feed, self._engine, self._gather, self._publisher),
            self._thread(send_out, feed, self._gather, self._publisher, self._engine.info.weights_id),
        )
        self._share_engine()
        return self._running[name]

    def _share_engine(self) -> None:
        """Allow the engine as many slots as all feeds can fill at once, and one picture size per feed plus one."""
        for running in [each for each in self._hanging if each.join(time.monotonic())]:
            self._gather.close_lane(running.feed)
            self._hanging.remove(running)
        count = max(1, len(self._running) + len(self._hanging))
        self._engine.set_limits(count * Gather.IN_FLIGHT, count + 1)

    def _end(self, leaving: Iterable[Running]) -> None:
        leaving = list(leaving)
        for running in leaving:
            running.feed.stop.set()
        patience = self._settings.relay.stop_timeout
        until = time.monotonic() + patience
        late = [running for running in leaving if not running.join(until)]
        if not late:
            return
        names = ", ".join(running.feed.name for running in late)
        log.error("feeds not stopped within %g s: %s; dropping their pictures in progress", patience, names)
        for running in late:
            self._gather.abandon(running.feed)
        until = time.monotonic() + patience
        for running in late:
            running.join(until)

    def _publish_status(self, feed: Feed, state: FeedState | None = None) -> Status:
        """Publish a feed's status; `state` replaces its own, for a removed feed that may still hang."""
        figures = feed.figures()
        feed.watch_load(figures)
        status = Status(
            state=state or feed.state,
            received=figures.received,
            published=figures.published,
            under_way=figures.under_way,
            dropped=figures.dropped,
            lost=figures.lost,
            reason=feed.reason,
        )
        self._publisher.publish(feed.name, "status", Header(), encode_status(status))
        return status

    def _thread(self, stage: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> threading.Thread:
        """A thread for one stage; an error in it stops the relay and becomes its `failure`."""

        def run() -> None:
            try:
                stage(*arguments, **named)
            except BaseException as error:
                log.error("a stage failed, the relay stops: %s%s", reason_of(error), place_of(error))
                self.failure = self.failure or error
                self._gather.abandon()
                self.stop()

        return threading.Thread(target=run, name=f"nightbridge-{stage.__name__}", daemon=True)
