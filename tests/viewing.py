"""What a relay shows and says, for the tests of `nightbridge view` and of others that listen to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from threading import Event, Thread
from typing import Any

import numpy as np

from engines.colour import Colour
from stream.encode import Encoder
from stream.publish import Publisher
from stream.settings import EncoderSettings
from stream.wire.messages import Header, Message, Numbering, Status, encode_status
from tests.published import Camera, relay

ORANGE = (200, 120, 40)


def message(payload: bytes, codec: str, relay: str = "run-1") -> Message:
    header = Numbering("video").stamp(Header(key=True, codec=codec, pts=0, time_base=Fraction(1, 25)), relay, "pier", 0)
    return Message("video", header, payload)


def one_colour(rgb: tuple[int, int, int], colour: Colour, codec: str = "h264", amount: int = 1) -> list[Message]:
    """Pictures all of which have this colour, coded with this matrix and range."""
    y, u, v = colour.coefficients()[1] @ np.append(np.array(rgb) / 255, 1).astype(np.float32)
    settings = EncoderSettings.model_validate({"codec": codec})
    planes = [np.full((size, size), round(float(value)), np.uint8) for size, value in ((64, y), (32, u), (32, v))]
    with Encoder(settings, 64, 64, colour, Fraction(1, 25)) as encoder:
        pictures = [encoder.encode(planes[0], planes[1], planes[2], pts) for pts in range(amount)]
    return [message(picture.payload, codec) for [picture] in pictures]


@contextmanager
def on_air(feed: str = "pier", **header: Any) -> Iterator[Publisher]:
    """A relay whose feed shows a picture each 20 ms until the block ends."""
    with relay() as publisher:
        camera = Camera(publisher, feed)
        ended = False

        def show() -> None:
            while not ended:
                camera.show(**header)
                time.sleep(0.02)

        thread = Thread(target=show)
        thread.start()
        try:
            yield publisher
        finally:
            ended = True
            thread.join()


@contextmanager
def repeating(publish: Callable[[], object]) -> Iterator[None]:
    """Something that a relay says each 20 ms until the block ends, as viewers hear nothing of what was before them."""
    ended = Event()

    def repeat() -> None:
        while not ended.is_set():
            publish()
            ended.wait(0.02)

    thread = Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def status(state: str, reason: str | None = None, dropped: int = 0, lost: int = 0) -> Status:
    """What a relay says of a feed, with counts of pictures."""
    return Status(
        state=state,
        received=dropped + lost,
        published=0,
        under_way=0,
        dropped={"overload": dropped},
        lost={"damaged": lost},
        reason=reason,
    )


def saying(publisher: Publisher, says: Callable[[], Status], feed: str = "pier") -> AbstractContextManager[None]:
    """A relay that says so of a feed, again and again."""
    return repeating(lambda: publisher.publish(feed, "status", Header(), encode_status(says())))


NO_LOGIN = "rtsp://10.0.0.7/: user name or password is missing or wrong"

UNDECODABLE = b"\0\0\0\1\x65" + bytes(40)
