"""The path of a picture, stage by stage, from source to wire; `stream.relay` runs the stages for all feeds.

    source ─► decode ─► gather ─► enhance ─► encode ─► publish
    └ bring_in, a thread a feed ┘ └ light_up ┘ └ send_out, a thread a feed ┘

All feeds share only the thread of `light_up`, which never waits for a feed.
"""

from __future__ import annotations

import time

from engines.door import Door, Slot
from engines.errors import EngineError
from stream.codecs.orientation import UPRIGHT
from stream.enhance import Gather, enhance
from stream.errors import CodecError, SourceError, SourceLost, SourceUnsupported
from stream.feed import Feed, FeedState
from stream.frame import Frame, Planes, SourcePacket
from stream.intake import Intake
from stream.outlet import Outlet
from stream.publish import Publisher
from stream.source import Segment, open_source
from stream.sources.pace import paced
from stream.sources.recording import RecordedSegment
from stream.wire.messages import Header, moment, ticks


def bring_in(feed: Feed, engine: Door, gather: Gather[Feed], publisher: Publisher) -> None:
    """Relay one feed from its source to the gather, until the recording ends or the feed is stopped.

    A lost source is reopened after a pause that grows with each failure.
    """
    end: FeedState = "ended"
    while not feed.stop.is_set():
        try:
            relay_source(feed, engine, gather, publisher)
            break
        except Exception as error:  # whatever it is: the other feeds go on
            if not worth_another_try(feed, error):
                end = "failed"
                feed.set_state(end, error)
                break
            feed.meter.reconnect(kind_of(error))
            pause = feed.backoff.pause(feed.seconds_live())
            feed.set_state("connecting", error)
            feed.stop.wait(pause)
    gather.drain(feed)
    if end != "failed":
        feed.set_state(end)
    feed.submitted.put(None)


def worth_another_try(feed: Feed, error: Exception) -> bool:
    """Whether reopening the source can help: always after `SourceLost`, as which sources report any problem of a
    camera.

    A recording that cannot be read, or an invalid address, stays so; a recording played live would only start over.
    """
    return isinstance(error, SourceLost) or (feed.settings.mode == "live" and not isinstance(error, SourceUnsupported))


def kind_of(error: Exception) -> str:
    """Why a source ended, as one word of a closed list."""
    if isinstance(error, SourceError):
        return error.reason
    return "codec" if isinstance(error, CodecError) else "unexpected"


def relay_source(feed: Feed, engine: Door, gather: Gather[Feed], publisher: Publisher) -> None:
    """Open a feed's source and relay it to its end; raises the error that ends it early.

    A recording that cannot be decoded, or whose pictures are too large, counts as unreadable.
    """
    with open_source(feed.settings, feed.stop, feed.opener) as source:
        for segment in source.segments():
            feed.rate = segment.rate
            feed.set_state("live")
            try:
                relay_segment(feed, segment, engine, gather, publisher)
            except CodecError as error:
                if not isinstance(segment, RecordedSegment):
                    raise
                segment.failure = str(error)


def relay_segment(feed: Feed, segment: Segment, engine: Door, gather: Gather[Feed], publisher: Publisher) -> None:
    """Relay one continuous stretch of a source: its packets to the wire unchanged, its pictures to the gather."""
    intake = Intake(feed, segment, engine, gather)
    publisher.begin_anew(feed.name, "source")
    packets = segment.packets()
    if segment.recorded and (speed := feed.speed) is not None:
        packets = paced(packets, feed.stop, speed)
    try:
        for packet in packets:
            frames = intake.decode(packet) if packet.kind == "video" else []
            try:
                publish_untouched(feed, segment, packet, intake, publisher)  # after decoding, which tells its size
            finally:
                intake.hand_on(frames)
    finally:
        intake.finish()


def publish_untouched(feed: Feed, segment: Segment, packet: SourcePacket, intake: Intake, publisher: Publisher) -> None:
    """Publish the camera's own access unit or data packet unchanged, if the settings ask for it."""
    video = packet.kind == "video"
    if not (feed.settings.publish_source if video else feed.settings.publish_data):
        return
    raw = packet.packet
    width, height = intake.filmed_size if video else (0, 0)
    header = Header(
        key=video and raw.is_keyframe,
        codec=segment.info.codec if video else raw.stream.name or "unknown",
        width=width or None,
        height=height or None,
        orientation=intake.orientation if video else UPRIGHT,
        pts=ticks(raw.pts),
        dts=ticks(raw.dts) if raw.dts != raw.pts else None,
        time_base=raw.time_base,
        capture_ns=moment(packet.capture_ns),
        capture_clock=packet.capture_clock,
        received_ns=packet.received_ns,
    )
    publisher.publish(feed.name, "source" if video else "data", header, bytes(raw))


def light_up(engine: Door, gather: Gather[Feed], batch: int) -> None:
    """Submit batches of the freshest frames of all feeds to the engine, and hand them on while it computes them."""
    while taken := gather.take(min(batch, engine.info.batch), engine.info.depth, time.time_ns):
        readable = [(feed, frame, planes) for feed, frame in taken if (planes := planes_of(feed, frame, gather))]
        if not readable:
            continue
        recalls = [feed.recall for feed, _, _ in readable]
        try:
            slots = enhance(engine, [frame for _, frame, _ in readable], recalls, [planes for _, _, planes in readable])
        except Exception as error:
            for feed, _, _ in readable:
                feed.note_trouble(error)
                feed.meter.lose("engine")
                gather.done(feed)
            if not isinstance(error, EngineError):
                raise
            continue
        for (feed, frame, _), slot in zip(readable, slots, strict=True):
            feed.submitted.put((frame, slot))


def planes_of(feed: Feed, frame: Frame, gather: Gather[Feed]) -> Planes | None:
    """A frame's planes; None if they are malformed: only this frame's feed then loses a picture."""
    try:
        return frame.planes()
    except Exception as error:
        feed.note_trouble(error)
        feed.meter.lose("undecodable")
        gather.done(feed)
        return None


def send_out(feed: Feed, gather: Gather[Feed], publisher: Publisher, model: str) -> None:
    """Relay one feed from engine to wire: wait for, encode and publish each picture; at the end flush the encoder."""
    outlet = Outlet(feed, publisher, model)
    while (item := feed.submitted.get()) is not None:
        frame, slot = item
        try:
            if feed.lane.closed:
                feed.meter.drop("stopped")
            elif is_enhanced(feed, slot, gather):
                outlet.send(frame, slot)
        finally:
            slot.release()
            gather.done(feed)
    outlet.finish()


def is_enhanced(feed: Feed, slot: Slot, gather: Gather[Feed]) -> bool:
    """Wait until the engine has finished one picture; False if it failed, which counts as a loss."""
    try:
        slot.wait()
    except Exception as error:  # whatever it is: the other feeds go on
        feed.note_trouble(error)
        feed.meter.lose("engine")
        return False
    finally:
        gather.came_out(feed)
    return True
