import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from engines.colour import Colour
from stream.encode import Clock, EncodedPicture, Encoder
from stream.errors import CodecError
from stream.settings import EncoderSettings

WIDTH, HEIGHT = 192, 128
TICKS = 3600
"""Of 1/90000 s between pictures: 25 pictures a second."""

Planes = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]
codecs = pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])


def encoder(colour: Colour | None = None, width: int = WIDTH, **settings: Any) -> Encoder:
    colour = colour or Colour()
    return Encoder(EncoderSettings(**settings), width, HEIGHT, colour, Fraction(1, 90000), Fraction(25))


def planes(index: int) -> Planes:
    """A bright square on a slope, moving two pixels a picture; chroma tells the number, too."""
    y = np.tile(np.linspace(40, 120, WIDTH, dtype=np.uint8), (HEIGHT, 1))
    y[32:96, 2 * index % 128 :][:, :48] = 200
    u, v = (np.full((HEIGHT // 2, WIDTH // 2), value, np.uint8) for value in (90 + index, 160 - index))
    return y, u, v


def noise(index: int) -> Planes:
    random = np.random.default_rng(index)
    y = random.integers(16, 235, (HEIGHT, WIDTH), np.uint8)
    u, v = random.integers(16, 240, (2, HEIGHT // 2, WIDTH // 2), np.uint8)
    return y, u, v


def grain(index: int) -> Planes:
    """The square on its slope, with grain that moves along: every picture has its bytes, and few will do."""
    y, u, v = planes(index % 50)
    return y + np.roll(noise(0)[0] // 12, 2 * index, axis=1), u, v


def decode(pictures: list[EncodedPicture]) -> list[av.VideoFrame]:
    context = av.VideoCodecContext.create({"av1": "libdav1d"}.get(pictures[0].codec, pictures[0].codec), "r")
    assert isinstance(context, av.VideoCodecContext)
    frames: list[av.VideoFrame] = []
    for picture in pictures:
        packet = av.Packet(picture.payload)
        packet.pts, packet.time_base = picture.pts, picture.time_base
        frames += context.decode(packet)
    return frames + context.decode(None)


def difference(frame: av.VideoFrame, expected: Planes) -> float:
    """Mean, in code values, over all planes."""
    shown = frame.to_ndarray(format="yuv420p").ravel().astype(int)
    return float(np.abs(shown - np.concatenate([plane.ravel() for plane in expected])).mean())


@codecs
def test_every_picture_leaves_before_the_next_one_comes_and_shows_what_went_in(codec: str) -> None:
    with encoder(codec=codec) as encode:
        pictures = [encode.encode(*planes(index), pts=index * TICKS) for index in range(12)]
        assert [len(batch) for batch in pictures] == [1] * 12
        assert encode.flush() == []
    frames = decode([picture for [picture] in pictures])
    assert [frame.pts for frame in frames] == [index * TICKS for index in range(12)]
    assert all(difference(frame, planes(index)) < 2.5 for index, frame in enumerate(frames))


@codecs
def test_planes_may_change_as_soon_as_they_are_encoded(codec: str) -> None:
    y, u, v = planes(0)
    pictures = []
    with encoder(codec=codec) as encode:
        for index in range(8):
            for plane, fresh in zip((y, u, v), planes(index), strict=True):
                plane[:] = fresh
            pictures += encode.encode(y, u, v, pts=index * TICKS)
            for plane in (y, u, v):
                plane[:] = 255
    assert all(difference(frame, planes(index)) < 2.5 for index, frame in enumerate(decode(pictures)))


@codecs
def test_every_key_frame_can_be_decoded_without_what_came_before(codec: str) -> None:
    with encoder(codec=codec) as encode:
        pictures = [
            picture
            for index in range(9)
            for picture in encode.encode(*planes(index), pts=index * TICKS, key=index in (3, 6))
        ]
    assert [index for index, picture in enumerate(pictures) if picture.key] == [0, 3, 6]
    for start in (3, 6):
        frames = decode(pictures[start:])
        assert len(frames) == 9 - start
        assert difference(frames[0], planes(start)) < 2.5


@codecs
def test_no_picture_refers_to_a_later_one(codec: str) -> None:
    with encoder(codec=codec) as encode:
        pictures = [p for index in range(10) for p in encode.encode(*planes(index), pts=index * TICKS)]
    assert not [frame for frame in decode(pictures) if frame.pict_type == av.video.frame.PictureType.B]


@codecs
@pytest.mark.parametrize("ticks", [3600, 18000])
def test_key_frames_come_by_time_whatever_the_number_of_pictures(codec: str, ticks: int) -> None:
    with encoder(codec=codec, key_interval=1.0) as encode:
        keys = [
            picture.pts
            for index in range(270_000 // ticks)
            for picture in encode.encode(*planes(index % 50), pts=7 + index * ticks)
            if picture.key
        ]
    assert keys == [7, 90_007, 180_007]


@codecs
def test_noise_stays_below_the_bit_rate(codec: str) -> None:
    seconds = 3
    with encoder(codec=codec, bit_rate=800_000) as encode:
        pictures = [p for index in range(25 * seconds) for p in encode.encode(*noise(index), pts=index * TICKS)]
    after_a_second = 8 * sum(len(picture.payload) for picture in pictures[25:])
    assert 0.5 * 800_000 < after_a_second / (seconds - 1) < 1.15 * 800_000


@codecs
@pytest.mark.parametrize(("before", "after"), [(25, 50), (25, 100), (25, 30), (50, 5), (None, 60)])
def test_noise_stays_below_the_bit_rate_when_the_rate_of_pictures_changes(
    codec: str, before: int | None, after: int
) -> None:
    steps = [90_000 // (before or 25)] * 30 + [90_000 // after] * (5 * after)
    times = [sum(steps[:index]) for index in range(len(steps))]
    pool = [noise(index) for index in range(20)]
    settings = EncoderSettings(codec=codec, bit_rate=800_000, key_interval=1.0)  # type: ignore[arg-type]
    rate = Fraction(before) if before else None
    with Encoder(settings, WIDTH, HEIGHT, Colour(), Fraction(1, 90000), rate) as encode:
        batches = [encode.encode(*pool[index % 20], pts=pts) for index, pts in enumerate(times)]
        assert [len(batch) for batch in batches] == [1] * len(times)
    pictures = [picture for [picture] in batches]
    assert [picture.pts for picture in pictures] == times
    assert [frame.pts for frame in decode(pictures)] == times
    settled = [picture for picture in pictures if picture.pts >= times[30] + 3 * 90_000]
    seconds = len(settled) / after
    assert 8 * sum(len(picture.payload) for picture in settled) / seconds < 1.15 * 800_000
    assert 8 * sum(len(picture.payload) for picture in settled) / seconds > (0.4 if after == 5 else 0.8) * 800_000
    assert most_waiting(pictures, 800_000) < (1.4 if codec == "av1" else 0.8)
    keys = [picture.pts for picture in pictures if picture.key]
    assert len(keys) <= times[-1] // 90_000 + 2, "at most one key frame more"


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("bit_rate", [32_000, 64_000])
def test_a_thin_link_is_never_more_than_a_quarter_of_a_second_behind_however_many_key_frames_come(
    codec: str, bit_rate: int
) -> None:
    with encoder(codec=codec, bit_rate=bit_rate) as encode:
        pictures = [p for index in range(500) for p in encode.encode(*grain(index), pts=index * TICKS)]
    assert sum(picture.key for picture in pictures) == 10
    assert 8 * sum(len(picture.payload) for picture in pictures) > 0.8 * bit_rate * 20, "it is as thin as that"
    assert most_waiting(pictures, bit_rate) < 0.25


def most_waiting(pictures: list[EncodedPicture], bit_rate: int) -> float:
    """The longest wait, in seconds, in front of a link that carries `bit_rate`."""
    waiting, longest, before = 0.0, 0.0, pictures[0].pts
    for picture in pictures:
        waiting = max(0.0, waiting - (picture.pts - before) / 90_000) + 8 * len(picture.payload) / bit_rate
        longest, before = max(longest, waiting), picture.pts
    return longest


def test_pauses_and_pictures_that_come_in_heaps_begin_no_key_frames() -> None:
    steps = [*[TICKS] * 30, 90_000, *[TICKS] * 10, *[1, 2 * TICKS - 1] * 20]
    times = [sum(steps[:index]) for index in range(len(steps))]
    with encoder(key_interval=60.0) as encode:
        keys = [p.pts for index, pts in enumerate(times) for p in encode.encode(*planes(index), pts=pts) if p.key]
    assert keys == [0]


@codecs
def test_a_cut_to_another_scene_begins_no_key_frame(codec: str) -> None:
    with encoder(codec=codec, key_interval=60.0) as encode:
        scenes = [planes(index) if index < 25 else noise(7) for index in range(50)]
        pictures = [p for index, scene in enumerate(scenes) for p in encode.encode(*scene, pts=index * TICKS)]
    assert [picture.pts for picture in pictures if picture.key] == [0]


@pytest.mark.parametrize(
    "change", [{"width": 256}, {"colour": Colour("bt709")}, {"colour": Colour("bt601", full_range=True)}], ids=str
)
@codecs
def test_another_encoder_goes_on_in_the_same_stream_with_parameter_sets_of_its_own(
    codec: str, change: dict[str, Any]
) -> None:
    pictures: list[EncodedPicture] = []
    for index, changes in enumerate(({}, change, {})):
        with encoder(codec=codec, **changes) as encode:
            y, u, v = (np.resize(plane, (HEIGHT >> half, encode.width >> half)) for half, plane in enumerate_planes())
            pictures += [p for n in range(4) for p in encode.encode(y, u, v, pts=(4 * index + n) * TICKS)]
    assert [picture.key for picture in pictures] == [True, False, False, False] * 3
    frames = decode(pictures)
    assert [frame.width for frame in frames] == [WIDTH] * 4 + [change.get("width", WIDTH)] * 4 + [WIDTH] * 4
    changed = change.get("colour", Colour())
    assert [frame.colorspace for frame in frames[4:8]] == [1 if changed.matrix == "bt709" else 6] * 4
    assert [frame.color_range for frame in frames[4:8]] == [2 if changed.full_range else 1] * 4
    assert [frame.colorspace for frame in frames[8:]] == [6] * 4


def enumerate_planes() -> list[tuple[int, NDArray[np.uint8]]]:
    """Planes of a picture, each with how often its sides are halved."""
    y, u, v = planes(3)
    return [(0, y), (1, u), (1, v)]


def test_of_uneven_pictures_those_that_come_closest_are_planned_for() -> None:
    clock = Clock(Fraction(1, 90000), Fraction(25), 2.0)
    steps = [TICKS] * 9 + [10 * TICKS] * 8
    for number in range(len(steps) + 1):
        clock.tick(sum(steps[:number]), key=False)
    assert not clock.plan()
    assert clock.rate == 25


def test_pictures_in_heaps_are_planned_for_at_twice_their_rate_at_most() -> None:
    clock = Clock(Fraction(1, 90000), Fraction(25), 2.0)
    steps = [90] * 7 + [9000] * 2
    for number in range(len(steps) + 1):
        clock.tick(sum(steps[:number]), key=False)
    assert clock.plan()
    assert clock.rate == 2 * Fraction(9 * 90000, 7 * 90 + 2 * 9000)


def test_a_still_picture_costs_far_less_than_the_bit_rate() -> None:
    with encoder(bit_rate=400_000) as encode:
        pictures = [p for index in range(50) for p in encode.encode(*planes(0), pts=index * TICKS)]
    assert 8 * sum(len(picture.payload) for picture in pictures) < 0.3 * 400_000 * 2


@codecs
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(("matrix", "code"), [("bt601", 6), ("bt709", 1)])
def test_the_stream_says_what_its_code_values_mean(codec: str, matrix: str, code: int, full_range: bool) -> None:
    with encoder(codec=codec, colour=Colour(matrix, full_range)) as encode:  # type: ignore[arg-type]
        frame = decode(encode.encode(*planes(0), pts=0))[0]
    assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (code, code, code)
    assert frame.color_range == (2 if full_range else 1)


def test_times_that_jump_back_begin_a_key_frame_and_travel_unchanged() -> None:
    times = [500_000, 503_600, 1000, 4600, 4600, 8200, 9_000_000]
    with encoder() as encode:
        pictures = [p for index, pts in enumerate(times) for p in encode.encode(*planes(index), pts=pts)]
    assert [picture.pts for picture in pictures] == times
    assert [picture.key for picture in pictures] == [True, False, True, False, True, False, True]


def test_planes_with_any_strides_are_encoded_right() -> None:
    y, u, v = planes(5)
    wide = np.zeros((HEIGHT, WIDTH + 64), np.uint8)
    wide[:, 7 : WIDTH + 7] = y
    both = np.stack((u, v), axis=-1)
    fixed = np.ascontiguousarray(v)
    fixed.flags.writeable = False
    for variant in [(wide[:, 7 : WIDTH + 7], u, v), (y, both[..., 0], both[..., 1]), (y, u, fixed)]:
        with encoder() as encode:
            [frame] = decode(encode.encode(*variant, pts=0))
        assert difference(frame, (y, u, v)) < 2.5


def test_a_picture_without_a_known_rate_or_time_base_of_frames_is_encoded_too() -> None:
    settings = EncoderSettings(bit_rate=400_000)
    with Encoder(settings, WIDTH, HEIGHT, Colour(), Fraction(1, 25)) as encode:
        pictures = [p for index in range(60) for p in encode.encode(*noise(index), pts=index)]
    assert [index for index, picture in enumerate(pictures) if picture.key] == [0, 50]
    assert 8 * sum(len(picture.payload) for picture in pictures) < 1.2 * 400_000 * 60 / 25


def test_times_in_nanoseconds_are_planned_for_and_travel_unchanged() -> None:
    times = [index * 100_000_000 + 1_000 * (index * 37 % 11) for index in range(60)]
    with Encoder(EncoderSettings(), WIDTH, HEIGHT, Colour(), Fraction(1, 10**9), Fraction(25)) as encode:
        pictures = [p for index, pts in enumerate(times) for p in encode.encode(*planes(index), pts=pts)]
    assert [picture.pts for picture in pictures] == times


@codecs
@pytest.mark.parametrize("rate", [Fraction(1, 2**31 - 1), Fraction(1000)])
def test_no_rate_is_too_low_or_too_high(codec: str, rate: Fraction) -> None:
    settings = EncoderSettings(codec=codec)  # type: ignore[arg-type]
    with Encoder(settings, WIDTH, HEIGHT, Colour(), Fraction(1, 90000), rate) as encode:
        assert len([p for index in range(5) for p in encode.encode(*planes(index), pts=index * TICKS)]) == 5


def test_several_threads_give_the_same_pictures() -> None:
    with encoder(threads=4) as encode:
        frames = decode([p for index in range(6) for p in encode.encode(*planes(index), pts=index * TICKS)])
    assert all(difference(frame, planes(index)) < 2.5 for index, frame in enumerate(frames))


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_an_encoder_has_several_threads_only_where_they_are_asked_for(codec: str) -> None:
    def begun(threads: int) -> int:
        before = len(list(Path("/proc/self/task").iterdir()))
        with encoder(codec=codec, threads=threads) as encode:
            encode.encode(*planes(0), pts=0)
            return len(list(Path("/proc/self/task").iterdir())) - before

    assert begun(1) <= 1
    assert begun(4) >= 4


@codecs
@pytest.mark.parametrize("preset", ["ultrafast", "superfast", "veryfast", "faster", "fast", "medium"])
def test_every_codec_takes_every_preset(codec: str, preset: str) -> None:
    with encoder(codec=codec, preset=preset) as encode:
        assert len(encode.encode(*planes(0), pts=0)) == 1


@codecs
def test_no_thread_of_an_encoder_outranks_the_rest_of_the_machine(codec: str) -> None:
    with encoder(codec=codec, threads=4) as encode:
        encode.encode(*planes(0), pts=0)
        threads = [int(thread.name) for thread in Path("/proc/self/task").iterdir()]
        assert len(threads) > 1
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_OTHER}


@codecs
@pytest.mark.parametrize("bit_rate", [4_000, 1_000_000_000])
def test_every_codec_takes_every_bit_rate_that_may_be_set(codec: str, bit_rate: int) -> None:
    with encoder(codec=codec, bit_rate=bit_rate) as encode:
        assert len(encode.encode(*planes(0), pts=0)) == 1


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_the_lowest_bit_rate_that_may_be_set_is_kept_too(codec: str) -> None:
    with pytest.raises(ValidationError, match="from 4k to 1000M"):
        EncoderSettings(bit_rate=3_999)
    with encoder(codec=codec, bit_rate=4_000) as encode:
        pictures = [p for index in range(50) for p in encode.encode(*noise(index), pts=index * TICKS)]
    assert 8 * sum(len(picture.payload) for picture in pictures[25:]) < 1.15 * 4_000


def test_a_size_that_cannot_be_encoded_is_refused_by_name() -> None:
    with pytest.raises(CodecError, match="193x128"):
        encoder(width=193)
    with pytest.raises(CodecError, match="100000x128"):
        encoder(width=100_000)
    with pytest.raises(CodecError, match="62x128: both must be 64 or more"):
        encoder(codec="av1", width=62)


def test_planes_of_another_size_are_refused() -> None:
    y, u, v = planes(0)
    with encoder() as encode:
        with pytest.raises(ValueError, match="plane 0"):
            encode.encode(y[:-2], u, v, pts=0)
        with pytest.raises(ValueError, match="plane 1"):
            encode.encode(y, u[:, :-1], v, pts=0)


def test_a_closed_encoder_says_so() -> None:
    with encoder() as encode:
        encode.encode(*planes(0), pts=0)
    with pytest.raises(CodecError, match="closed"):
        encode.encode(*planes(1), pts=TICKS)
    with pytest.raises(CodecError, match="closed"):
        encode.flush()
