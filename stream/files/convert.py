"""Converts a recording to a file: its pictures enhanced, its sound and data as they were.

The pictures go into part files first, and are joined with the rest at the end: so work that is interrupted, even by
a kill, can be resumed.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from msgspec.structs import replace

from engines.door import SCALE, Door
from engines.errors import EngineError
from stream.codecs.plain import display_matrix
from stream.decode import Decoder
from stream.enhance import enhance
from stream.errors import CodecError, SourceUnsupported, StreamError
from stream.files.fileclock import FileClock
from stream.files.join import ENCODER, Companions, companions, join
from stream.files.part_writer import PART_PICTURES, PartWriter, options_for
from stream.files.parts import Job, Layout, Parts, as_text, parts_folder
from stream.frame import Frame
from stream.recall import Recall
from stream.sources.recording import RecordedSegment, open_recording

log = logging.getLogger(__name__)

IN_FLIGHT = 3
"""Pictures between decoder and file: in the engine, in front of it, in the encoder."""


@dataclass(frozen=True)
class Progress:
    """How far a conversion is."""

    pictures: int
    """In the file so far."""
    bytes_read: int
    """Of the recording."""


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion."""

    pictures: int
    lost: int
    """Access units that gave no picture."""
    resumed: int
    """Pictures made by an earlier call."""
    complete: bool
    """False if it was stopped."""


class PartsOfSomethingElse(StreamError):
    """Parts whose last picture is not in the recording."""


def convert(
    engine: Door,
    source: Path,
    target: Path,
    report: Callable[[Progress], None],
    *,
    stop: threading.Event | None = None,
    keep_parts: bool = False,
    from_start: bool = False,
    dated: bool = False,
) -> Conversion:
    """Enhance every picture of `source` into `target`, whose suffix selects the container.

    `target` appears when it is complete, and replaces an old one only then. Sound, data, subtitles, chapters, metadata
    and orientation are copied if the container can hold them, else left out with a warning. Work left by an interrupted
    call is resumed. With `keep_parts`, a call that is stopped, fails or is killed leaves its work in the hidden
    `parts_folder`; with `from_start`, that of an earlier call is discarded. With `dated`, the file gets the recording's
    modification time if its file system allows that. `stop`, which any thread may set, ends the work soon. Raises
    `SourceUnsupported`, `CodecError` and `EngineError`.
    """
    stop = stop or threading.Event()
    if not source.is_file():
        raise SourceUnsupported(f"{source}: no such file", reason="not found")
    try:
        job = job_of(engine, source, target)
        others = companions(source, target)  # before any folder is made: it may be no recording
        with Parts(parts_folder(target), job) as parts:
            useful = keep_parts
            try:
                if from_start:
                    parts.clear()
                time_ns = job.mtime_ns if dated else None  # as at the start: the recording may still grow
                conversion = convert_with_parts(engine, source, target, parts, others, report, stop, time_ns)
                useful = keep_parts and not conversion.complete
            except SourceUnsupported:
                useful = False
                raise
            finally:
                if not (useful and parts.done):
                    parts.remove()
    except (av.FFmpegError, OSError) as error:
        raise CodecError(f"{source} to {target}: {error.strerror or error}") from error
    except EngineError as error:
        raise EngineError(f"{source} to {target}: {error}") from error
    return conversion


def convert_with_parts(
    engine: Door,
    source: Path,
    target: Path,
    parts: Parts,
    others: Companions,
    report: Callable[[Progress], None],
    stop: threading.Event,
    time_ns: int | None,
) -> Conversion:
    """See `convert`; `time_ns` as for `put_in_place`."""
    for reason in others.left_out:
        log.warning("%s", reason)
    try:
        conversion = enhance_rest(engine, source, target, parts, report, stop)
    except PartsOfSomethingElse as error:
        log.warning("%s: starting over", error)
        parts.clear()
        conversion = enhance_rest(engine, source, target, parts, report, stop)
    if conversion.complete:
        whole = parts.folder / f"whole{target.suffix}"
        try:
            join(source, parts, whole, others.kept)
            put_in_place(whole, target, time_ns)
        finally:
            whole.unlink(missing_ok=True)
    return conversion


def put_in_place(whole: Path, target: Path, time_ns: int | None) -> None:
    """Give a complete file its name; file and name are on the disk when this returns and its parts may be removed.

    Its modification time becomes `time_ns`, in nanoseconds since 1970; None: it stays.
    """
    if time_ns is not None:
        try:
            os.utime(whole, ns=(time_ns, time_ns))
        except OSError as error:
            log.warning("cannot give %s the modification time of its recording: %s", target, error.strerror)
    with whole.open("rb") as file:
        os.fsync(file.fileno())
    whole.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:  # some file systems cannot sync folders
        log.debug("%s: %s", target.parent, error.strerror)
    finally:
        os.close(folder)


def job_of(engine: Door, source: Path, target: Path) -> Job:
    """All that parts must have in common to be used together."""
    found = source.stat()
    return Job(
        source=as_text(source.name),
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        model=f"{engine.info.weights_id} {engine.info.precision}",
        encoder=f"{ENCODER} {options_for(target)} {PART_PICTURES} {av.__version__}",
    )


def enhance_rest(
    engine: Door, source: Path, target: Path, parts: Parts, report: Callable[[Progress], None], stop: threading.Event
) -> Conversion:
    """Enhance the pictures that are in no part yet into parts; encoding runs beside decoding and enhancing."""
    if before := parts.pictures:
        log.info("%s: resuming after %d pictures", source, before)
    with (
        open_recording(source, stop) as segment,
        PartWriter(parts, segment, options_for(target)) as writer,
        ThreadPoolExecutor(1, "nightbridge-encode") as encoding,
    ):
        under_way: deque[Future[int]] = deque()
        recall = Recall()

        def wait(limit: int) -> None:
            while len(under_way) > limit:
                report(Progress(under_way.popleft().result(), segment.bytes_read))

        for frame, key in remaining_frames(segment, parts, writer.clock, stop):
            check_size(segment, frame, parts)
            [slot] = enhance(engine, [frame], [recall])
            under_way.append(encoding.submit(writer.write, frame, slot, key))
            wait(IN_FLIGHT - 1)
        wait(0)
        encoding.submit(writer.finish).result()
        held, indexed = pictures_in_file(segment)
    if segment.failure:
        log.warning("%s cannot be read to its end: %s", source, segment.failure)
    elif held < indexed and not stop.is_set():
        log.warning("%s is truncated: it holds %d of the %d pictures in its index", source, held, indexed)
    if not parts.done and not stop.is_set():
        raise SourceUnsupported(f"{source}: no picture in it can be decoded", reason="codec")
    complete = not stop.is_set()
    lost = segment.units + segment.unreadable - segment.cut_off - parts.pictures if complete else 0
    return Conversion(parts.pictures, lost, before, complete)


def pictures_in_file(segment: RecordedSegment) -> tuple[int, int]:
    """Number of coded pictures (or fields) in the file, and in its index; zeros if no index says where each one is.

    The numbers in headers differ: they include what edit lists cut off, or pauses, as in AVI.
    """
    if not segment.video.container.format.name.startswith("mov,"):
        return 0, 0
    size = segment.file.stat().st_size
    ends = [entry.pos + entry.size for entry in segment.video.index_entries]
    return sum(end <= size for end in ends), len(ends)


def remaining_frames(
    segment: RecordedSegment, parts: Parts, clock: FileClock, stop: threading.Event
) -> Iterator[tuple[Frame, int]]:
    """Each frame that is in no part yet, with the access unit where decoding must begin to resume after it.

    Raises `PartsOfSomethingElse`.
    """
    last = parts.done[-1] if parts.done else None
    segment.first = last.key if last else 0
    frames = numbered_frames(segment, stop)
    if last:
        for frame in frames:
            if frame.received_ns == last.unit:
                clock.go_on(last, frame.pts)
                break
        else:
            if not stop.is_set():
                raise PartsOfSomethingElse(f"{parts.folder}: the unfinished work does not match this recording")
    for frame in frames:
        at = bisect_right(segment.keys, frame.received_ns) - 1
        yield frame, segment.keys[max(0, at - 1)]  # one key frame earlier: pictures may refer to the group before


def numbered_frames(segment: RecordedSegment, stop: threading.Event) -> Iterator[Frame]:
    """The frames of a recording; `received_ns` holds the number of each one's access unit instead of a time."""
    decoder = Decoder(segment.video, upright=False)  # the new file stores the orientation
    for packet in segment.packets():
        if packet.kind == "video":
            yield from decoder.decode(replace(packet, received_ns=segment.units - 1))
    if not stop.is_set():
        yield from decoder.flush()


def check_size(segment: RecordedSegment, frame: Frame, parts: Parts) -> None:
    """Take the parts' layout from the first frame; raise `SourceUnsupported` for a later one of another size.

    Frames of another colour are converted by the `PartWriter`.
    """
    width, height = SCALE * frame.width, SCALE * frame.height
    if parts.layout is None:
        matrix = enlarged(display_matrix(frame.picture))
        parts.begin(Layout(width, height, frame.colour.matrix, frame.colour.full_range, matrix))
    elif (width, height) != (parts.layout.width, parts.layout.height):
        raise SourceUnsupported(
            f"{segment.file}: its picture size changes to {frame.width}x{frame.height}; a file can hold only one size",
            reason="codec",
        )


def enlarged(display_matrix: tuple[int, ...]) -> tuple[int, ...]:
    """The display matrix of the enhanced picture of one with this display matrix; see `Layout`."""
    matrix = np.array(display_matrix, np.int32)
    matrix[6:8] *= SCALE  # translation, in pixels
    return tuple(matrix.tolist())
