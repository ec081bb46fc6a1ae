"""A window that shows pictures, with pygame."""

from __future__ import annotations

import os
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Self

from stream.errors import StreamError

if TYPE_CHECKING:
    from stream.view import RgbPicture

EMPTY_SIZE = 640, 360
"""Pixels, before the first picture."""

FRAME_WIDTH = 6
"""Pixels, of the coloured frame around a picture that is not to be trusted."""


UNSEEN = ("offscreen", "dummy")
"""SDL's fallback drivers without a display: nobody would see the window, unless they were chosen by name."""


class Window:
    """A window that scales pictures to its own size. A context manager, for one thread.

    Raises `StreamError` where pygame is missing or no window can be opened.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._pygame = import_pygame()
        self._is_empty = True

    def __enter__(self) -> Self:
        display = self._pygame.display
        try:
            display.init()
            display.set_mode(EMPTY_SIZE, self._pygame.RESIZABLE)
        except self._pygame.error as error:
            raise StreamError(f"no window can be opened here ({error}); --snapshot and --stats need none") from None
        if display.get_driver() in UNSEEN and "SDL_VIDEODRIVER" not in os.environ:
            self._pygame.quit()
            raise StreamError("no window can be opened here (no display); --snapshot and --stats need none")
        self.set_caption("waiting for a picture")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pygame.quit()

    def show(self, picture: RgbPicture, caption: str, warning: tuple[int, int, int] | None) -> None:
        """Show a picture, the caption beside the title, and a frame of colour `warning` (RGB) around it."""
        pygame = self._pygame
        height, width = picture.shape[:2]
        surface = pygame.image.frombuffer(picture.tobytes(), (width, height), "RGB")
        if self._is_empty:
            self._is_empty = False
            desktop = pygame.Rect((0, 0), pygame.display.get_desktop_sizes()[0])
            fitting = surface.get_rect().size if desktop.contains(surface.get_rect()) else desktop.size
            pygame.display.set_mode(fitting, pygame.RESIZABLE)
        screen = pygame.display.get_surface()
        place = surface.get_rect().fit(screen.get_rect())
        screen.fill((0, 0, 0))
        screen.blit(
            surface if place.size == surface.get_size() else pygame.transform.smoothscale(surface, place.size), place
        )
        if warning is not None:  # drawn last: scaled with a large picture, it would hardly be seen
            pygame.draw.rect(screen, warning, place, FRAME_WIDTH)
        self.set_caption(caption)
        pygame.display.flip()

    def set_caption(self, caption: str) -> None:
        """Put the caption beside the title."""
        self._pygame.display.set_caption(f"{self.title}   {caption}")

    def is_closed(self) -> bool:
        """Whether the user has closed the window, or pressed q or Escape."""
        pygame = self._pygame
        return any(
            event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key in (pygame.K_q, pygame.K_ESCAPE))
            for event in pygame.event.get()
        )


def import_pygame() -> ModuleType:
    """The module pygame. Raises `StreamError` with what to install."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ImportError:
        raise StreamError(
            "the window needs pygame: pip install 'nightbridge[view]'; --snapshot and --stats do without"
        ) from None
    return pygame
