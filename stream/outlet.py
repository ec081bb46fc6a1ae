"""The end of one feed's path: enhanced pictures through the encoder to the wire."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from fractions import Fraction

from engines.colour import Colour
from engines.door import Slot
from stream.encode import EncodedPicture, Encoder
from stream.errors import CodecError
from stream.feed import Feed
from stream.frame import Frame
from stream.publish import Publisher
from stream.wire.messages import Header, moment, ticks

PAUSE_SECONDS = 1.0
"""Between the failure of an encoder and the next attempt; most would fail again at once."""


class Outlet:
    """Encodes and publishes one feed's pictures; for one thread. Raises nothing.

    If an encoder fails, the pictures inside it and those of the next second are lost, the reason is logged, and then a
    new encoder begins, on the CPU if the one that failed was on a GPU.
    """

    def __init__(self, feed: Feed, publisher: Publisher, model: str) -> None:
        """`model` is the id of the weights."""
        self._feed = feed
        self._publisher = publisher
        self._model = model
        self._settings = feed.settings.encoder
        self._encoder: Encoder | None = None
        self._opened_for: tuple[int, int, Colour, Fraction, Fraction] | None = None
        self._inside: deque[Frame] = deque()
        """Frames whose access units are not published yet, in order."""
        self._paused_until = 0.0

    def send(self, frame: Frame, slot: Slot) -> None:
        """Encode the slot's output, which is read before this returns, and publish what the encoder gives.

        A new size, colour, time base or pixel aspect ratio starts a new encoder with a key frame. A new viewer also
        causes a key frame.
        """
        height, width = slot.y_out.shape
        colour = replace(frame.colour, grey=False) if frame.colour.grey else frame.colour  # a stream cannot say so
        wanted = (width, height, colour, frame.time_base, frame.aspect)
        if self._opened_for != wanted:
            self.finish()
            self._opened_for, self._paused_until = wanted, 0.0
        if time.monotonic() < self._paused_until:
            self._feed.meter.lose("encoder")
            return
        self._inside.append(frame)
        try:
            if self._encoder is None:
                self._encoder = Encoder(self._settings, *wanted[:-1], self._feed.rate, frame.aspect)
            key = self._publisher.take_join(self._feed.name)
            self._publish(self._encoder.encode(slot.y_out, slot.uv_out[0], slot.uv_out[1], frame.pts, key))
            self._feed.note_codec("encoder", self._encoder.name, self._encoder.trouble)
        except Exception as error:
            self._feed.note_trouble(error)
            if isinstance(error, CodecError) and self._encoder and self._encoder.on_gpu:
                self._settings = self._settings.model_copy(update={"hardware": "none"})
            self._close()
            self._paused_until = time.monotonic() + PAUSE_SECONDS

    def finish(self) -> None:
        """Publish what is still in the encoder and close it; frames that never come out are lost."""
        try:
            if self._encoder is not None:
                self._publish(self._encoder.flush())
        except Exception as error:
            self._feed.note_trouble(error)
        finally:
            self._close()

    def _close(self) -> None:
        encoder, self._encoder = self._encoder, None
        self._feed.meter.lose("encoder", len(self._inside))
        self._inside.clear()
        if encoder is not None:
            encoder.close()

    def _publish(self, pictures: list[EncodedPicture]) -> None:
        for picture in pictures:
            frame = self._inside[0]
            header = Header(
                key=picture.key,
                codec=picture.codec,
                width=picture.width,
                height=picture.height,
                pts=ticks(picture.pts),
                source_pts=ticks(frame.source_pts),
                time_base=picture.time_base,
                capture_ns=moment(frame.capture_ns),
                capture_clock=frame.capture_clock,
                received_ns=frame.received_ns,
                state=frame.state,
                mode="enhanced",
                model=self._model,
                source_sha256=frame.source_sha256,
            )
            self._publisher.publish(self._feed.name, "video", header, picture.payload)
            self._inside.popleft()
            self._feed.meter.publish((time.time_ns() - frame.capture_ns) / 1e6)
