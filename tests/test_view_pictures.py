from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import msgspec
import numpy as np
import pytest
from av.video.reformatter import ColorRange

from engines.colour import Colour
from stream.encode import Encoder
from stream.errors import CodecError
from stream.settings import EncoderSettings
from stream.view import PictureDecoder
from stream.wire.messages import Message
from tests.clips import make_clip
from tests.command import ROOT
from tests.doubling import DoublingEngine
from tests.relaying import recording, replayed
from tests.viewing import ORANGE, message, one_colour


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_every_message_gives_its_picture_at_once(codec: str) -> None:
    decoder = PictureDecoder()
    assert [len(decoder.decode(each)) for each in one_colour(ORANGE, Colour(), codec, amount=5)] == [1] * 5


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_colours_are_those_that_the_stream_names(matrix: str, full_range: bool, codec: str) -> None:
    decoder = PictureDecoder()
    colour = Colour(matrix, full_range)  # type: ignore[arg-type]
    [picture] = decoder.decode(one_colour(ORANGE, colour, codec)[0])
    rgb = decoder.rgb(picture)
    assert rgb.shape == (64, 64, 3)
    assert rgb.dtype == np.uint8
    assert np.abs(rgb.astype(int) - ORANGE).max() <= 2


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(1), 64), (Fraction(16, 11), 93), (Fraction(8), 256)])
def test_pixels_that_are_not_square_make_a_picture_that_is_as_wide_as_it_should_be(
    aspect: Fraction, width: int
) -> None:
    decoder = PictureDecoder()
    planes = [np.full((side, side), 90, np.uint8) for side in (64, 32, 32)]
    with Encoder(EncoderSettings(), 64, 64, Colour(), Fraction(1, 25), aspect=aspect) as encoder:
        [coded] = encoder.encode(planes[0], planes[1], planes[2], 0)
    [picture] = decoder.decode(message(coded.payload, "h264"))
    assert decoder.rgb(picture).shape == (64, width, 3)


def test_colours_that_a_stream_does_not_name_are_taken_by_the_height_of_the_picture() -> None:
    decoder = PictureDecoder()
    for height, matrix in ((720, "bt709"), (480, "bt601")):
        colour = Colour(matrix)  # type: ignore[arg-type]
        code_values = colour.coefficients()[1] @ np.array([*(part / 255 for part in ORANGE), 1], np.float32)
        planes = [
            np.full((height // part, 64 // part), round(float(value)), np.uint8)
            for part, value in zip((1, 2, 2), code_values, strict=True)
        ]
        picture = av.VideoFrame.from_dlpack(tuple(planes), format="yuv420p")
        assert np.abs(decoder.rgb(picture).astype(int) - ORANGE).max() <= 2


def test_grey_pictures_have_the_brightness_that_their_range_says() -> None:
    decoder = PictureDecoder()
    for full_range, values in ((False, {16: 0, 126: 128, 235: 255}), (True, {0: 0, 128: 128, 255: 255})):
        for luma, shown in values.items():
            picture = av.VideoFrame.from_ndarray(np.full((64, 64), luma, np.uint8), "gray")
            picture.color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
            assert np.all(decoder.rgb(picture) == shown)


@pytest.mark.parametrize("codec", ["h264", "mpeg2video", "mpeg4"])
def test_pictures_of_a_camera_that_refer_to_later_ones_are_shown_in_their_order(codec: str, tmp_path: Path) -> None:
    library = {"h264": "libx264"}.get(codec, codec)
    clip = make_clip(tmp_path / "clip.ts", pictures=20, codec=library, b_frames=2)
    decoder, shown = PictureDecoder(), []
    with av.open(str(clip)) as container:
        for packet in container.demux(video=0):
            if packet.size:
                came = message(bytes(packet), codec)
                header = msgspec.structs.replace(came.header, pts=packet.pts, dts=packet.dts)
                shown += [picture.pts for picture in decoder.decode(replace(came, header=header))]
    assert len(shown) > 15
    assert shown == sorted(shown)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_after_a_hole_no_picture_is_shown_that_refers_to_those_before_it(codec: str, tmp_path: Path) -> None:
    """In open groups the pictures behind a key frame that are shown before it do."""
    options = {"libx264": {"x264-params": "open-gop=1"}, "libx265": {"x265-params": "log-level=none:open-gop=1"}}
    clip = make_clip(
        tmp_path / "clip.ts", codec=codec, b_frames=2, pictures=80, key_interval=12, options=options.get(codec)
    )
    messages = [each for each in replayed(DoublingEngine(), recording(clip))[1] if each.kind == "source"]
    keys = [number for number, each in enumerate(messages) if each.header.key]

    def shown(messages: list[Message]) -> dict[int | None, np.ndarray]:
        decoder = PictureDecoder()
        return {picture.pts: decoder.rgb(picture) for each in messages for picture in decoder.decode(each)}

    whole, cut = shown(messages), shown(messages[: keys[1] + 5] + messages[keys[3] :])
    assert len(cut) > len(messages) - keys[3]
    assert all(np.array_equal(picture, whole[pts]) for pts, picture in cut.items())


def test_an_access_unit_that_cannot_be_decoded_is_counted_and_the_next_key_frame_shown() -> None:
    decoder = PictureDecoder()
    good = one_colour(ORANGE, Colour())[0]
    assert decoder.decode(message(b"\0\0\0\1\x65" + bytes(40), "h264")) == []
    assert decoder.undecodable == 1
    assert len(decoder.decode(good)) == 1


ABORTING = """
import av
from stream.errors import CodecError
from stream.view import PictureDecoder
try:
    PictureDecoder().rgb(av.VideoFrame(64, 48, "{}"))
except CodecError as error:
    print(error)
"""


@pytest.mark.parametrize("pix_fmt", ["yaf32le", "yaf32be"])
def test_a_picture_that_libswscale_would_end_the_process_at_is_an_error(pix_fmt: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ABORTING.format(pix_fmt)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"pictures of {pix_fmt} cannot be shown\n"


def test_a_message_without_a_picture_is_counted_and_the_next_one_shown() -> None:
    decoder = PictureDecoder()
    good = one_colour(ORANGE, Colour())[0]
    assert len(decoder.decode(good)) == 1
    assert decoder.decode(message(b"", "h264")) == []
    assert decoder.undecodable == 1
    assert len(decoder.decode(good)) == 1


def test_a_relay_that_begins_anew_with_another_codec_is_decoded() -> None:
    decoder = PictureDecoder()
    assert len(decoder.decode(one_colour(ORANGE, Colour(), "h264")[0])) == 1
    hevc = one_colour(ORANGE, Colour(), "hevc")[0]
    assert len(decoder.decode(message(hevc.payload, "hevc", "run-2"))) == 1


@pytest.mark.parametrize("codec", ["smoke signals", "aac"])
def test_a_codec_that_shows_no_pictures_is_named(codec: str) -> None:
    with pytest.raises(CodecError, match=codec):
        PictureDecoder().decode(message(b"", codec))
