"""Without a GPU: what FFmpeg does there, and pretenders in place of NVDEC and NVENC. Marked `gpu`: the real thing."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from av.codec.hwaccel import HWAccel
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from engines.colour import Colour
from engines.nvidia.gpu import Gpu, has_driver
from stream import decode, encode, outlet
from stream.codecs import hardware
from stream.codecs.hardware import NVENC, copy_parameters, nvdec, nvenc_options
from stream.decode import Decoder
from stream.encode import EncodedPicture, Encoder, encoder_options
from stream.errors import CodecError
from stream.feed import CodecStage, Feed
from stream.frame import Frame
from stream.outlet import Outlet
from stream.publish import Publisher
from stream.relay import Relay
from stream.settings import DecoderChoice, EncoderSettings, FeedSettings, RelaySettings, Settings
from stream.source import open_source
from tests.clips import make_clip
from tests.doubling import DoublingEngine
from tests.test_outlet import send

NO_NVDEC = "NVDEC needs an NVIDIA GPU, and none is available to this process"
without_gpu = pytest.mark.skipif(has_driver(), reason="there is an NVIDIA GPU here")
codecs = pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])


def decoded(clip: Path, choice: DecoderChoice) -> tuple[list[Frame], Decoder]:
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video, choice=choice)
        units = [unit for unit in segment.packets() if unit.kind == "video"]
        frames = [frame for unit in units for frame in decoder.decode(unit)] + decoder.flush()
    assert len(frames) + decoder.lost == len(units)
    return frames, decoder


def same(frames: list[Frame], expected: list[Frame], difference: int = 0) -> bool:
    """Whether all that is known of frames is the same, and their code values nearly so."""
    pairs = list(zip(frames, expected, strict=True))
    facts = [
        [(f.colour, f.pts, f.time_base, f.state, f.source_sha256, f.picture.key_frame) for f in pair] for pair in pairs
    ]
    planes = [plane for pair in pairs for plane in zip(*(frame.planes() for frame in pair), strict=True)]
    worst = max(np.abs(mine.astype(int) - theirs).max() for mine, theirs in planes)
    return all(mine == theirs for mine, theirs in facts) and worst <= difference


def encoder(**settings: Any) -> Encoder:
    return Encoder(EncoderSettings(**settings), 192, 128, Colour("bt709", True), Fraction(1, 90000), Fraction(25))


def encoded(encoder: Encoder, count: int = 10, keys: tuple[int, ...] = ()) -> list[EncodedPicture]:
    """Pictures of a bright square that moves; each must leave before the next one comes."""
    pictures = []
    for index in range(count):
        y, u, v = np.full((128, 192), 60, np.uint8), *np.full((2, 64, 96), 128, np.uint8)
        y[32:96, 8 * index :][:, :48] = 200
        [picture] = encoder.encode(y, u, v, index * 3600, index in keys)
        pictures.append(picture)
    return pictures


def shown(pictures: list[EncodedPicture]) -> list[av.VideoFrame]:
    context = av.CodecContext.create({"av1": "libdav1d"}.get(pictures[0].codec, pictures[0].codec), "r")
    assert isinstance(context, VideoCodecContext)
    frames = [frame for picture in pictures for frame in context.decode(av.Packet(picture.payload))]
    return frames + context.decode(None)


class Pretender:
    """A decoder of the CPU that behaves as NVDEC does: semi-planar pictures, said to be of the GPU."""

    def __init__(self, video: VideoStream, fails_at: int | None = None, pix_fmt: str = "cuda") -> None:
        context = av.CodecContext.create(video.codec_context.codec, "r")
        assert isinstance(context, VideoCodecContext)
        vars(self).update(
            context=copy_parameters(context, video.codec_context), pix_fmt=pix_fmt, fails_at=fails_at, count=0
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.context, name, value)

    def decode(self, packet: av.Packet[Any] | None) -> list[av.VideoFrame]:
        vars(self)["count"] += 1
        if self.count == self.fails_at:
            raise av.ExternalError(0, "Generic error in an external library")
        return [semi_planar(frame) for frame in self.context.decode(packet)]


def semi_planar(frame: av.VideoFrame) -> av.VideoFrame:
    """As NVDEC gives it: the same code values in two planes; the picture says its range, never its format."""
    kept = frame.color_range
    made = frame.reformat(
        format="p010le" if "10" in frame.format.name else "nv12", src_color_range=kept, dst_color_range=kept, threads=1
    )
    made.color_range = kept
    return made


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a pretender in place of NVDEC, and a GPU that exists."""

    def install(**how: Any) -> None:
        monkeypatch.setattr(decode, "nvdec", lambda video: Pretender(video, **how))
        monkeypatch.setattr(hardware, "find_gpu", lambda: Gpu("NVIDIA Test", "1"))

    return install


# No GPU


@without_gpu
def test_no_gpu_is_a_clear_error_of_the_decoder(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=2)
    with av.open(str(clip)) as container, pytest.raises(CodecError, match=f"^{NO_NVDEC}$"):
        nvdec(container.streams.video[0])


@pytest.mark.parametrize("refusals", [0, 1, 2])
def test_nvdec_decodes_in_the_engines_context_or_in_its_own_where_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    asked: list[object] = []

    def create(codec: av.Codec, mode: str, accelerator: HWAccel) -> av.CodecContext:
        asked.append(dict(accelerator.options))
        if len(asked) <= refusals:
            raise PermissionError(1, "Primary context already active with incompatible flags.")
        return av.CodecContext.create(codec, mode)

    class Library:
        FFmpegError = PermissionError
        CodecContext = SimpleNamespace(create=create)

    monkeypatch.setattr(hardware, "av", Library)
    monkeypatch.setattr(hardware, "hwdevices_available", lambda: ["cuda"])
    clip = make_clip(tmp_path / "clip.mp4", pictures=2)
    with av.open(str(clip)) as container, pytest.raises(CodecError, match="NVDEC") as refused:
        nvdec(container.streams.video[0])
    assert ("does not support" in str(refused.value)) == (refusals < 2)  # what it was given is a decoder of the CPU
    assert asked == [{"primary_ctx": "1"}, {}][: refusals + 1]


def test_a_codec_without_nvdec_is_a_clear_error(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mkv", codec="ffv1", pictures=2)
    with av.open(str(clip)) as container, pytest.raises(CodecError, match="NVDEC does not support ffv1"):
        nvdec(container.streams.video[0])


@without_gpu
@pytest.mark.parametrize(("choice", "trouble"), [("nvdec", NO_NVDEC), ("auto", None), ("software", None)])
def test_without_a_gpu_the_cpu_decodes_and_says_why_if_it_was_not_asked_to(
    tmp_path: Path, choice: DecoderChoice, trouble: str | None
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", b_frames=2, pictures=20)
    frames, decoder = decoded(clip, choice)
    assert (decoder.name, decoder.trouble) == ("h264", trouble)
    assert len(frames) == 20
    assert same(frames, decoded(clip, "software")[0])


@without_gpu
@codecs
@pytest.mark.parametrize("choice", ["nvenc", "auto", "none"])
def test_without_a_gpu_the_cpu_encodes_and_says_why_if_it_was_not_asked_to(codec: str, choice: str) -> None:
    with encoder(codec=codec, hardware=choice) as encode:
        assert encode.name == {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1"}[codec]
        assert not encode.on_gpu
        wanted = f"{NVENC[codec]} needs an NVIDIA GPU, and none is available to this process"
        assert encode.trouble == (wanted if choice == "nvenc" else None)
        assert len(encoded(encode)) == 10


def test_an_ffmpeg_without_nvenc_is_trouble_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "NVENC", {"h264": "h264_nowhere"})
    monkeypatch.setattr(hardware, "find_gpu", lambda: Gpu("NVIDIA Test", "1"))
    with encoder(hardware="nvenc") as made:
        assert made.name == "libx264"
        assert made.trouble == "h264_nowhere does not work on the NVIDIA Test: h264_nowhere"


@codecs
def test_ffmpeg_knows_every_option_for_nvenc(codec: str) -> None:
    options = nvenc_options(EncoderSettings(codec=codec))  # type: ignore[arg-type]
    known = av.CodecContext.create(NVENC[codec], "w").supported_options
    assert options.keys() <= {option.name for option in (*known.generic, *known.private)}


@without_gpu
@codecs
@pytest.mark.parametrize("preset", ["ultrafast", "superfast", "veryfast", "faster", "fast", "medium"])
def test_ffmpeg_takes_every_value_for_nvenc_and_misses_the_gpu_alone(codec: str, preset: str) -> None:
    context = av.CodecContext.create(NVENC[codec], "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt, context.time_base = 192, 128, "yuv420p", Fraction(1, 25)
    context.options = nvenc_options(EncoderSettings(codec=codec, preset=preset))  # type: ignore[arg-type]
    with pytest.raises(PermissionError):
        context.open()


@without_gpu
def test_a_relay_without_a_gpu_warns_once_and_publishes_everything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.ts", "b.ts"):
        make_clip(tmp_path / name, pictures=10)
    wanted = FeedSettings(url=str(tmp_path), mode="replay", decoder="nvdec", encoder=EncoderSettings(hardware="nvenc"))
    relayed(wanted)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"feed cam: the decoder is h264, since {NO_NVDEC}",
        "feed cam: the encoder is libx264, since h264_nvenc needs an NVIDIA GPU, and none is available to this process",
    ]


def relayed(wanted: FeedSettings) -> dict[CodecStage, str]:
    """What decoded and encoded a feed of 20 pictures, all of which must be published."""
    settings = Settings(relay=RelaySettings(endpoint="tcp://127.0.0.1:*"), feeds={"cam": wanted})
    with DoublingEngine() as engine, Publisher(settings.relay, "run") as publisher:
        with Relay(settings, engine, publisher) as relay:
            assert relay.wait(20)
        feed = relay.feeds["cam"]
        assert feed.figures().published == 20
        return feed.codecs


# A pretender


@pytest.mark.parametrize(
    ("name", "clip", "difference"),
    [
        ("clip.ts", {}, 0),
        ("clip.mp4", {"b_frames": 2, "matrix": "bt709"}, 0),
        ("clip.mp4", {"full_range": True, "pix_fmt": "yuvj420p"}, 0),
        ("clip.mkv", {"codec": "libx265", "size": (162, 122), "grey": range(5)}, 0),
        ("clip.mp4", {"codec": "libx265", "pix_fmt": "yuv420p10le", "full_range": True}, 1),
        ("clip.ts", {"interlaced": True, "matrix": "bt601"}, 0),
        ("clip.mkv", {"codec": "mpeg4", "matrix": "bt709"}, 0),  # its colour stands in the container alone
    ],
    ids=str,
)
def test_semi_planar_pictures_become_the_frames_that_the_cpu_gives(
    tmp_path: Path, pretend: Callable[..., None], name: str, clip: dict[str, Any], difference: int
) -> None:
    path = make_clip(tmp_path / name, pictures=15, **clip)
    pretend()
    frames, decoder = decoded(path, "auto")
    assert decoder.name.endswith(" on NVDEC")
    assert decoder.trouble is None
    assert len(frames) == 15
    assert same(frames, decoded(path, "software")[0], difference)


def test_headers_that_stand_in_the_container_alone_are_known_to_the_decoder_of_the_gpu(tmp_path: Path) -> None:
    with av.open(str(make_clip(tmp_path / "clip.mp4", pictures=5))) as container:
        video = container.streams.video[0]
        context = av.CodecContext.create(video.codec_context.codec, "r")
        assert isinstance(context, VideoCodecContext)
        copy_parameters(context, video.codec_context)
        assert len([frame for packet in container.demux(video) for frame in context.decode(packet)]) == 5


@pytest.mark.parametrize("choice", ["nvdec", "auto"])
def test_a_gpu_that_fails_leaves_the_feed_to_the_cpu_from_the_next_key_frame_on(
    tmp_path: Path, pretend: Callable[..., None], choice: DecoderChoice
) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=50, key_interval=10)
    pretend(fails_at=15)
    frames, decoder = decoded(clip, choice)
    whole, _ = decoded(clip, "software")
    assert same(frames, whole[:14] + whole[20:])
    assert decoder.name == "h264"
    assert decoder.trouble == "NVDEC does not work on the NVIDIA Test: Generic error in an external library"


@pytest.mark.parametrize(("choice", "told"), [("nvdec", "NVDEC does not support"), ("auto", None)])
def test_pictures_that_nvdec_does_not_take_are_told_where_it_was_asked_for(
    tmp_path: Path, pretend: Callable[..., None], choice: DecoderChoice, told: str | None
) -> None:
    pretend(pix_fmt="yuv420p")  # FFmpeg's own way back
    _, decoder = decoded(make_clip(tmp_path / "clip.ts", pictures=5), choice)
    assert decoder.name == "h264"
    assert (decoder.trouble or "").startswith(told or "")
    assert bool(decoder.trouble) == bool(told)


def test_what_decodes_and_encodes_on_the_gpu_is_told(
    tmp_path: Path, pretend: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    pretend()
    nvenc_is_x265(monkeypatch)
    feed = FeedSettings(
        url=str(make_clip(tmp_path / "clip.ts", pictures=20)),
        mode="replay",
        decoder="auto",
        encoder=EncoderSettings(hardware="auto"),
    )
    assert relayed(feed) == {"decoder": "h264 on NVDEC", "encoder": "libx265"}
    told = [record.getMessage() for record in caplog.records]
    assert told.count("feed cam: the decoder is h264 on NVDEC") == 1
    assert told.count("feed cam: the encoder is libx265") == 1


def test_an_encoder_of_the_gpu_that_fails_is_followed_by_one_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "PAUSE_SECONDS", 0)
    nvenc_is_x265(monkeypatch)
    feed = Feed("cam", FeedSettings(url="clip.ts", encoder=EncoderSettings(hardware="nvenc")))
    with Publisher(RelaySettings(endpoint="tcp://127.0.0.1:*"), "run") as publisher:
        way_out = Outlet(feed, publisher, "model")
        send(way_out, feed, range(5), side=64)
        assert feed.codecs == {"encoder": "libx265"}
        assert way_out._encoder is not None
        way_out._encoder.close()
        send(way_out, feed, range(5, 10), side=64)
        send(way_out, feed, range(10, 15), side=32)
        way_out.finish()
    assert feed.codecs == {"encoder": "libx264"}
    assert (feed.figures().published, feed.figures().lost) == (14, {"encoder": 1})


def nvenc_is_x265(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let x265 stand for NVENC."""
    monkeypatch.setattr(encode, "NVENC", {"h264": "libx265"})
    monkeypatch.setattr(encode, "nvenc_options", lambda _: encoder_options(EncoderSettings(codec="hevc"), Fraction(25)))


# A GPU


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "clip", "difference"),
    [
        ("clip.ts", {}, 0),
        ("clip.mp4", {"b_frames": 2, "matrix": "bt709"}, 0),
        ("clip.mp4", {"full_range": True, "pix_fmt": "yuvj420p"}, 0),
        ("clip.mkv", {"codec": "libx265", "size": (322, 242)}, 0),
        ("clip.mp4", {"codec": "libx265", "pix_fmt": "yuv420p10le", "full_range": True}, 1),
    ],
    ids=str,
)
def test_nvdec_gives_the_frames_that_the_cpu_gives(
    tmp_path: Path, name: str, clip: dict[str, Any], difference: int
) -> None:
    path = make_clip(tmp_path / name, pictures=30, **{"size": (320, 240), **clip})
    frames, decoder = decoded(path, "nvdec")
    assert decoder.trouble is None
    assert decoder.name.endswith(" on NVDEC")
    assert same(frames, decoded(path, "software")[0], difference)


@pytest.mark.gpu
def test_what_nvdec_does_not_take_is_decoded_on_the_cpu(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", size=(320, 240), pix_fmt="yuv444p", pictures=10)
    frames, decoder = decoded(clip, "nvdec")
    assert decoder.trouble
    assert same(frames, decoded(clip, "software")[0])


@pytest.mark.gpu
@codecs
def test_nvenc_gives_one_access_unit_a_picture_and_key_frames_on_demand(codec: str) -> None:
    with encoder(codec=codec, hardware="nvenc") as encode:
        if encode.trouble:
            pytest.skip(encode.trouble)
        pictures = encoded(encode, keys=(5,))
    assert [index for index, picture in enumerate(pictures) if picture.key] == [0, 5]
    frames = shown(pictures)
    assert len(frames) == 10
    assert len(shown(pictures[5:])) == 5
    assert {(frame.colorspace, int(frame.color_range)) for frame in frames} == {(1, 2)}
    assert not [frame for frame in frames if frame.pict_type == av.video.frame.PictureType.B]


@pytest.mark.gpu
@codecs
def test_nvenc_keeps_noise_below_the_bit_rate(codec: str) -> None:
    random = np.random.default_rng(1)
    with encoder(codec=codec, hardware="nvenc", bit_rate=800_000) as encode:
        if encode.trouble:
            pytest.skip(encode.trouble)
        pictures = []
        for index in range(75):
            y, (u, v) = random.integers(16, 235, (128, 192), np.uint8), random.integers(16, 235, (2, 64, 96), np.uint8)
            pictures += encode.encode(y, u, v, index * 3600)
    assert 8 * sum(len(picture.payload) for picture in pictures[25:]) / 2 < 1.15 * 800_000
