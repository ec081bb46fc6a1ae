"""The end of one feed's path: enhanced pictures through the encoder to the wire."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from fractions import Fraction

from engines.colour import Colour
from engines.door import Slot
from stream.encode import EncodedPicture, Encoder
from stream.frame import Frame
from stream.metrics import FeedMeter
from stream.publish import Publisher
from stream.settings import EncoderSettings
from stream.wire import Header


class Outlet:
    """Encodes and publishes one feed's pictures; for one thread. `finish` flushes what is still inside."""

    def __init__(
        self, feed: str, settings: EncoderSettings, publisher: Publisher, meter: FeedMeter, model: str
    ) -> None:
        self._feed = feed
        self._settings = settings
        self._publisher = publisher
        self._meter = meter
        self._model = model
        self._encoder: Encoder | None = None
        self._opened_for: tuple[int, int, Colour, Fraction] | None = None
        self._inside: deque[Frame] = deque()
        """Frames whose access units have not come out yet, in order."""

    def send(self, frame: Frame, slot: Slot, rate: Fraction | None) -> None:
        """Encode the slot's output, which is read before this returns, and publish what the encoder gives.

        A new size, colour or time base begins a new encoder with a key frame; so does the picture itself when a
        viewer has joined. Raises `CodecError`; the picture is then lost.
        """
        height, width = slot.y_out.shape
        colour = replace(frame.colour, grey=False)  # a stream says matrix and range only
        wanted = (width, height, colour, frame.time_base)
        if self._encoder is None or self._opened_for != wanted:
            self.finish()
            self._encoder = Encoder(self._settings, *wanted, rate)
            self._opened_for = wanted
        self._inside.append(frame)
        key = self._publisher.take_join(self._feed)
        self._publish(self._encoder.encode(slot.y_out, slot.uv_out[0], slot.uv_out[1], frame.pts, key))

    def finish(self) -> None:
        """Publish what is still in the encoder and close it; frames that never come out are lost."""
        try:
            if self._encoder is not None:
                self._publish(self._encoder.flush())
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the encoder, flushed or not; the frames that are still inside it are lost."""
        if self._encoder is not None:
            self._encoder.close()
        self._encoder = None
        self._meter.lose("encoder", len(self._inside))
        self._inside.clear()

    def _publish(self, pictures: list[EncodedPicture]) -> None:
        for picture in pictures:
            frame = self._inside.popleft()
            header = Header(
                key=picture.key,
                codec=picture.codec,
                width=picture.width,
                height=picture.height,
                pts=picture.pts,
                time_base=picture.time_base,
                capture_ns=frame.capture_ns,
                capture_clock=frame.capture_clock,
                received_ns=frame.received_ns,
                state=frame.state,
                mode="enhanced",
                model=self._model,
                source_sha256=frame.source_sha256,
            )
            self._publisher.publish(self._feed, "video", header, picture.payload)
            self._meter.publish((time.time_ns() - frame.capture_ns) / 1e6)
