from __future__ import annotations

import re
import threading
from fractions import Fraction
from pathlib import Path
from typing import get_args

import av
import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stream.codecs.orientation import Orientation, orientation_of, swaps_sides, upright
from stream.decode import Decoder
from stream.files.convert import convert
from stream.frame import Frame, plane_view
from stream.settings import FeedSettings
from stream.source import open_source
from stream.sources.fields import rewritten
from stream.sources.recording import open_recording
from stream.view import PictureDecoder
from stream.wire.messages import Message
from tests.clips import joined, make_clip, picture, read_number, turned
from tests.doubling import DoublingEngine
from tests.relaying import recording, replayed

ONE = 1 << 16
ORIENTATION = 0x112
"""Number of EXIF's tag."""
MAKE = 0x10F
"""The same, of who made the camera."""

WIDTH, HEIGHT = 160, 96
FILMED = "top left"
"""Where the bright corner is in what a camera filmed."""

SHOWN: dict[str, tuple[tuple[int, ...], Orientation, str]] = {
    "as it is": ((ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30), 1, "top left"),
    "front camera, level": ((-ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30), 2, "top right"),
    "head over heels": ((-ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30), 3, "bottom right"),
    "from below a mirror": ((ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30), 4, "bottom left"),
    "front camera, upright": ((0, ONE, 0, ONE, 0, 0, 0, 0, 1 << 30), 5, "top left"),
    "phone, upright": ((0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30), 6, "top right"),
    "front camera, upside down": ((0, -ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30), 7, "bottom right"),
    "phone, upside down": ((0, -ONE, 0, ONE, 0, 0, 0, 0, 1 << 30), 8, "bottom left"),
}
"""By how the camera was held: display matrix, orientation, and where the bright corner is to be seen."""


def corner_clip(
    path: Path,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    b_frames: int = 0,
    key_interval: int = 12,
    options: dict[str, str] | None = None,
) -> Path:
    """A dark clip whose pictures have a bright, red corner at the top left."""
    planes = np.full((3, HEIGHT, WIDTH), 128, np.uint8)
    planes[0] = 40
    planes[:, : HEIGHT // 4, : WIDTH // 4] = np.array([200, 90, 200])[:, None, None]
    quiet = {"x265-params": "log-level=none:pools=1:frame-threads=1"} if codec == "libx265" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=quiet | (options or {}))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        stream.codec_context.max_b_frames, stream.codec_context.gop_size = b_frames, key_interval
        for number in range(12):
            picture = av.VideoFrame.from_ndarray(planes, "yuv444p").reformat(format=pix_fmt)
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def bright_corner(luma: NDArray[np.uint8]) -> str:
    """Where a picture (H, W) or (H, W, 3) is bright."""
    rows, columns = luma.shape[0] // 8, luma.shape[1] // 8
    places = {
        f"{row} {column}": luma[rows if row == "top" else -rows, columns if column == "left" else -columns].max()
        for row in ("top", "bottom")
        for column in ("left", "right")
    }
    bright = [place for place, value in places.items() if value > 150]
    assert len(bright) == 1, places
    return bright[0]


def decoded(path: Path, *, as_shown: bool = True) -> list[Frame]:
    with open_source(FeedSettings(url=str(path))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video, upright=as_shown)
        frames = [frame for unit in segment.packets() for frame in decoder.decode(unit)]
        return frames + decoder.flush()


@pytest.mark.parametrize("orientation", get_args(Orientation))
def test_every_orientation_is_that_of_exif(orientation: Orientation) -> None:
    picture = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    image = Image.fromarray(picture)
    image.getexif()[ORIENTATION] = orientation
    assert np.array_equal(upright(picture, orientation), np.asarray(ImageOps.exif_transpose(image)))
    assert np.array_equal(upright(picture[..., 0], orientation), upright(picture, orientation)[..., 0])


@pytest.mark.parametrize(("matrix", "orientation", "corner"), SHOWN.values(), ids=SHOWN)
def test_a_recording_is_decoded_upright_however_its_camera_was_held(
    matrix: tuple[int, ...], orientation: Orientation, corner: str, tmp_path: Path
) -> None:
    frames = decoded(turned(corner_clip(tmp_path / "clip.mp4"), tmp_path / "phone.mp4", matrix))
    sides = (HEIGHT, WIDTH) if swaps_sides(orientation) else (WIDTH, HEIGHT)
    assert [(frame.width, frame.height, frame.orientation) for frame in frames] == [(*sides, orientation)] * 12
    y, u, v = frames[0].planes()
    assert (y.shape, u.shape, v.shape) == (sides[::-1], *[(sides[1] // 2, sides[0] // 2)] * 2)
    assert (bright_corner(y), bright_corner(v)) == (corner, corner)


def test_jpegs_that_a_camera_says_more_of_are_decoded(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[MAKE] = "camera"
    with (tmp_path / "clip.mjpeg").open("wb") as file:
        for number in range(3):
            luma = picture(number, WIDTH, HEIGHT)[0]
            Image.fromarray(luma).convert("RGB").save(file, "JPEG", exif=exif)
    frames = decoded(tmp_path / "clip.mjpeg")
    assert [read_number(frame.planes()[0]) for frame in frames] == [0, 1, 2]
    with DoublingEngine() as engine:
        assert convert(engine, tmp_path / "clip.mjpeg", tmp_path / "out.mkv", lambda _: None).pictures == 3


def test_a_picture_turned_counterclockwise_is_decoded_so(tmp_path: Path) -> None:
    clip, path = corner_clip(tmp_path / "clip.mp4"), tmp_path / "turned.mp4"
    with av.open(clip) as source, av.open(path, "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        copy.set_display_rotation(90)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    with av.open(path) as reader:
        filmed = next(reader.decode(video=0))
    assert filmed.rotation == 90
    frame = decoded(path)[0]
    assert np.array_equal(frame.planes()[0], np.rot90(plane_view(filmed.planes[0])))  # NumPy turns counterclockwise
    assert bright_corner(frame.planes()[0]) == "bottom left"


@pytest.mark.parametrize("degrees", [-97, -83, 80, 100, 170])
def test_a_camera_that_was_held_askew_is_turned_by_the_nearest_quarter(degrees: int) -> None:
    a, b = (round(ONE * value) for value in (np.cos(np.radians(degrees)), np.sin(np.radians(degrees))))
    assert orientation_of((a, b, 0, -b, a, 0, 0, 0, 1 << 30)) == {-90: 8, 90: 6, 180: 3}[round(degrees / 90) * 90]


def test_nothing_is_turned_by_a_matrix_of_zeros_or_by_none() -> None:
    assert (orientation_of((0,) * 9), orientation_of(())) == (1, 1)


def test_pictures_of_ten_bits_and_fields_are_turned_too(tmp_path: Path) -> None:
    matrix, _, corner = SHOWN["phone, upright"]
    clip = corner_clip(tmp_path / "clip.mp4", "libx265", "yuv420p10le")
    assert bright_corner(decoded(turned(clip, tmp_path / "phone.mp4", matrix))[0].planes()[0]) == corner
    fields = make_clip(tmp_path / "fields.mp4", interlaced=True, pictures=10)
    frames = decoded(turned(fields, tmp_path / "woven.mp4", matrix))
    assert {(frame.width, frame.height, frame.orientation) for frame in frames} == {(120, 160, 6)}


def test_a_picture_that_is_to_stay_as_it_was_filmed_stays_so(tmp_path: Path) -> None:
    path = turned(corner_clip(tmp_path / "clip.mp4"), tmp_path / "phone.mp4", SHOWN["phone, upright"][0])
    frame = decoded(path, as_shown=False)[0]
    assert (frame.width, frame.height, bright_corner(frame.planes()[0])) == (WIDTH, HEIGHT, FILMED)


def test_pixels_that_are_not_square_are_turned_with_their_picture(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", aspect=Fraction(4, 3), pictures=2)
    aspects = {
        name: decoded(turned(clip, tmp_path / f"{number}.mp4", matrix))[0].aspect
        for number, (name, (matrix, _, _)) in enumerate(SHOWN.items())
    }
    assert aspects == {
        name: Fraction(3, 4) if swaps_sides(orientation) else Fraction(4, 3)
        for name, (_, orientation, _) in SHOWN.items()
    }


SEI = {
    "libx264": (rb"\x00\x00\x01[\x01-\x05\x21\x25\x41\x45\x61\x65]", "000001 06 2f03 080009 80"),
    "libx265": (rb"\x00\x00\x01[\x00-\x3f]", "000001 4e01 2f03 080018 80"),
}
"""How a slice begins, and display orientation (ITU-T H.264 D.1.27, H.265 D.2.17): a quarter turn anticlockwise, which
lasts."""


def with_sei(clip: Path, path: Path, codec: str, keys_only: bool) -> Path:
    """The clip, a transport stream, with that message in front of the first slice of all pictures or of key frames."""
    first_slice, sei = SEI[codec]
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                unit = bytes(packet)
                if packet.is_keyframe or not keys_only:
                    unit = re.sub(first_slice, bytes.fromhex(sei) + rb"\g<0>", unit, count=1)
                told = av.Packet(unit)
                told.pts, told.dts, told.time_base, told.stream = packet.pts, packet.dts, packet.time_base, copy
                told.is_keyframe = packet.is_keyframe
                target.mux(told)
    return path


@pytest.mark.parametrize("keys_only", [False, True], ids=["all pictures", "key frames"])
@pytest.mark.parametrize("codec", SEI)
def test_a_live_stream_whose_codec_tells_how_it_is_turned_is_decoded_upright(
    codec: str, keys_only: bool, tmp_path: Path
) -> None:
    clip = corner_clip(tmp_path / "clip.ts", codec, key_interval=4)
    frames = decoded(with_sei(clip, tmp_path / "told.ts", codec, keys_only))
    assert [bright_corner(frame.planes()[0]) for frame in frames] == ["bottom left"] * 12


def test_a_live_stream_that_is_turned_no_more_from_a_key_frame_on_is_decoded_so(tmp_path: Path) -> None:
    clip = corner_clip(tmp_path / "clip.ts")
    told = with_sei(clip, tmp_path / "told.ts", "libx264", keys_only=True)
    frames = decoded(joined(tmp_path / "joined.ts", told, clip))
    assert [bright_corner(frame.planes()[0]) for frame in frames] == ["bottom left"] * 12 + [FILMED] * 12


def shown(messages: list[Message]) -> list[NDArray[np.uint8]]:
    """Pictures as our viewer shows them."""
    decoder = PictureDecoder()
    return [decoder.rgb(picture) for message in messages for picture in decoder.decode(message)]


@pytest.mark.parametrize("name", ["phone, upright", "head over heels", "front camera, upright"])
def test_viewers_of_the_relay_see_a_recording_upright(name: str, tmp_path: Path) -> None:
    matrix, orientation, corner = SHOWN[name]
    path = turned(corner_clip(tmp_path / "clip.mp4"), tmp_path / "phone.mp4", matrix)
    figures, messages = replayed(DoublingEngine(), recording(path))
    assert (figures.published, figures.lost) == (12, {})
    video, source = ([each for each in messages if each.kind == kind] for kind in ("video", "source"))
    width, height = (HEIGHT, WIDTH) if swaps_sides(orientation) else (WIDTH, HEIGHT)
    assert {(each.header.width, each.header.height, each.header.orientation) for each in video} == {
        (2 * width, 2 * height, 1)
    }
    assert {(each.header.width, each.header.height, each.header.orientation) for each in source} == {
        (WIDTH, HEIGHT, orientation)
    }
    for pictures, size in ((shown(video), (2 * height, 2 * width)), (shown(source), (height, width))):
        assert {(picture.shape[:2], bright_corner(picture)) for picture in pictures} == {(size, corner)}


def test_the_first_pictures_of_a_source_that_are_told_of_before_any_came_out_say_nothing(tmp_path: Path) -> None:
    clip = corner_clip(tmp_path / "clip.mp4", b_frames=2)
    path = turned(clip, tmp_path / "phone.mp4", SHOWN["phone, upright"][0])
    with open_recording(path, threading.Event()) as segment:
        delay = segment.video.codec_context.reorder_depth
    _, messages = replayed(DoublingEngine(), recording(path))
    told = [message.header.orientation for message in messages if message.kind == "source"]
    assert told == [1] * delay + [6] * (12 - delay)


def test_a_recording_stays_upright_after_damage(tmp_path: Path) -> None:
    clip = corner_clip(tmp_path / "clip.mp4", key_interval=4, options={"x264-params": "cabac=0"})
    path = turned(clip, tmp_path / "phone.mp4", SHOWN["phone, upright"][0])
    with open_source(FeedSettings(url=str(path))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames = []
        for number, unit in enumerate(segment.packets()):
            if number == 4:
                damaged = bytes(unit.packet)
                unit.packet.update(damaged[:-30] + bytes(range(200, 230)))
            frames += decoder.decode(unit)
        frames += decoder.flush()
    assert {frame.state for frame in frames[4:8]} != {"clean"}
    assert [frame.orientation for frame in frames] == [6] * 12


@pytest.mark.parametrize("codec", SEI)
def test_how_a_damaged_picture_is_turned_is_not_believed(codec: str, tmp_path: Path) -> None:
    """Where bytes are missing, the rest of a picture may read as a message that nobody sent."""
    clip = make_clip(tmp_path / "clip.ts", codec=codec, pictures=12, key_interval=4)
    told = with_sei(clip, tmp_path / "told.ts", codec, keys_only=False)
    with av.open(told) as source:
        sixth = [bytes(packet) for packet in source.demux(video=0)][5]
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames = []
        for number, unit in enumerate(segment.packets()):
            if number == 5:
                damaged = rewritten(unit.packet, sixth[:-60])
                damaged.is_corrupt = True
                unit = replace(unit, packet=damaged)
            frames += decoder.decode(unit)
        frames += decoder.flush()
    assert [frame.state for frame in frames] == ["clean"] * 5 + ["concealed"] + ["tainted"] * 2 + ["clean"] * 4
    assert [frame.orientation for frame in frames] == [1] * 12
