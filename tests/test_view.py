from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import count, pairwise
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any, cast

import av
import msgspec
import numpy as np
import pytest
from av.video.reformatter import ColorRange
from PIL import Image

from engines.colour import Colour
from stream.encode import Encoder
from stream.errors import CodecError, StreamError
from stream.publish import Publisher
from stream.settings import EncoderSettings
from stream.subscribe import Subscriber
from stream.view import PictureDecoder
from stream.wire.messages import Header, Message, Numbering, Status, encode_feeds, encode_status
from tests.clips import make_clip
from tests.doubling import DoublingEngine
from tests.impostors import Impostor, hangs_up
from tests.published import HEIGHT, WIDTH, Camera, relay
from tests.test_check import ROOT, nightbridge
from tests.test_pipeline import recording, replayed
from tests.waiting import DEADLINE, takes_less_than, wait_until
from tools.view_feed import LISTING_SECONDS, Reception, Span, Wanted
from tools.view_figures import Figures
from tools.window import Window

ORANGE = (200, 120, 40)
KEYS = {
    "feed",
    "pictures",
    "seconds",
    "rate_fps",
    "bit_rate",
    "age_p50_ms",
    "age_p95_ms",
    "capture_clock",
    "lost",
    "loss_percent",
    "dropped",
    "states",
}


def message(payload: bytes, codec: str, relay: str = "run-1") -> Message:
    header = Numbering("video").stamp(Header(key=True, codec=codec, pts=0, time_base=Fraction(1, 25)), relay, "pier", 0)
    return Message("video", header, payload)


def one_colour(rgb: tuple[int, int, int], colour: Colour, codec: str = "h264", amount: int = 1) -> list[Message]:
    """Pictures all of which have this colour, coded with this matrix and range."""
    y, u, v = colour.coefficients()[1] @ np.append(np.array(rgb) / 255, 1).astype(np.float32)
    settings = EncoderSettings.model_validate({"codec": codec})
    planes = [np.full((size, size), round(float(value)), np.uint8) for size, value in ((64, y), (32, u), (32, v))]
    with Encoder(settings, 64, 64, colour, Fraction(1, 25)) as encoder:
        pictures = [encoder.encode(planes[0], planes[1], planes[2], pts) for pts in range(amount)]
    return [message(picture.payload, codec) for [picture] in pictures]


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


@contextmanager
def on_air(feed: str = "pier", **header: Any) -> Iterator[Publisher]:
    """A relay whose feed shows a picture each 20 ms until the block ends."""
    with relay() as publisher:
        camera = Camera(publisher, feed)
        ended = False

        def show() -> None:
            while not ended:
                camera.show(**header)
                time.sleep(0.02)

        thread = Thread(target=show)
        thread.start()
        try:
            yield publisher
        finally:
            ended = True
            thread.join()


@contextmanager
def repeating(publish: Callable[[], object]) -> Iterator[None]:
    """Something that a relay says each 20 ms until the block ends, as viewers hear nothing of what was before them."""
    ended = Event()

    def repeat() -> None:
        while not ended.is_set():
            publish()
            ended.wait(0.02)

    thread = Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def status(state: str, reason: str | None = None, dropped: int = 0, lost: int = 0) -> Status:
    """What a relay says of a feed, with counts of pictures."""
    return Status(
        state=state,
        received=dropped + lost,
        published=0,
        under_way=0,
        dropped={"overload": dropped},
        lost={"damaged": lost},
        reason=reason,
    )


def saying(publisher: Publisher, says: Callable[[], Status], feed: str = "pier") -> AbstractContextManager[None]:
    """A relay that says so of a feed, again and again."""
    return repeating(lambda: publisher.publish(feed, "status", Header(), encode_status(says())))


def test_a_snapshot_is_a_png_of_the_feed(tmp_path: Path) -> None:
    path = tmp_path / "shot.png"
    with on_air() as publisher:
        done = nightbridge(ROOT, "view", publisher.endpoint, "pier", "--snapshot", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (WIDTH, HEIGHT))
        pixels = np.asarray(image)
    assert int(np.ptp(pixels)) <= 3, "every picture of the camera has one grey"


def test_a_snapshot_of_pictures_that_are_to_be_turned_is_upright(tmp_path: Path) -> None:
    path = tmp_path / "shot.png"
    with on_air(orientation=6) as publisher:
        done = nightbridge(ROOT, "view", publisher.endpoint, "pier", "--snapshot", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(path) as image:
        assert image.size == (HEIGHT, WIDTH)


def test_a_snapshot_waits_for_a_clean_picture(tmp_path: Path) -> None:
    path = tmp_path / "shot.png"
    with relay() as publisher:
        camera = Camera(publisher)
        words = [sys.executable, "-m", "tools", "view", publisher.endpoint, "pier", "--snapshot", str(path)]
        with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as program:
            camera.wait_for_viewer()
            camera.show(5, state="tainted", orientation=6)  # a picture of these would stand on its side
            while program.poll() is None:
                camera.show()
                time.sleep(0.02)
            assert program.stderr is not None
            assert (program.returncode, program.stderr.read()) == (0, "")
    with Image.open(path) as image:
        assert image.size == (WIDTH, HEIGHT)


def test_a_snapshot_for_which_no_clean_picture_comes_is_written_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "shot.png"
    with on_air(state="concealed") as publisher:
        done = nightbridge(ROOT, "view", publisher.endpoint, "pier", "--snapshot", str(path), "--seconds", "5")
        told = f"{path}: the picture of feed pier at {publisher.endpoint} is concealed: no clean one came within 5 s\n"
    assert done.returncode == 0
    assert done.stderr.endswith(told)
    assert done.stderr.count("\n") == 1
    with Image.open(path) as image:
        assert image.size == (WIDTH, HEIGHT)


def test_without_a_feed_the_first_live_one_is_shown_and_no_other_asked_for_anything(tmp_path: Path) -> None:
    path = tmp_path / "shot.png"
    dead, live = status("connecting", "no route"), status("live")
    listing = encode_feeds({"dock": dead, "pier": live, "quay": live})
    with relay() as publisher, repeating(lambda: publisher.publish("*", "feeds", Header(), listing)):
        words = [sys.executable, "-m", "tools", "view", publisher.endpoint, "--snapshot", str(path)]
        with subprocess.Popen(words, cwd=ROOT) as program:
            wait_until(lambda: publisher.wait_for_viewer("pier", 1.0), "somebody wants the first that is live")
            assert not publisher.take_join("dock")
            assert not publisher.take_join("quay")
            camera = Camera(publisher, "pier")
            while program.poll() is None:
                camera.show()
                time.sleep(0.02)
    assert program.returncode == 0
    assert path.exists()


def test_where_little_time_is_left_no_list_of_feeds_takes_all_of_it() -> None:
    assert Span(Event(), None).beginning(LISTING_SECONDS).seconds == LISTING_SECONDS
    within = Span(Event(), 2.0).beginning(LISTING_SECONDS).seconds
    assert within is not None
    assert within <= 1.0


def test_without_a_feed_a_camera_s_own_pictures_are_those_of_the_first_that_has_any(tmp_path: Path) -> None:
    listing = encode_feeds({"pier": status("live"), "quay": status("live")})
    with relay() as publisher, repeating(lambda: publisher.publish("*", "feeds", Header(), listing)):
        [picture] = one_colour(ORANGE, Colour())
        shown = Header(key=True, codec="h264", pts=0, time_base=Fraction(1, 25))
        with repeating(lambda: publisher.publish("quay", "source", shown, picture.payload)):
            done = nightbridge(ROOT, "view", publisher.endpoint, "--source", "--snapshot", str(tmp_path / "shot.png"))
    assert done.returncode == 0
    assert re.fullmatch(r"\S+ \S+ INFO +showing feed quay\n", done.stderr)
    assert (tmp_path / "shot.png").exists()


def test_without_a_feed_the_first_that_is_heard_is_shown(tmp_path: Path) -> None:
    with on_air("quay") as publisher:
        done = nightbridge(ROOT, "view", publisher.endpoint, "--snapshot", str(tmp_path / "shot.png"))
    assert done.returncode == 0
    assert (tmp_path / "shot.png").exists()


def test_a_snapshot_of_a_silent_feed_fails_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "shot.png"
    with on_air() as publisher:
        done = nightbridge(ROOT, "view", publisher.endpoint, "quay", "--snapshot", str(path), "--seconds", "0.5")
    assert done.returncode == 1
    assert done.stderr == f"nightbridge: no picture of feed quay at {publisher.endpoint} within 0.5 s\n"
    assert not path.exists()


@pytest.mark.parametrize(("feed", "wanted"), [("quay", "feed quay"), (None, "any feed")])
def test_where_nothing_comes_at_first_that_is_told_before_the_end(feed: str | None, wanted: str) -> None:
    words = ["view", "tcp://127.0.0.1:1", *([feed] if feed else []), "--stats"]
    program = subprocess.Popen([sys.executable, "-m", "tools", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with program:
        assert program.stderr is not None
        line = program.stderr.readline()
        program.terminate()
    assert f"nothing of {wanted} at tcp://127.0.0.1:1 yet: is the relay running there" in line


def test_where_the_relay_has_no_such_feed_the_viewer_says_which_it_has() -> None:
    listing = encode_feeds({"pier": status("live"), "gate": status("live")})
    with relay() as publisher, repeating(lambda: publisher.publish("*", "feeds", Header(), listing)):
        command = [sys.executable, "-m", "tools", "view", publisher.endpoint, "peir", "--stats"]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as program:
            assert program.stderr is not None
            line = program.stderr.readline()
            program.terminate()
    assert line.endswith(
        f" nothing of feed peir at {publisher.endpoint} yet; the relay has no feed peir; it has gate, pier\n"
    )


NO_LOGIN = "rtsp://10.0.0.7/: user name or password is missing or wrong"


@pytest.mark.parametrize(
    ("words", "missing", "wanted", "warnings"),
    [
        (["pier", "--snapshot", "shot.png"], "no picture of feed pier", "feed pier", 1),
        (["--snapshot", "shot.png"], "no feed", "any feed", 1),
        (["--feeds"], "no relay tells of its feeds", "any feed", 0),
    ],
)
def test_where_no_connection_begins_what_may_be_there_is_told_and_nothing_that_contradicts_it(
    tmp_path: Path, words: list[str], missing: str, wanted: str, warnings: int
) -> None:
    with Impostor(hangs_up) as impostor:
        endpoint = f"tcp://127.0.0.1:{impostor.port}"
        done = nightbridge(tmp_path, "view", endpoint, *words)
    trouble = (
        f"what answers at {endpoint} ends every connection before it begins: it is no relay, or an encrypted one, "
        "which needs --relay-key and --secret-key (docs/deploy.md)"
    )
    *warned, failed = done.stderr.splitlines()
    assert [line.partition(" WARNING ")[2] for line in warned] == [
        *[f"{trouble}; trying on"] * warnings,
        f"nothing of {wanted} at {endpoint} yet; {trouble}",
    ]
    assert failed == f"nightbridge: {missing} at {endpoint} within 10 s; {trouble}"


def test_a_window_does_not_stand_still_while_the_relay_is_asked_why_nothing_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tools.view_feed.QUIET_SECONDS", 1.2)

    def longest_turn() -> float:
        with relay() as publisher, Reception(Wanted(publisher.endpoint, "pier", "video", None)) as reception:
            turned = [time.monotonic() for _ in reception.turns(Span(Event(), 3.0))]
        return max(after - before for before, after in pairwise(turned))

    assert takes_less_than(0.5, longest_turn)
    assert "is the relay running there" in caplog.text


def test_all_feeds_are_asked_for_until_a_picture_comes() -> None:
    with relay() as publisher, Reception(Wanted(publisher.endpoint, "pier", "video", None)) as reception:
        turns = reception.turns(Span(Event(), None))
        wait_until(lambda: next(turns) == [] and publisher.wait_for_viewer("*", 0.0), "the question")
        Camera(publisher).show()
        wait_until(lambda: next(turns) == [] and not publisher.wait_for_viewer("*", 0.0), "the end of the question")
        with saying(publisher, lambda: status("connecting", NO_LOGIN)):
            wait_until(lambda: next(turns) == [] and reception.status, "a status")


def test_where_a_camera_s_own_pictures_do_not_come_the_viewer_says_that_they_may_not_be_published() -> None:
    listing = encode_feeds({"pier": status("live")})
    with relay() as publisher, repeating(lambda: publisher.publish("*", "feeds", Header(), listing)):
        done = nightbridge(ROOT, "view", publisher.endpoint, "pier", "--stats", "--source", "--seconds", "3")
    assert done.stderr == (
        f"nightbridge: no picture of feed pier at {publisher.endpoint} within 3 s; "
        "the relay says: live, and may not publish the camera's own pictures (publish_source)\n"
    )


def test_where_the_camera_is_at_fault_the_viewer_says_what_the_relay_says(tmp_path: Path) -> None:
    path = tmp_path / "shot.png"
    with relay() as publisher, saying(publisher, lambda: status("connecting", NO_LOGIN)):
        done = nightbridge(ROOT, "view", publisher.endpoint, "pier", "--snapshot", str(path), "--seconds", "7")
    wanted, says = f"feed pier at {publisher.endpoint}", f"; the relay says: connecting: {NO_LOGIN}"
    warned, failed = done.stderr.splitlines()
    assert done.returncode == 1
    assert warned.endswith(f"nothing of {wanted} yet{says}")
    assert failed == f"nightbridge: no picture of {wanted} within 7 s{says}"


UNDECODABLE = b"\0\0\0\1\x65" + bytes(40)


def test_where_no_picture_can_be_decoded_the_viewer_says_so(tmp_path: Path) -> None:
    with relay() as publisher:
        broken = Header(key=True, codec="h264", pts=0, time_base=Fraction(1, 25))
        with repeating(lambda: publisher.publish("pier", "video", broken, UNDECODABLE)):
            words = ["pier", "--snapshot", str(tmp_path / "shot.png"), "--seconds", "3"]
            done = nightbridge(ROOT, "view", publisher.endpoint, *words)
    assert done.returncode == 1
    assert re.fullmatch(
        f"nightbridge: no picture of feed pier at {publisher.endpoint} within 3 s; "
        r"[1-9]\d* came that cannot be decoded\n",
        done.stderr.splitlines(keepends=True)[-1],
    )


def test_the_figures_are_printed_and_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    with on_air(capture_clock="arrival", state="tainted") as publisher:
        done = nightbridge(ROOT, "view", publisher.endpoint, "pier", "--stats", "--seconds", "3", "--json", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "age p50" in done.stdout.splitlines()[0]
    figures = json.loads(path.read_text())
    assert figures.keys() == KEYS
    assert (figures["feed"], figures["lost"], figures["capture_clock"]) == ("pier", 0, "arrival")
    assert figures["states"]["tainted"] >= figures["pictures"] > 5
    assert 0 < figures["age_p50_ms"] <= figures["age_p95_ms"] < 1000
    assert figures["rate_fps"] == pytest.approx((figures["pictures"] - 1) / figures["seconds"])


def test_one_picture_makes_no_rate() -> None:
    figures = Figures()
    figures.add(message(bytes(1000), "h264"))
    assert "0.0 pictures/s; 8 kbit/s" in figures.line(Subscriber("tcp://127.0.0.1:1", "pier", ("video",)))


class Clock:
    """Stands for the module `time`: both clocks go on only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return round(self.now * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tools.view_figures.time", clock)
    return clock


def unopened() -> Subscriber:
    return Subscriber("tcp://127.0.0.1:1", "pier", ("video",))


def losing(lost: int) -> Subscriber:
    """A subscriber that so many messages did not reach."""
    return cast("Subscriber", SimpleNamespace(lost=lost, received=100, dropped={}, states={}))


def watch(figures: Figures, clock: Clock, pictures: int, rate: float, age_ms: float) -> None:
    """Let pictures of 1000 bytes come."""
    for _ in range(pictures):
        clock.now += 1 / rate
        came = message(bytes(1000), "h264")
        header = msgspec.structs.replace(came.header, capture_ns=round(clock.now * 1e9 - age_ms * 1e6))
        figures.add(replace(came, header=header))


def test_the_line_tells_of_the_last_seconds_and_the_end_of_all(clock: Clock) -> None:
    figures = Figures()
    watch(figures, clock, pictures=2400, rate=32, age_ms=150)
    assert figures.line(unopened()) == "age p50 150 ms, p95 150 ms; 32.0 pictures/s; 256 kbit/s; lost 0"
    watch(figures, clock, pictures=41, rate=4, age_ms=900)
    assert figures.line(unopened()) == "age p50 900 ms, p95 900 ms; 4.0 pictures/s; 32 kbit/s; lost 0"
    values = figures.values(unopened())
    assert values["pictures"] == 2441
    assert values["age_p50_ms"] == pytest.approx(150)
    assert values["rate_fps"] == pytest.approx(2440 / (2399 / 32 + 41 / 4))


def test_the_line_says_no_age_where_no_clock_told(clock: Clock) -> None:
    figures = Figures()
    figures.add(message(bytes(1000), "h264"))
    clock.now += 0.1
    assert figures.line(unopened()) == "0.0 pictures/s; 8 kbit/s; lost 0"


def test_the_line_tells_what_was_lost_on_the_way_in_the_last_seconds(clock: Clock) -> None:
    figures = Figures()
    for lost, told in ((1, 1), (7, 7), (7, 6), (9, 2), (9, 2), (9, 0)):
        watch(figures, clock, pictures=5, rate=1, age_ms=0)
        assert figures.line(losing(lost)).endswith(f"; lost {told}")
    assert figures.values(losing(9))["lost"] == 9


def test_the_line_tells_how_many_cannot_be_decoded_and_for_how_long_nothing_was_seen(clock: Clock) -> None:
    figures, line = Figures(), []
    for undecodable in (0, 3, 3, 3):
        figures.fail(undecodable)
        clock.now += 4
        figures.add(message(bytes(1000), "h264"), is_seen=undecodable == 0)
        line.append(figures.line(unopened()))
    assert line == [
        "0.0 pictures/s; 8 kbit/s; lost 0",
        "no picture for 4 s; lost 0; 3 cannot be decoded",
        "no picture for 8 s; lost 0; 3 cannot be decoded",
        "no picture for 12 s; lost 0",
    ]
    figures.add(message(bytes(1000), "h264"))
    assert not figures.is_stale()


def test_where_nothing_that_came_could_be_decoded_there_is_no_picture_yet() -> None:
    figures = Figures()
    figures.add(message(UNDECODABLE, "h264"), is_seen=False)
    figures.fail(1)
    assert figures.line(unopened()) == "no picture yet; 1 cannot be decoded"


def test_the_line_tells_what_the_relay_dropped_and_lost_in_the_last_seconds(clock: Clock) -> None:
    figures = Figures()
    line = []
    for dropped, lost in ((1000, 50), (1000, 50), (1040, 50), (1040, 53), (1040, 53), (1040, 53), (5, 0), (6, 0)):
        watch(figures, clock, pictures=5, rate=1, age_ms=0)
        figures.hear(status("live", dropped=dropped, lost=lost))
        line.append(figures.line(unopened()).partition("; lost 0")[2])
    assert line == [
        "",
        "",
        "; the relay dropped 40 (overload)",
        "; the relay dropped 40 (overload); the relay lost 3 (damaged)",
        "; the relay lost 3 (damaged)",
        "",
        "",  # begun anew
        "; the relay dropped 1 (overload)",
    ]


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (status("live"), ""),
        (status("ended"), "; ended"),
        (status("connecting", "no route"), "; connecting: no route"),
        (status("live", "no picture can be decoded"), "; live: no picture can be decoded"),
    ],
)
def test_the_line_tells_what_is_wrong_with_a_feed(clock: Clock, says: Status, told: str) -> None:
    figures = Figures()
    figures.hear(says)
    assert figures.line(unopened()) == f"no picture yet{told}"
    watch(figures, clock, pictures=1, rate=1, age_ms=0)
    assert figures.line(unopened()).endswith(f"; lost 0{told}")
    clock.now += 3
    assert figures.line(unopened()) == f"no picture for 3 s; lost 0{told}"


def test_what_the_relay_dropped_is_over_although_it_says_nothing_more(clock: Clock) -> None:
    figures = Figures()
    for dropped in (0, 40):
        watch(figures, clock, pictures=1, rate=1, age_ms=0)
        figures.hear(status("live", dropped=dropped))
    assert figures.line(unopened()).endswith("lost 0; the relay dropped 40 (overload)")
    watch(figures, clock, pictures=10, rate=1, age_ms=0)
    assert figures.line(unopened()).endswith("lost 0")


def test_the_figures_tell_what_the_relay_drops() -> None:
    dropped = count(1000, 10)
    with on_air() as publisher, saying(publisher, lambda: status("live", dropped=next(dropped))):
        words = ["view", publisher.endpoint, "pier", "--stats", "--seconds", f"{DEADLINE}"]
        program = subprocess.Popen([sys.executable, "-m", "tools", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert program.stdout is not None
        try:
            told = next((line for line in program.stdout if "relay" in line), "nothing")
        finally:
            program.kill()
            program.communicate()
    assert told.startswith("age p50 ")
    assert "the relay dropped " in told
    assert told.endswith(" (overload)\n")


def test_figures_of_a_silent_feed_end_with_1() -> None:
    with relay() as publisher:
        done = nightbridge(ROOT, "view", publisher.endpoint, "pier", "--stats", "--seconds", "0.3")
    assert done.returncode == 1
    assert "no picture of feed pier" in done.stderr


def test_a_feed_that_has_gone_silent_is_told_by_the_figures() -> None:
    with relay() as publisher:
        program = subprocess.Popen(
            [sys.executable, "-m", "tools", "view", publisher.endpoint, "pier", "--stats"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdout is not None
        try:
            assert publisher.wait_for_viewer("pier", DEADLINE)
            Camera(publisher).show(3)
            silent = next(line for line in program.stdout if line.startswith("no picture for"))
            program.terminate()
            assert program.wait(DEADLINE) == 0
        finally:
            program.kill()
            program.communicate()
    assert re.fullmatch(r"no picture for ([2-9]|\d\d+) s; lost 0\n", silent)


def test_the_feeds_of_a_relay_are_listed_with_how_they_do_and_written_as_json(tmp_path: Path) -> None:
    live = Status(state="live", received=70, published=60, under_way=2, dropped={"late": 5}, lost={"damaged": 3})
    dead = Status(state="failed", received=0, published=0, under_way=0, dropped={}, lost={}, reason="[no] route")
    path = tmp_path / "feeds.json"
    with relay() as publisher:
        listing = [sys.executable, "-m", "tools", "view", publisher.endpoint, "--feeds", "--json", str(path)]
        with subprocess.Popen(listing, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
            wait_until(lambda: publisher.wait_for_viewer("*", 1.0), "somebody asks")
            assert not publisher.wait_for_viewer("pier", 0.0), "who lists the feeds is no viewer of them"
            assert not publisher.take_join("pier")
            publisher.publish("*", "feeds", Header(), encode_feeds({"quay": dead, "pier": live}))
            printed = program.communicate()[0]
    assert (program.returncode, printed.splitlines()) == (
        0,
        [
            "pier  live    70 received  60 published  5 dropped  3 lost",
            "quay  failed  0 received   0 published   0 dropped  0 lost  [no] route",
        ],
    )
    feeds = json.loads(path.read_text())["feeds"]
    assert feeds["pier"] == msgspec.to_builtins(live) | {"reason": None}
    assert feeds["quay"]["reason"] == "[no] route"


def test_a_relay_that_does_not_tell_of_its_feeds_is_named(tmp_path: Path) -> None:
    path = tmp_path / "feeds.json"
    with on_air() as publisher:  # pictures alone
        done = nightbridge(ROOT, "view", publisher.endpoint, "--feeds", "--seconds", "0.5", "--json", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"nightbridge: no relay tells of its feeds at {publisher.endpoint} within 0.5 s\n"
    assert not path.exists()


@pytest.mark.parametrize(
    ("feed", "words", "missing"),
    [
        ("*", ["--feeds"], "no relay tells of its feeds at"),
        ("pier", ["pier", "--snapshot", "shot.png"], "no picture of feed pier at"),
    ],
)
def test_who_is_stopped_names_no_time_that_was_not_waited(
    tmp_path: Path, feed: str, words: list[str], missing: str
) -> None:
    with relay() as publisher:
        command = [sys.executable, "-m", "tools", "view", publisher.endpoint, *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as program:
            wait_until(lambda: publisher.wait_for_viewer(feed, 1.0), "somebody asks")
            program.send_signal(signal.SIGINT)
            told = program.communicate(timeout=DEADLINE)[1]
    assert (program.returncode, told) == (1, f"nightbridge: {missing} {publisher.endpoint}\n")


@pytest.mark.parametrize("words", [["--feeds"], ["--snapshot", "shot.png"], ["pier", "--snapshot", "shot.png"]])
def test_no_time_at_all_is_not_waited(tmp_path: Path, words: list[str]) -> None:
    done = nightbridge(tmp_path, "view", "tcp://127.0.0.1:1", *words, "--seconds", "0")
    assert done.returncode == 1
    assert done.stderr.endswith(" at tcp://127.0.0.1:1 within 0 s\n")


@pytest.mark.parametrize(
    "words",
    [
        ["--snapshot", "a.png", "--stats"],
        ["--feeds", "--stats"],
        ["--feeds", "--snapshot", "a.png"],
        ["pier", "--feeds"],
        ["--feeds", "--source"],
        ["--snapshot", "a.jpg"],
        ["--snapshot", "/no/a.png"],
        ["--stats", "--json", "/no/a"],
        ["--json", "a.json"],
        ["--seconds", "-1"],
        ["--relay-key", __file__],
    ],
)
def test_options_that_do_not_go_together_are_wrong_use(words: list[str]) -> None:
    assert nightbridge(ROOT, "view", "tcp://127.0.0.1:5560", *words).returncode == 2


def test_an_endpoint_that_is_none_is_told_with_an_example() -> None:
    done = nightbridge(ROOT, "view", "10.0.0.2:5560", "pier", "--stats")
    assert done.returncode == 2
    assert "'10.0.0.2:5560'; must be an endpoint such as" in done.stderr


def test_without_pygame_the_error_says_what_to_install() -> None:
    script = "import sys; sys.modules['pygame'] = None; from tools.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "view", "tcp://127.0.0.1:5560", "pier"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("nightbridge: the window needs pygame: pip install 'nightbridge[view]'")
    assert done.stderr.count("\n") == 1


def test_without_a_display_the_error_says_what_works() -> None:
    done = nightbridge(ROOT, "view", "tcp://127.0.0.1:5560", "pier", SDL_VIDEODRIVER="none of them")
    assert done.returncode == 1
    assert "--snapshot and --stats need none" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_window_that_nobody_would_see_is_an_error() -> None:
    seen_by = ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY")
    done = subprocess.run(
        [sys.executable, "-m", "tools", "view", "tcp://127.0.0.1:5560", "pier", "--seconds", "1"],
        cwd=ROOT,
        env={name: text for name, text in os.environ.items() if name not in seen_by},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("nightbridge: no window can be opened here (")


TELLING = """
import json, pygame
flip = pygame.display.flip
def tell():
    flip()
    screen = pygame.display.get_surface()
    middle, corner = (tuple(screen.get_at(place)[:3]) for place in ((80, 48), (0, 0)))
    shown = (screen.get_size(), middle, corner, pygame.display.get_caption()[0])
    print(json.dumps(shown), flush=True)
pygame.display.flip = tell
from tools.app import main
main()
"""

Shown = tuple[list[int], list[int], list[int], str]


CAPTIONS = """
import json, pygame
caption = pygame.display.set_caption
def tell(text):
    caption(text)
    print(json.dumps([[], [], [], text]), flush=True)
pygame.display.set_caption = tell
from tools.app import main
main()
"""


@contextmanager
def window(publisher: Publisher, telling: str = TELLING) -> Iterator[tuple[subprocess.Popen[str], SimpleQueue[Shown]]]:
    """`nightbridge view` in a process of its own, which tells what is on its screen whenever that changes:
    size, colour in the middle, colour in the corner, caption; with `CAPTIONS` only the last, with or without picture.
    """
    program = subprocess.Popen(
        [sys.executable, "-c", telling, "view", publisher.endpoint, "pier"],
        cwd=ROOT,
        env={"SDL_VIDEODRIVER": "dummy", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = program.stdout
    assert lines is not None
    screens: SimpleQueue[Shown] = SimpleQueue()

    def read() -> None:
        for line in lines:
            if line.startswith("["):
                screens.put(json.loads(line))

    reader = Thread(target=read)
    reader.start()
    try:
        yield program, screens
    finally:
        program.kill()
        program.wait()
        reader.join()
        lines.close()


def wait_for_screen(screens: SimpleQueue[Shown], wanted: Callable[[Shown], bool]) -> Shown:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        try:
            if wanted(shown := screens.get(timeout=0.1)):
                return shown
        except Empty:
            continue
    raise AssertionError(f"that was not on the screen within {DEADLINE} s")


def silence(told: str) -> int:
    """Seconds for which there was no picture, as a caption or a line of figures tells; 0 where it does not."""
    found = re.search(r"no picture for (\d+) s", told)
    return int(found[1]) if found else 0


def test_the_window_shows_the_pictures_of_the_feed_as_they_come_and_ends_cleanly() -> None:
    with on_air() as publisher, window(publisher) as (program, screens):
        shown = {tuple(wait_for_screen(screens, lambda _: True)[1]) for _ in range(8)}
        size, middle, corner, caption = wait_for_screen(screens, lambda _: True)
        program.terminate()
        assert program.wait(DEADLINE) == 0
    greys = {round((Camera.luma(number) - 16) * 255 / 219) for number in range(32)}
    assert len(shown) > 1
    assert all(min(abs(red - grey) for grey in greys) <= 2 for red, _, _ in shown)
    assert size == [WIDTH, HEIGHT]
    assert corner == middle
    assert caption.startswith(f"nightbridge pier  {publisher.endpoint}   age p50")


def test_damaged_pictures_have_a_frame() -> None:
    with on_air(state="tainted") as publisher, window(publisher) as (_, screens):
        _, middle, corner, _ = wait_for_screen(screens, lambda _: True)
    assert corner == [255, 176, 0]
    assert middle != corner


def test_a_picture_that_stands_still_gets_a_red_frame() -> None:
    with relay() as publisher, window(publisher) as (_, screens):
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show()
        _, _, corner, _ = wait_for_screen(screens, lambda _: True)
        assert corner != [230, 30, 30]
        *_, caption = wait_for_screen(screens, lambda shown: shown[2] == [230, 30, 30] and silence(shown[3]) > 0)
        assert silence(caption) >= 2
        wait_for_screen(screens, lambda shown: silence(shown[3]) > silence(caption))
        camera.show(2)
        wait_for_screen(screens, lambda shown: shown[2] != [230, 30, 30] and "age p50" in shown[3])


def test_a_picture_that_stands_still_while_none_can_be_decoded_gets_a_red_frame_too() -> None:
    broken = Header(key=True, codec="h264", pts=0, time_base=Fraction(1, 25), state="clean")
    with relay() as publisher, window(publisher) as (_, screens):
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show(state="tainted")
        _, _, corner, _ = wait_for_screen(screens, lambda _: True)
        assert corner == [255, 176, 0]
        with repeating(lambda: publisher.publish("pier", "video", broken, UNDECODABLE)):
            _, _, corner, _ = wait_for_screen(screens, lambda shown: "cannot be decoded" in shown[3])
            assert corner == [255, 176, 0], "the picture that is shown is still a damaged one"
            wait_for_screen(screens, lambda shown: shown[2] == [230, 30, 30] and shown[3].endswith("cannot be decoded"))


def test_the_caption_says_how_many_of_the_first_pictures_cannot_be_decoded() -> None:
    broken = Header(key=True, codec="h264", pts=0, time_base=Fraction(1, 25))
    with (
        relay() as publisher,
        repeating(lambda: publisher.publish("pier", "video", broken, UNDECODABLE)),
        window(publisher, telling=CAPTIONS) as (_, screens),
    ):
        wait_for_screen(
            screens, lambda shown: re.search("no picture yet; [1-9].* cannot be decoded", shown[3]) is not None
        )


def test_the_caption_says_why_a_feed_is_not_live() -> None:
    now = status("connecting", NO_LOGIN)
    with (
        relay() as publisher,
        saying(publisher, lambda: now),
        window(publisher, telling=CAPTIONS) as (_, screens),
    ):
        camera = Camera(publisher)
        wait_for_screen(screens, lambda shown: shown[3].endswith(f"   no picture yet; connecting: {NO_LOGIN}"))
        now = status("live")
        wait_for_screen(screens, lambda shown: shown[3].endswith("   no picture yet"))
        camera.show()
        wait_for_screen(screens, lambda shown: "age p50" in shown[3] and NO_LOGIN not in shown[3])
        now = status("connecting", NO_LOGIN)
        wait_for_screen(
            screens, lambda shown: "no picture for" in shown[3] and shown[3].endswith(f"; connecting: {NO_LOGIN}")
        )


@pytest.mark.parametrize("key", ["K_q", "K_ESCAPE", None])
def test_a_window_is_closed_by_its_button_and_by_keys(key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with Window("test") as shown:
        assert not shown.is_closed()
        event = (
            pygame.event.Event(pygame.QUIT)
            if key is None
            else pygame.event.Event(pygame.KEYDOWN, key=getattr(pygame, key))
        )
        pygame.event.post(event)
        assert shown.is_closed()


def test_a_picture_keeps_its_shape_in_a_window_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    white = np.full((48, 64, 3), 255, np.uint8)
    with Window("test") as shown:
        shown.show(white, "", None)
        pygame.display.set_mode((128, 48))
        shown.show(white, "", None)
        screen = pygame.surfarray.array3d(pygame.display.get_surface())
    assert screen[32:96].min() == 255
    assert screen[:32].max() == screen[96:].max() == 0


def test_a_window_that_cannot_be_opened_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "none of them")
    with pytest.raises(StreamError, match="no window can be opened here"):
        Window("test").__enter__()
