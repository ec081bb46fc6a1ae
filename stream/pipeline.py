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
from types import TracebackType
from typing import ParamSpec, Self

from engines.door import Engine, Slot
from engines.errors import EngineError
from stream.decode import Decoder
from stream.enhance import Gather, Lane, enhance
from stream.errors import SourceLost, SourceUnsupported
from stream.feed import Feed
from stream.frame import Frame, SourcePacket
from stream.outlet import Outlet
from stream.pace import paced
from stream.publish import Publisher
from stream.settings import Settings
from stream.source import Segment, open_source
from stream.wire import Header, Status, encode_status

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Pause before a lost source is opened again."""

P = ParamSpec("P")


class Relay:
    """All feeds, one engine, one publisher; runs inside its `with` block, whose end is a clean stop.

    `engine`, with `slots(settings)` slots, and `publisher` are already open, belong to the caller and outlive the
    relay. What goes wrong with one feed costs that feed alone; what goes wrong for all ends the relay (see `failure`).
    """

    def __init__(self, settings: Settings, engine: Engine, publisher: Publisher) -> None:
        self.feeds = {name: Feed(name, feed) for name, feed in settings.feeds.items()}
        self.failure: BaseException | None = None
        """What ended the relay before it was asked to stop."""
        self._settings = settings
        self._publisher = publisher
        self._gather = Gather()
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._ways_in = [self._thread(bring_in, feed, self._gather, publisher, self._stop) for feed in self._all]
        batch = min(settings.engine.batch, engine.info.largest_batch)
        self._shared = self._thread(light_up, engine, self._gather, self.feeds, batch)
        self._ways_out = [
            self._thread(send_out, feed, self._gather, publisher, engine.info.weights_id) for feed in self._all
        ]
        self._conductor = self._thread(self._conduct)

    @staticmethod
    def slots(settings: Settings) -> int:
        """How many pictures of one size the feeds of these settings can have in the engine at once, at least 1."""
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

    def wait(self, timeout: float | None = None) -> bool:
        """Block until every feed has ended, `timeout` seconds at most; True where they have."""
        return self._ended.wait(timeout)

    def _conduct(self) -> None:
        """End the stages one after another, each when the one before it has nothing more to give."""
        for thread in self._ways_in:
            thread.join()
        self._gather.close()
        self._shared.join()
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
            relay_source(feed, gather, publisher, stop)
            break
        except Exception as error:  # whatever it is: the other feeds go on
            if not worth_another_try(feed, error):
                feed.turn("failed", error)
                break
            feed.turn("connecting", error)
        stop.wait(RETRY_SECONDS)
    gather.drain(feed.name)
    if feed.state != "failed":
        feed.turn("ended")
    feed.under_way.put(None)


def worth_another_try(feed: Feed, error: Exception) -> bool:
    """Whether opening the source again can help: always after a loss; a live feed gives up only what cannot be."""
    return isinstance(error, SourceLost) or (feed.settings.mode == "live" and not isinstance(error, SourceUnsupported))


def relay_source(feed: Feed, gather: Gather, publisher: Publisher, stop: threading.Event) -> None:
    """Open a feed's source and relay it to its end; raises what ends it too early."""
    with open_source(feed.settings, stop) as source:
        for segment in source.segments():
            feed.rate = segment.rate
            feed.turn("live")
            relay_segment(feed, segment, gather, publisher, stop)


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
        feed.meter.receive(segment.unreadable)
        feed.meter.lose("undecodable", segment.unreadable)


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


def light_up(engine: Engine, gather: Gather, feeds: dict[str, Feed], batch: int) -> None:
    """Gather to engine, for all feeds: batches of the freshest frames, handed on while they are being computed."""
    while taken := gather.take(batch, time.time_ns):
        try:
            slots = enhance(engine, [frame for _, frame in taken])
        except Exception as error:
            for name, _ in taken:
                feeds[name].tell(error)
                feeds[name].meter.lose("engine")
                gather.done(name)
            if not isinstance(error, EngineError):
                raise
            continue
        for (name, frame), slot in zip(taken, slots, strict=True):
            feeds[name].under_way.put((frame, slot))


def send_out(feed: Feed, gather: Gather, publisher: Publisher, model: str) -> None:
    """Engine to wire, for one feed: wait for each picture, encode it, publish it; at the end flush the encoder."""
    outlet = Outlet(feed, publisher, model)
    while (item := feed.under_way.get()) is not None:
        frame, slot = item
        try:
            if gather.abandoned:
                feed.meter.drop("stopped")
            elif is_enhanced(feed, slot):
                outlet.send(frame, slot)
        finally:
            slot.release()
            gather.done(feed.name)
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
