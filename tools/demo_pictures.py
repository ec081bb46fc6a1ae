"""Before and after: what a camera sent and what the relay made of it, beside the clip that the camera saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from statistics import mean

import numpy as np
from av.video.frame import VideoFrame
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from engines.evaluation.scores import psnr
from stream.simulator.camera import Clip
from stream.view import PictureDecoder, RgbPicture
from stream.wire.messages import Kind, Message

COMPARE_EVERY = 5
"""One of this many pictures is compared."""
MOST_PAIRS = 50
"""Most pairs that are kept: ten seconds of video, about 30 MB at the size of the demo."""
BAR = 32
"""Height of the line of text above the pictures, in pixels."""


@dataclass(frozen=True)
class Pair:
    """The same moment from camera and relay."""

    number: int
    """Of the picture, from 0; counting goes on when the clip repeats."""
    camera: VideoFrame
    relay: VideoFrame


class Pairs:
    """Pairs pictures of camera and relay of the same moment, from messages of kind `source` and `video`."""

    def __init__(self, rate: Fraction) -> None:
        """`rate` is the camera's, in pictures a second; its times begin at 0."""
        self.found: list[Pair] = []
        self._rate = rate
        self._decoders: defaultdict[Kind, PictureDecoder] = defaultdict(PictureDecoder)
        self._waiting: dict[int, VideoFrame] = {}
        """The camera's pictures, by number, that the relay may still send enhanced."""

    def add(self, message: Message) -> None:
        """Decode a picture; most are only needed to decode later ones."""
        for picture in self._decoders[message.kind].decode(message):
            number = round((picture.pts or 0) * (message.header.time_base or 0) * self._rate)
            if number % COMPARE_EVERY or len(self.found) == MOST_PAIRS:
                continue
            if message.kind == "source":
                self._waiting[number] = picture
            elif number in self._waiting:
                self.found.append(Pair(number, self._waiting[number], picture))
                self._waiting = {later: waits for later, waits in self._waiting.items() if later > number}


def compare(clip: Path, pairs: Sequence[Pair]) -> tuple[float, float]:
    """Mean PSNR in dB of the camera's pictures, doubled, and of the relay's, against the clip that was played."""
    by_number = {pair.number: pair for pair in pairs}
    before, after = [], []
    with Clip(clip) as day:
        for number, frame in enumerate(islice(day.frames(loop=True), max(by_number) + 1)):
            if number in by_number:
                pair, clean = by_number[number], as_rgb(frame)
                before.append(psnr(np.asarray(enlarged(pair.camera, frame.width, frame.height)), clean))
                after.append(psnr(as_rgb(pair.relay), clean))
    return mean(before), mean(after)


def as_rgb(frame: VideoFrame) -> RgbPicture:
    """The frame as a viewer sees it."""
    return PictureDecoder().rgb(frame)


def enlarged(frame: VideoFrame, width: int, height: int) -> Image.Image:
    """The frame at this size, bicubic: what a viewer would have without the relay."""
    return Image.fromarray(as_rgb(frame)).resize((width, height), Image.Resampling.BICUBIC)


def side_by_side(pair: Pair, before: str, after: str) -> Image.Image:
    """The camera's picture, enlarged, and right of it the relay's, each below its label."""
    width, height = pair.relay.width, pair.relay.height
    sheet = Image.new("RGB", (2 * width, BAR + height), (24, 26, 30))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=BAR // 2)
    pictures = enlarged(pair.camera, width, height), Image.fromarray(as_rgb(pair.relay))
    for left, picture, label in zip((0, width), pictures, (before, after), strict=True):
        sheet.paste(picture, (left, BAR))
        pen.text((left + BAR // 2, BAR // 2), label, (235, 235, 235), font, anchor="lm")
    return sheet


def save_png(picture: Image.Image, path: Path, credit: str) -> None:
    """Write the picture, with `credit` in the file's metadata. Raises `OSError`."""
    note = PngInfo()
    note.add_text("Copyright", credit)
    picture.save(path, format="PNG", pnginfo=note)
