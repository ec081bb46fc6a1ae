"""The relay: the path of a picture, from every feed's source to the wire.

    source ─► decode ─► gather ─► enhance ─► encode ─► publish
    └ bring_in, a thread a feed ┘ └ light_up ┘ └ send_out, a thread a feed ┘

`light_up` is the one thread that all feeds share; it never waits for a feed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import ParamSpec, Self

from engines.door import Door, Slot
from engines.errors import EngineError
from stream.enhance import Gather, enhance
from stream.errors import CodecError, SourceError, SourceLost, SourceUnsupported
from stream.feed import Feed, FeedState
from stream.frame import SourcePacket
from stream.intake import Intake
from stream.outlet import Outlet
from stream.pace import paced
from stream.publish import Publisher
from stream.settings import FeedSettings, Settings
from stream.source import Opener, Segment, open_source, opener_of
from stream.wire import Header, Status, encode_status

log = logging.getLogger(__name__)

P = ParamSpec("P")


@dataclass(frozen=True)
class Changes:
    """What new settings have changed: names of feeds, and of tables that only a new start can change."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    need_restart: list[str]

    def __str__(self) -> str:
        parts = [
            f"{word} {', '.join(names)}"
            for word, names in (("added", self.added), ("removed", self.removed), ("changed", self.changed))
            if names
        ]
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
        """Wait for the feed's end until a time of `time.monotonic`; whether it has come."""
        for thread in (self.way_in, self.way_out):
            thread.join(max(0.0, until - time.monotonic()))
        return not (self.way_in.is_alive() or self.way_out.is_alive())


class Relay:
    """All feeds, one engine, one publisher; runs inside its `with` block, whose end is a clean stop.

    `engine` and `publisher` are already open, belong to the caller and outlive the relay. Feeds come and go without
    touching each other; `add`, `remove` and `apply` are for one thread. What goes wrong with one feed costs that
    feed alone; what goes wrong for all ends the relay (see `failure`).
    """

    def __init__(self, settings: Settings, engine: Door, publisher: Publisher) -> None:
        self.failure: BaseException | None = None
        """What ended the relay before it was asked to stop."""
        self._settings = settings
        self._engine = engine
        self._publisher = publisher
        self._gather: Gather[Feed] = Gather()
        self._running: dict[str, Running] = {}
        self._hanging: list[Running] = []
        """Feeds that were removed and do not end; their pictures are still in the engine."""
        batch = min(settings.engine.batch, engine.info.largest_batch)
        self._shared = self._thread(light_up, engine, self._gather, batch)
        for name, feed in settings.feeds.items():
            self._prepare(name, feed)

    @property
    def feeds(self) -> dict[str, Feed]:
        """All feeds by name, those that have ended by themselves too."""
        return {name: running.feed for name, running in list(self._running.items())}

    @property
    def id(self) -> str:
        """Of this run, as it stands in every message."""
        return self._publisher.relay_id

    @property
    def engine(self) -> Door:
        """What enhances the pictures, to be asked how it is doing."""
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
        """Begin to relay another feed; `opener` stands for what the address in its settings says."""
        running = self._prepare(name, settings, opener)
        running.start()
        return running.feed

    def remove(self, *names: str) -> None:
        """End feeds, which publish what they have decoded, within twice the relay's `stop_timeout`."""
        leaving = [self._running[name] for name in names]
        self._end(leaving)
        for running in leaving:
            self._publish_status(running.feed)
            self._hanging.append(self._running.pop(running.feed.name))
        self._share_engine()

    def apply(self, settings: Settings) -> Changes:
        """Take on new settings: feeds whose own are as before are not touched."""
        before = {name: running.feed.settings for name, running in self._running.items()}
        after = settings.feeds
        changes = Changes(
            added=[name for name in after if name not in before],
            removed=[name for name in before if name not in after],
            changed=[name for name in after if name in before and before[name] != after[name]],
            need_restart=[
                f"[{table}]"
                for table in ("relay", "engine")
                if getattr(settings, table) != getattr(self._settings, table)
            ],
        )
        self.remove(*changes.removed, *changes.changed)
        for name in changes.changed + changes.added:
            self.add(name, after[name])
        return changes

    def publish_status(self) -> None:
        """Tell the viewers of every feed how it is doing."""
        for feed in self.feeds.values():
            self._publish_status(feed)

    def stop(self) -> None:
        """Ask every feed to end: what is decoded is still enhanced, encoded, flushed and published."""
        for feed in self.feeds.values():
            feed.stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until every feed has ended, `timeout` seconds at most; True where they have."""
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
        """Let the engine hold what all feeds can have in it at once, and their sizes and one more."""
        for running in [each for each in self._hanging if each.join(time.monotonic())]:
            self._gather.close_lane(running.feed)
            self._hanging.remove(running)
        count = max(1, len(self._running) + len(self._hanging))
        self._engine.allow(count * Gather.IN_FLIGHT, count + 1)

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
        log.error("stopping %s took longer than %g s; what was under way is dropped", names, patience)
        for running in late:
            self._gather.abandon(running.feed)
        until = time.monotonic() + patience
        for running in late:
            running.join(until)

    def _publish_status(self, feed: Feed) -> None:
        figures = feed.figures()
        status = Status(
            state=feed.state,
            received=figures.received,
            published=figures.published,
            under_way=figures.under_way,
            dropped=figures.dropped,
            lost=figures.lost,
            reason=feed.reason,
        )
        self._publisher.publish(feed.name, "status", Header(), encode_status(status))

    def _thread(self, stage: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> threading.Thread:
        """A thread for one stage; what it raises stops the relay and is kept as its failure."""

        def run() -> None:
            try:
                stage(*arguments, **named)
            except BaseException as error:
                log.exception("a stage failed, the relay stops")
                self.failure = self.failure or error
                self._gather.abandon()
                self.stop()

        return threading.Thread(target=run, name=f"nightbridge-{stage.__name__}", daemon=True)


def bring_in(feed: Feed, engine: Door, gather: Gather[Feed], publisher: Publisher) -> None:
    """Source to gather, for one feed, until the recording ends or the feed is stopped; a lost source is opened again,
    after a pause that grows."""
    end: FeedState = "ended"
    while not feed.stop.is_set():
        try:
            relay_source(feed, engine, gather, publisher)
            break
        except Exception as error:  # whatever it is: the other feeds go on
            if not worth_another_try(feed, error):
                end = "failed"
                feed.turn(end, error)
                break
            feed.meter.reconnect(kind_of(error))
            pause = feed.backoff.pause(feed.seconds_live())
            feed.turn("connecting", error)
            feed.stop.wait(pause)
    gather.drain(feed)
    if end != "failed":
        feed.turn(end)
    feed.under_way.put(None)


def worth_another_try(feed: Feed, error: Exception) -> bool:
    """Whether opening the source again can help: always after a loss, as every trouble with a camera is told.

    A recording that cannot be read, or an address that is none, stays so; played live it would only begin again.
    """
    return isinstance(error, SourceLost) or (feed.settings.mode == "live" and not isinstance(error, SourceUnsupported))


def kind_of(error: Exception) -> str:
    """What ended a source, in one word of a closed list."""
    if isinstance(error, SourceError):
        return error.reason
    return "codec" if isinstance(error, CodecError) else "unexpected"


def relay_source(feed: Feed, engine: Door, gather: Gather[Feed], publisher: Publisher) -> None:
    """Open a feed's source and relay it to its end; raises what ends it too early."""
    with open_source(feed.settings, feed.stop, feed.opener) as source:
        for segment in source.segments():
            feed.rate = segment.rate
            feed.turn("live")
            relay_segment(feed, segment, engine, gather, publisher)


def relay_segment(feed: Feed, segment: Segment, engine: Door, gather: Gather[Feed], publisher: Publisher) -> None:
    """One continuous stretch of a source: its packets to the wire as they are, its pictures to the gather."""
    intake = Intake(feed, segment, engine, gather)
    packets = segment.packets()
    if segment.recorded and (speed := feed.speed) is not None:
        packets = paced(packets, feed.stop, speed)
    try:
        for packet in packets:
            publish_untouched(feed, segment, packet, publisher)
            if packet.kind == "video":
                intake.take(packet)
    finally:
        intake.finish()


def publish_untouched(feed: Feed, segment: Segment, packet: SourcePacket, publisher: Publisher) -> None:
    """The camera's own access unit or data packet, as it came, where the settings ask for it."""
    video = packet.kind == "video"
    if not (feed.settings.publish_source if video else feed.settings.publish_data):
        return
    raw = packet.packet
    header = Header(
        key=video and raw.is_keyframe,
        codec=segment.info.codec if video else raw.stream.name or "unknown",
        width=(segment.video.width or None) if video else None,
        height=(segment.video.height or None) if video else None,
        pts=raw.pts,
        dts=raw.dts if raw.dts != raw.pts else None,
        time_base=raw.time_base,
        capture_ns=packet.capture_ns,
        capture_clock=packet.capture_clock,
        received_ns=packet.received_ns,
    )
    publisher.publish(feed.name, "source" if video else "data", header, bytes(raw))


def light_up(engine: Door, gather: Gather[Feed], batch: int) -> None:
    """Gather to engine, for all feeds: batches of the freshest frames, handed on while they are being computed."""
    while taken := gather.take(batch, time.time_ns):
        try:
            slots = enhance(engine, [frame for _, frame in taken], [feed.recall for feed, _ in taken])
        except Exception as error:
            for feed, _ in taken:
                feed.tell(error)
                feed.meter.lose("engine")
                gather.done(feed)
            if not isinstance(error, EngineError):
                raise
            continue
        for (feed, frame), slot in zip(taken, slots, strict=True):
            feed.under_way.put((frame, slot))


def send_out(feed: Feed, gather: Gather[Feed], publisher: Publisher, model: str) -> None:
    """Engine to wire, for one feed: wait for each picture, encode it, publish it; at the end flush the encoder."""
    outlet = Outlet(feed, publisher, model)
    while (item := feed.under_way.get()) is not None:
        frame, slot = item
        try:
            if feed.lane.closed:
                feed.meter.drop("stopped")
            elif is_enhanced(feed, slot):
                outlet.send(frame, slot)
        finally:
            slot.release()
            gather.done(feed)
    outlet.finish()


def is_enhanced(feed: Feed, slot: Slot) -> bool:
    """Wait for one picture of the engine; False where it failed, and the feed has lost it."""
    try:
        slot.wait()
    except Exception as error:  # whatever it is: the other feeds go on
        feed.tell(error)
        feed.meter.lose("engine")
        return False
    return True
