"""What becomes of a clip that is decoded, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stream.decode import Decoder
from stream.errors import SourceLost
from stream.frame import Frame, SourcePacket
from stream.settings import FeedSettings
from stream.source import open_source
from tests.clips import (
    read_number,
)


class Decoded:
    """What became of a clip."""

    def __init__(self, url: str | Path, keep: slice | None = None) -> None:
        """Decodes the access units in `keep` of all segments."""
        self.frames: list[Frame] = []
        self.units: list[SourcePacket] = []
        self.lost = 0
        self.deinterlaced = False
        settings = FeedSettings(url=str(url), open_timeout=5.0, read_timeout=2.0)
        with open_source(settings) as source:
            for segment in self.segments_of(source.segments()):
                decoder = Decoder(segment.video)
                units = [packet for packet in segment.packets() if packet.kind == "video"][keep or slice(None)]
                for unit in units:
                    self.frames += decoder.decode(unit)
                self.frames += decoder.flush()
                self.units += units
                self.lost += decoder.lost
                self.deinterlaced |= decoder.deinterlaces

    @staticmethod
    def segments_of(segments: Iterator[Any]) -> Iterator[Any]:
        """The segments, without the complaint that a feed went silent."""
        try:
            yield from segments
        except SourceLost:
            return

    @property
    def numbers(self) -> list[int]:
        return [read_number(frame.planes()[0]) for frame in self.frames]

    @property
    def states(self) -> list[str]:
        return [frame.state for frame in self.frames]
