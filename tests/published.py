"""A relay's end of the wire for tests: one feed of real access units, published on demand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np

from engines.colour import Colour
from stream.encode import Encoder
from stream.errors import WireError
from stream.publish import Publisher
from stream.settings import EncoderSettings, RelaySettings
from stream.wire.messages import Header
from tests.waiting import wait_until

WIDTH, HEIGHT = 160, 96
TICKS = 3600
"""Of 1/90000 s between pictures: 25 pictures a second."""


class Camera:
    """Encodes and publishes pictures of one colour each, as the relay does; picture n is as bright as `luma(n)`."""

    def __init__(
        self, publisher: Publisher, feed: str = "pier", width: int = WIDTH, height: int = HEIGHT, **encoder: Any
    ) -> None:
        settings = EncoderSettings(**{"key_interval": 0.4} | encoder)
        self.feed = feed
        self.shown = 0
        self._publisher = publisher
        self._encoder = Encoder(settings, width, height, Colour(), Fraction(1, 90000), Fraction(25))
        self._y = np.empty((height, width), np.uint8)
        self._uv = np.full((2, height // 2, width // 2), 128, np.uint8)

    @staticmethod
    def luma(number: int) -> int:
        """Code value of all of picture `number`."""
        return 40 + 5 * (number % 32)

    def show(self, amount: int = 1, **header: Any) -> None:
        """Encode and publish the next pictures."""
        for _ in range(amount):
            self._y[:] = self.luma(self.shown)
            key = self._publisher.take_join(self.feed)
            for picture in self._encoder.encode(self._y, self._uv[0], self._uv[1], self.shown * TICKS, key):
                self._publisher.publish(
                    self.feed,
                    "video",
                    Header(
                        key=picture.key,
                        codec=picture.codec,
                        width=picture.width,
                        height=picture.height,
                        pts=picture.pts,
                        time_base=picture.time_base,
                        capture_ns=time.time_ns(),
                        **{"capture_clock": "arrival", "state": "clean"} | header,
                    ),
                    picture.payload,
                )
            self.shown += 1

    def close(self) -> None:
        """Free the encoder."""
        self._encoder.close()

    def wait_for_viewer(self) -> None:
        """Return once somebody has subscribed to the feed."""
        wait_until(lambda: self._publisher.take_join(self.feed), f"a viewer of {self.feed}")


@contextmanager
def relay(
    run: str = "run-1", endpoint: str = "tcp://127.0.0.1:*", high_water_mark: int = 1000, lossless: bool = False
) -> Iterator[Publisher]:
    """An open publisher, by default at a free port, which keeps enough for tests that publish faster than live.

    An address that a closed publisher leaves free in a moment is waited for.
    """
    publisher = Publisher(RelaySettings(endpoint=endpoint, high_water_mark=high_water_mark), run, lossless)

    def is_open() -> bool:
        try:
            publisher.__enter__()
        except WireError as error:
            if "Address already in use" in str(error):
                return False
            raise
        return True

    wait_until(is_open, f"{endpoint} being free")
    try:
        yield publisher
    finally:
        publisher.__exit__(None, None, None)
