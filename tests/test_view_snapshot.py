from __future__ import annotations

import re
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from threading import Event

import numpy as np
from PIL import Image

from engines.colour import Colour
from stream.wire.messages import Header, encode_feeds
from tests.command import ROOT, nightbridge
from tests.published import HEIGHT, WIDTH, Camera, relay
from tests.viewing import ORANGE, on_air, one_colour, repeating, status
from tests.waiting import wait_until
from tools.view_feed import LISTING_SECONDS, Span


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
        told = f"{path}: wrote a concealed picture of feed pier at {publisher.endpoint}: no clean one came within 5 s\n"
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
