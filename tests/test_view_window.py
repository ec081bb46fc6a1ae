from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from queue import Empty, SimpleQueue
from threading import Thread

import numpy as np
import pytest

from stream.errors import StreamError
from stream.publish import Publisher
from stream.wire.messages import Header
from tests.command import ROOT
from tests.published import HEIGHT, WIDTH, Camera, relay
from tests.viewing import NO_LOGIN, UNDECODABLE, on_air, repeating, saying, status
from tests.waiting import DEADLINE
from tools.window import Window

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


@pytest.mark.parametrize(("size", "left", "right"), [((3840, 2160), 0, 480), ((32, 32), 105, 375)])
def test_the_frame_is_as_wide_however_much_its_picture_is_scaled(
    size: tuple[int, int], left: int, right: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    amber, grey = [255, 176, 0], [60, 60, 60]
    picture = np.full((size[1], size[0], 3), 60, np.uint8)
    with Window("test") as shown:
        shown.show(picture, "", None)
        pygame.display.set_mode((480, 270))
        shown.show(picture, "", (255, 176, 0))
        row = pygame.surfarray.array3d(pygame.display.get_surface())[left:right, 135].tolist()
    assert row[:6] == row[-6:] == [amber] * 6
    assert row[6] == row[-7] == grey


def test_a_window_that_cannot_be_opened_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "none of them")
    with pytest.raises(StreamError, match="no window can be opened here"):
        Window("test").__enter__()
