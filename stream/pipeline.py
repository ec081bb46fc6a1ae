"""The relay: the path of a picture, from every feed's source to the wire.

    source ─► decode ─► gather ─► enhance ─► encode ─► publish
    └ bring_in, a thread a feed ┘ └ light_up ┘ └ send_out, a thread a feed ┘

`light_up` is the one thread that all feeds share; it never waits for a feed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from queue import SimpleQueue
from types import TracebackType
from typing import Literal, ParamSpec, Self

from engines.door import Engine, Slot
from engines.errors import EngineError
from stream.decode import Decoder
from stream.enhance import Gather, Lane, enhance
from stream.errors import CodecError, SourceLost, SourceUnsupported
from stream.frame import Frame, SourcePacket
from stream.metrics import FeedMeter
from stream.outlet import Outlet
from stream.pace import paced
from stream.publish import Publisher
from stream.settings import FeedSettings, Settings
from stream.source import Segment, Source, open_source
from stream.wire import Header, Status, encode_status

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Pause before a lost source is opened again."""

P = ParamSpec("P")
FeedState = Literal["connecting", "live", "ended", "failed"]


@dataclass
class Feed:
    """One feed on its way through the relay."""

    name: str
    settings: FeedSettings
    meter: FeedMeter = field(default_factory=FeedMeter)
    state: FeedState = "connecting"
    reason: str | None = None
    """Why it is not live, for people."""
    rate: Fraction | None = None
    """Frames a second, as the source says."""
    source: Source | None = None
    under_way: SimpleQueue[tuple[Frame, Slot] | None] = field(default_factory=SimpleQueue)
    """Submitted pictures in order; None ends the feed."""


class Relay:
    """All feeds, one engine, one publisher; runs inside its `with` block, whose end is a clean stop.

    `engine` and `publisher` are already open, belong to the caller and outlive the relay.
    """

    def __init__(self, settings: Settings, engine: Engine, publisher: Publisher) -> None:
        self.feeds = {name: Feed(name, feed) for name, feed in settings.feeds.items()}
        self.failure: BaseException | None = None
        """What ended the relay before it was asked to stop."""
        self._settings = settings
        self._engine = engine
        self._publisher = publisher
        self._gather = Gather()
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._ways_in = [self._thread(bring_in, feed, self._gather, publisher, self._stop) for feed in self._all]
        self._shared = self._thread(light_up, self._engine, self._gather, self.feeds, settings.engine.batch)
        self._ways_out = [
            self._thread(send_out, feed, self._gather, publisher, engine.info.weights_id) for feed in self._all
        ]
        self._conductor = self._thread(self._conduct)

    @staticmethod
    def slots(settings: Settings) -> int:
        """How many pictures of one size the feeds of these settings can have in the engine at once."""
        return max(1, len(settings.feeds)) * Gather.IN_FLIGHT

    def publish_status(self) -> None:
        """Tell the viewers of every feed how it is doing."""
        for feed in self._all:
            figures = feed.meter.figures()
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

    @property
    def _all(self) -> list[Feed]:
        return list(self.feeds.values())

    def __enter__(self) -> Self:
        for feed in self._all:
            self._gather.open_lane(
                feed.name,
                Lane(
                    live=feed.settings.mode == "live",
                    age_budget_ns=int(feed.settings.age_budget * 1e9),
                    on_drop=feed.meter.drop,
                ),
            )
        for thread in (*self._ways_out, self._shared, *self._ways_in, self._conductor):
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._conductor.join(self._settings.relay.stop_timeout)
        if self._conductor.is_alive():
            log.error(
                "the stop took longer than %g s; what was under way is dropped", self._settings.relay.stop_timeout
            )
            self._gather.abandon()
            self._conductor.join(self._settings.relay.stop_timeout)

    def stop(self) -> None:
        """Ask every feed to end: what is decoded is still enhanced, encoded, flushed and published."""
        self._stop.set()
        for feed in self._all:
            if feed.source is not None:
                feed.source.close()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until every feed has ended, `timeout` seconds at most; True where they have."""
        return self._ended.wait(timeout)

    def _conduct(self) -> None:
        """End the stages one after another, each when the one before it has nothing more to give."""
        for thread in self._ways_in:
            thread.join()
        self._gather.close()
        self._shared.join()
        for feed in self._all:
            feed.under_way.put(None)
        for thread in self._ways_out:
            thread.join()
        self._ended.set()

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


def bring_in(feed: Feed, gather: Gather, publisher: Publisher, stop: threading.Event) -> None:
    """Source to gather, for one feed, until the recording ends or `stop` is set; a lost source is opened again."""
    while not stop.is_set():
        try:
            with open_source(feed.settings) as feed.source:
                for segment in feed.source.segments():
                    feed.state, feed.reason, feed.rate = "live", None, segment.rate
                    relay_segment(feed, segment, gather, publisher, stop)
            break
        except SourceLost as error:
            feed.state, feed.reason = "connecting", str(error)
            log.warning("feed %s: %s; next try in %g s", feed.name, error, RETRY_SECONDS)
            stop.wait(RETRY_SECONDS)
        except (SourceUnsupported, CodecError) as error:
            feed.state, feed.reason = "failed", str(error)
            log.error("feed %s: %s", feed.name, error)
            return
        finally:
            feed.source = None
    feed.state = "ended"


def relay_segment(feed: Feed, segment: Segment, gather: Gather, publisher: Publisher, stop: threading.Event) -> None:
    """One continuous stretch of a source: its packets to the wire as they are, its pictures to the gather."""
    packets = segment.packets()
    if segment.recorded and feed.settings.mode == "live":
        packets = paced(packets, stop)
    decoder = Decoder(segment.video)
    lost = 0

    def hand_on(frames: list[Frame]) -> None:
        nonlocal lost
        feed.meter.lose("undecodable", decoder.lost - lost)
        lost = decoder.lost
        for frame in frames:
            gather.put(feed.name, frame)

    try:
        for packet in packets:
            publish_untouched(feed, segment, packet, publisher)
            if packet.kind == "video":
                feed.meter.receive()
                hand_on(decoder.decode(packet))
    finally:
        hand_on(decoder.flush())


def publish_untouched(feed: Feed, segment: Segment, packet: SourcePacket, publisher: Publisher) -> None:
    """The camera's own access unit or data packet, as it came, where the settings ask for it."""
    video = packet.kind == "video"
    if not (feed.settings.publish_source if video else feed.settings.publish_data):
        return
    raw = packet.packet
    header = Header(
        key=video and raw.is_keyframe,
        codec=segment.info.codec if video else raw.stream.name or "unknown",
        width=segment.video.width if video else None,
        height=segment.video.height if video else None,
        pts=raw.pts,
        dts=raw.dts if raw.dts != raw.pts else None,
        time_base=raw.time_base,
        capture_ns=packet.capture_ns,
        capture_clock=packet.capture_clock,
        received_ns=packet.received_ns,
    )
    publisher.publish(feed.name, "source" if video else "data", header, bytes(raw))


def light_up(engine: Engine, gather: Gather, feeds: dict[str, Feed], batch: int) -> None:
    """Gather to engine, for all feeds: batches of the freshest frames, handed on while they are being computed."""
    while taken := gather.take(batch, time.time_ns):
        frames = [frame for _, frame in taken]
        try:
            slots = enhance(engine, frames)
        except EngineError as error:
            for name, _ in taken:
                log.error("feed %s: a picture is lost: %s", name, error)
                feeds[name].meter.lose("engine")
                gather.done(name)
            continue
        for (name, frame), slot in zip(taken, slots, strict=True):
            feeds[name].under_way.put((frame, slot))


def send_out(feed: Feed, gather: Gather, publisher: Publisher, model: str) -> None:
    """Engine to wire, for one feed: wait for each picture, encode it, publish it; at the end flush the encoder."""
    outlet = Outlet(feed.name, feed.settings.encoder, publisher, feed.meter, model)
    while (item := feed.under_way.get()) is not None:
        frame, slot = item
        try:
            slot.wait()
            outlet.send(frame, slot, feed.rate)
        except EngineError as error:
            log.error("feed %s: a picture is lost: %s", feed.name, error)
            feed.meter.lose("engine")
        except CodecError as error:
            log.error("feed %s: pictures are lost: %s", feed.name, error)
            outlet.abandon()
        finally:
            slot.release()
            gather.done(feed.name)
    outlet.finish()
