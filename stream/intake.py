"""Decodes one segment's pictures, counts them, places them in time and hands them on to the gather."""

from __future__ import annotations

import math
import time

from engines.door import Door
from engines.errors import EngineError, EngineMismatch
from stream.codecs.orientation import Orientation
from stream.decode import Decoder
from stream.enhance import Gather, size
from stream.errors import CodecError
from stream.feed import Feed
from stream.frame import BYTES_PER_PIXEL, Frame, SourcePacket
from stream.source import Segment

RETRY_SECONDS = 10.0
"""Between two attempts to prepare the engine for a size that it failed on."""
PICTURELESS_SECONDS = 60
"""Access units without a picture for this long are reported."""


class Intake:
    """Takes in one segment of a feed; for one thread. Every access unit is handed on, or counted as dropped or lost."""

    def __init__(self, feed: Feed, segment: Segment, engine: Door, gather: Gather[Feed]) -> None:
        """May take seconds if the engine must still be prepared for the segment's size."""
        self._feed = feed
        self._segment = segment
        self._engine = engine
        self._gather = gather
        self._lost = self._behind = 0
        self._size: tuple[int, int] | None = None
        self._fits = False
        self._try_again = math.inf
        self._shown_ns: int | None = None  # arrival of the last access unit that gave a picture
        largest = feed.settings.memory // BYTES_PER_PIXEL
        width, height = segment.info.width or 0, segment.info.height or 0
        if 0 < width * height <= largest:
            self._prepare(width, height)
        self._decoder = Decoder(segment.video, largest, feed.settings.decoder)
        feed.timeline.begin(segment.recorded)

    @property
    def orientation(self) -> Orientation:
        """See `Decoder.orientation`."""
        return self._decoder.orientation

    @property
    def filmed_size(self) -> tuple[int, int]:
        """See `Decoder.filmed_size`."""
        return self._decoder.filmed_size

    def decode(self, packet: SourcePacket) -> list[Frame]:
        """The frames that an access unit completes. Raises `CodecError`."""
        self._feed.meter.receive()
        frames = self._decoder.decode(packet)
        if frames or self._shown_ns is None:
            self._shown_ns = packet.received_ns
        elif packet.received_ns - self._shown_ns >= PICTURELESS_SECONDS * 1_000_000_000:
            self._shown_ns = packet.received_ns
            words = f"no key frame that can be decoded has come for {PICTURELESS_SECONDS} s"
            self._feed.note_trouble(CodecError(words))
        return frames

    def finish(self) -> None:
        """Hand on the last frames, and count what gave no picture."""
        self.hand_on(self._decoder.flush())
        self._feed.meter.receive(self._segment.unreadable)
        self._feed.meter.lose("undecodable", self._segment.unreadable)

    def hand_on(self, frames: list[Frame]) -> None:
        """Put frames into the gather, which may block in a replay; what was dropped or lost so far is counted."""
        self._count()
        if frames:
            self._feed.note_codec("decoder", self._decoder.name, self._decoder.trouble)
        for frame in frames:
            if size(frame) != self._size or time.monotonic() >= self._try_again:
                self._prepare(*size(frame))
            if self._fits:
                self._gather.put(self._feed, self._feed.timeline.place(frame))
            else:
                self._feed.meter.lose("engine")

    def _count(self) -> None:
        behind, lost = self._segment.behind, self._decoder.lost  # another thread counts `behind`
        self._feed.meter.receive(behind - self._behind)
        self._feed.meter.drop("behind", behind - self._behind)
        self._feed.meter.lose("undecodable", lost - self._lost)
        self._behind, self._lost = behind, lost

    def _prepare(self, width: int, height: int) -> None:
        """Prepare the engine for a new size here, where only this feed waits for it.

        A size that the engine rejects is not tried again; one that it failed on is, after `RETRY_SECONDS`.
        """
        self._size, self._fits, self._try_again = (width, height), True, math.inf
        try:
            self._engine.prepare(width, height)
        except EngineError as error:
            self._feed.note_trouble(error)
            self._fits = False
            if not isinstance(error, EngineMismatch):
                self._try_again = time.monotonic() + RETRY_SECONDS
