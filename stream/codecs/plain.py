"""Plain pictures: whatever a decoder gives, converted to progressive, planar, 8-bit 4:2:0 or grey."""

from __future__ import annotations

from collections.abc import Iterable
from errno import ENOTSUP
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideData, SideDataContainer, Type
from av.video.codeccontext import VideoCodecContext
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from engines.colour import Colour, Matrix
from stream.frame import plane_view

PLAIN = ("yuv420p", "yuvj420p", "gray")
HD_HEIGHT = 720
"""Pictures from this height on that do not state their matrix are taken as BT.709."""

BT601_CODES = (4, 5, 6)
"""Matrix coefficients of ITU-T H.273: FCC, BT.601 with 625 lines, with 525 lines."""
BT709_CODES = (1, 7, 9, 10)
"""BT.709, SMPTE 240M, BT.2020 twice: the last three are near enough to the first."""

BT2020_CODE = 9
"""BT.2020 with non-constant luminance."""
HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
"""PQ and HLG of ITU-R BT.2100."""

NEUTRAL = 128
"""Chroma code value of no colour; codecs round to its neighbours."""

FATAL = ("yaf32le", "yaf32be")
"""Pixel formats, as of OpenEXR, at which libswscale aborts the process (FFmpeg 8.1): an assertion fails."""

CLOCK = Fraction(1, 90_000)
"""Time base of the deinterlacer; pictures also carry their own times."""


class PlainPictures:
    """Makes pictures plain; those that already are pass untouched, without a copy of their planes."""

    def __init__(self, *, fields_apart: bool = False) -> None:
        """`fields_apart`: an interlaced picture is a single field, with nothing to deinterlace."""
        self.interlaced = False
        """Whether a picture of two fields has come; from then on pictures come out one later than they went in."""
        self._fields_apart = fields_apart
        self._deinterlacer: Graph | None = None
        self._layout: tuple[int, int, str, int, int] | None = None
        self._reformatter = VideoReformatter()

    def add(self, picture: VideoFrame) -> list[VideoFrame]:
        """The plain pictures that are ready, in order; raises `av.FFmpegError`."""
        if picture.format.name in FATAL:
            raise av.FFmpegError(ENOTSUP, f"pictures of format {picture.format.name} cannot be converted")
        self.interlaced = self.interlaced or (picture.interlaced_frame and not self._fields_apart)
        if not self.interlaced:
            return [self._plain(picture)]
        ready = []
        layout = (picture.width, picture.height, picture.format.name, picture.colorspace, picture.color_range)
        if self._deinterlacer is None or layout != self._layout:  # it gives its first colour to all that state none
            ready = self.flush()
            self._deinterlacer, self._layout = deinterlacer(picture), layout
        self._deinterlacer.vpush(picture)
        return ready + self._deinterlaced()

    def flush(self) -> list[VideoFrame]:
        """The plain pictures that were still held back."""
        if self._deinterlacer is None:
            return []
        self._deinterlacer.vpush(None)
        ready = self._deinterlaced()
        self._deinterlacer = None
        return ready

    def _deinterlaced(self) -> list[VideoFrame]:
        ready: list[VideoFrame] = []
        while self._deinterlacer:
            try:
                ready.append(self._plain(self._deinterlacer.vpull()))
            except (av.BlockingIOError, av.EOFError):
                break
        return ready

    def _plain(self, picture: VideoFrame) -> VideoFrame:
        hdr = is_hdr(picture)
        if picture.format.name in PLAIN and not hdr:
            return picture
        colour = colour_of(picture)
        code_range = ColorRange.JPEG if colour.full_range else ColorRange.MPEG
        rgb = picture.format.is_rgb
        matrix = Colorspace.ITU709 if colour.matrix == "bt709" else Colorspace.ITU601  # FFmpeg knows no others
        return self._reformatter.reformat(
            picture,
            format="gray" if is_grey(picture.format) else "yuv420p",
            src_colorspace=None if rgb else Colorspace.BT2020 if hdr else matrix,
            dst_colorspace=matrix,
            src_color_range=None if rgb else code_range,
            dst_color_range=code_range,
            dst_color_trc=ColorTrc.BT709 if hdr else None,
            dst_color_primaries=ColorPrimaries.BT709 if hdr else None,
            threads=1,
        )


def deinterlacer(picture: VideoFrame) -> Graph:
    """A filter for pictures like this one: one progressive picture for each interlaced one, others untouched."""
    graph = Graph()
    graph.threads = 1
    graph.link_nodes(
        graph.add(
            "buffer",
            video_size=f"{picture.width}x{picture.height}",
            pix_fmt=picture.format.name,
            time_base=str(CLOCK),
            colorspace=str(int(picture.colorspace)),
            range=str(int(picture.color_range)),
        ),
        graph.add("bwdif", "mode=send_frame:deint=interlaced"),
        graph.add("buffersink"),
    ).configure()
    return graph


def colour_of(picture: VideoFrame) -> Colour:
    """The matrix and range of a picture's code values; if not stated, limited range and a matrix by height.

    16-bit grey, as from thermal cameras, defaults to full range. An RGB picture gets what it will have when it is
    plain.
    """
    grey, rgb = is_grey(picture.format), picture.format.is_rgb
    matrix: Matrix = "bt601" if picture.height < HD_HEIGHT else "bt709"
    if picture.colorspace in BT601_CODES:
        matrix = "bt601"
    elif picture.colorspace in BT709_CODES:
        matrix = "bt709"
    full_range = picture.color_range == ColorRange.JPEG or (
        picture.color_range == ColorRange.UNSPECIFIED and picture.format.name.startswith(("yuvj", "gray16"))
    )
    return Colour(matrix, full_range and not rgb, grey)


def states_matrix(stream: VideoCodecContext) -> bool:
    """Whether a stream states its matrix, so that `colour_of` need not assume one; pictures made plain always do."""
    return stream.colorspace in (*BT601_CODES, *BT709_CODES)


def display_matrix(picture: VideoFrame) -> tuple[int, ...]:
    """FFmpeg's nine numbers on how to show a decoded picture, from its container or codec; none: as it is."""
    found = next((message for message in messages_of(picture) if message.type is Type.DISPLAYMATRIX), None)
    return () if found is None else tuple(np.frombuffer(bytes(found), np.int32).tolist())


def messages_of(picture: VideoFrame) -> list[SideData]:
    """A decoded picture's side data; nothing if any is of a kind that PyAV does not know, such as EXIF."""
    # `picture.side_data` forms a reference cycle with its picture: both would stay until the garbage collector runs
    try:
        return [*cast("Iterable[SideData]", SideDataContainer(picture))]  # type: ignore[call-arg]
    except ValueError:
        return []


def is_hdr(picture: VideoFrame) -> bool:
    """Whether a colour picture is signalled as one of ITU-R BT.2100: PQ or HLG.

    libswscale makes it plain: light up to 203 cd/m2 (BT.2408) stays in proportion, for a BT.1886 display, and more
    light becomes white. HLG is taken as shown by a display of 1000 cd/m2.
    """
    return (
        picture.color_trc in HDR
        and picture.color_primaries == ColorPrimaries.BT2020
        and picture.colorspace == BT2020_CODE
        and not is_grey(picture.format)
    )


def is_neutral(picture: VideoFrame) -> bool:
    """Whether a plain picture has no colour anywhere."""
    chroma = [plane_view(plane) for plane in picture.planes[1:]]
    return all(plane.min() >= NEUTRAL - 1 and plane.max() <= NEUTRAL + 1 for plane in chroma)


def is_grey(kind: VideoFormat) -> bool:
    """Whether pictures of this format have only luma, of any depth."""
    return len(kind.components) == 1 and not kind.is_rgb and not kind.has_palette
