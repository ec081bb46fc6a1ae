"""Codecs on an NVIDIA GPU: NVDEC decodes, NVENC encodes. All that needs the GPU is here."""

from __future__ import annotations

import av
from av.codec.codec import UnknownCodecError
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from engines.nvidia.gpu import NO_GPU, find_gpu, prepare_primary_context
from stream.errors import CodecError
from stream.settings import EncoderSettings

SHARED: dict[str, object] = {"primary_ctx": "1"}
"""FFmpeg's option to decode in the GPU's primary context, where the engine computes, rather than to create one."""

NVENC = {"h264": "h264_nvenc", "hevc": "hevc_nvenc", "av1": "av1_nvenc"}
"""FFmpeg's encoder on the GPU for each codec of the wire."""

NVENC_ERRORS = (av.FFmpegError, UnknownCodecError)
"""What opening a GPU encoder raises if it does not work: the second if FFmpeg was built without it."""

SPEEDS = {"ultrafast": "p1", "superfast": "p2", "veryfast": "p3", "faster": "p4", "fast": "p5", "medium": "p6"}
"""NVENC numbers its presets."""

BEST_QUANTISER = {"h264": 23, "hevc": 25}
"""No picture is encoded with a finer quantiser than this, which keeps still pictures small."""


def nvdec(video: VideoStream) -> VideoCodecContext:
    """A GPU decoder for the stream, not yet open, whose pictures come to host memory with all their metadata.

    For profiles or sizes that NVDEC does not support, FFmpeg decodes on the CPU instead; see `is_on_gpu`. Raises
    `CodecError` if there is no GPU, or no NVDEC for the codec.
    """
    source = video.codec_context
    if "cuda" not in hwdevices_available():
        raise CodecError("NVDEC is not in this build of FFmpeg")
    prepare_primary_context()
    try:
        try:
            context = av.CodecContext.create(source.codec, "r", HWAccel("cuda", options=SHARED))
        except av.FFmpegError:  # it is in use with other flags
            context = av.CodecContext.create(source.codec, "r", HWAccel("cuda"))
    except av.FFmpegError as error:
        raise CodecError(trouble("NVDEC", error)) from None
    if not context.is_hwaccel:
        raise CodecError(f"NVDEC does not support {source.name}")
    assert isinstance(context, VideoCodecContext)
    return copy_parameters(context, source)


def copy_parameters(context: VideoCodecContext, source: VideoCodecContext) -> VideoCodecContext:
    """`context`, with what `source` knows about the stream from outside its access units."""
    context.extradata = source.extradata
    context.width, context.height = source.width, source.height
    context.colorspace, context.color_range = source.colorspace, source.color_range
    context.color_trc, context.color_primaries = source.color_trc, source.color_primaries
    context.reorder_depth = source.reorder_depth
    return context


def is_on_gpu(decoder: VideoCodecContext) -> bool:
    """Whether a decoder works on the GPU; known once it has given a picture."""
    return decoder.pix_fmt == "cuda"


def nvenc_options(settings: EncoderSettings) -> dict[str, str]:
    """FFmpeg's options for an encoder on the GPU that holds back no picture and caps its bit rate."""
    rate = str(settings.bit_rate)
    options = {
        "preset": SPEEDS[settings.preset],
        "tune": "ull",
        "delay": "0",
        "zerolatency": "1",
        "forced-idr": "1",
        "rc": "vbr",
        "b": rate,
        "maxrate": rate,
        "bufsize": str(settings.bit_rate // 4),
    }
    if settings.codec in BEST_QUANTISER:  # NVENC's own constant quality, `cq`, would ignore `bufsize`
        options["qmin"] = str(BEST_QUANTISER[settings.codec])
    return options


def trouble(codec: str, error: Exception) -> str:
    """Why a GPU codec does not work, for people; without a GPU, FFmpeg itself says "Operation not permitted"."""
    gpu = find_gpu()
    if gpu == NO_GPU:
        return f"{codec} needs an NVIDIA GPU, and none is available to this process"
    return f"{codec} does not work on the {gpu.name}: {error.strerror if isinstance(error, av.FFmpegError) else error}"
