"""`nightbridge run`: the relay, until a signal."""

from __future__ import annotations

import logging
import signal
import threading
import tomllib
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.common.limits import bound_arenas, raise_file_limit
from tools.common.signals import answering

if TYPE_CHECKING:
    from stream.relay import Relay

log = logging.getLogger("nightbridge")

STATUS_SECONDS = 1.0
"""Between two messages of kind `status` of a feed, and between two looks at the settings' file."""
LOOKS, LOOKS_AT_NOTHING = 2, 5
"""In a row that must show the same before the file counts as changed; the second where it is empty or away, which is
how writing begins."""


def run(config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings.")] = Path("config.toml")) -> None:
    """Relay every feed of CONFIG until SIGTERM or SIGINT; a clean stop flushes every encoder.

    Cameras are added, removed and changed while it runs: CONFIG is read again when it changes, and on SIGHUP, which
    also opens feeds again that have failed, and lets all be removed.
    """
    from engines.runtime import EngineOptions, open_with_fallback
    from stream.errors import StreamError
    from stream.feed import reason_of
    from stream.publish import Publisher
    from stream.relay import Relay
    from stream.settings import load_settings, low_mark, require_weights

    bound_arenas()
    raise_file_limit()
    watch = Watch(config)
    settings = load_settings(config)
    require_weights(settings.engine, f"{config}: [engine]")
    logging.getLogger().setLevel(settings.relay.log_level.upper())
    stop, reload = threading.Event(), threading.Event()
    if not settings.feeds:
        log.warning("%s has no feeds: add a table [feeds.NAME] with a url", config)
    if low := low_mark(settings.relay.high_water_mark, len(settings.feeds)):
        log.warning("%s", low)
    options = EngineOptions(
        precision=settings.engine.precision,
        threads=settings.engine.threads,
        parallel=settings.engine.parallel or pictures_at_once(len(settings.feeds)),
        cache=settings.engine.cache,
        batch=settings.engine.batch,
    )
    with (
        answering({signal.SIGINT: stop.set, signal.SIGTERM: stop.set, signal.SIGHUP: reload.set}),
        open_with_fallback(settings.engine.runtime, settings.engine.weights, options) as engine,
        Publisher(settings.relay, uuid.uuid4().hex) as publisher,
    ):
        with Relay(settings, engine, publisher) as relay, ExitStack() as served:
            if settings.relay.metrics:
                from stream.monitor.health import Health

                health = served.enter_context(Health(settings.relay.metrics, relay))
                log.info("metrics and status at http://%s", health.address)
            log.info("publishing %d feeds at %s", len(settings.feeds), publisher.endpoint)
            told: tuple[object, str | None] | None = None
            while not stop.wait(STATUS_SECONDS) and relay.failure is None:
                changed, asked = watch.changed(), reload.is_set()
                if changed or asked:
                    reload.clear()
                    relay.refused = wrong = read_again(config, relay, asked)
                    if wrong is None:
                        watch.take()
                        if low := low_mark(settings.relay.high_water_mark, len(relay.feeds)):
                            log.warning("%s; another one takes effect at the next start", low)
                    else:
                        watch.refuse()
                        if asked or (watch.seen, wrong) != told:
                            log.error("the settings stay as they were: %s", wrong)
                    told = watch.seen, wrong
                relay.publish_status()
        relay.publish_status()
        for feed in relay.feeds.values():
            log.info("feed %s: %s", feed.name, feed.figures())
    if relay.failure is not None:
        raise StreamError(f"the relay failed: {reason_of(relay.failure)}")


def pictures_at_once(feeds: int) -> int:
    """Two where there are four feeds or more: one whose neighbours are away still has half of the processor."""
    return 2 if feeds >= 4 else 1


class Watch:
    """Tells that a file has become another one, or has been written to, until that one is taken."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seen = self._look()
        """What stands for the file as it was seen last."""
        self._known: tuple[int, ...] | None = self.seen
        """The same as it was at the start, or taken; None after one was refused."""
        self._looks = 1
        """In a row that have shown the same."""

    def changed(self) -> bool:
        """Whether the file is another than the one that is known, and has been for some looks, of which this is one.

        So one that is being written is left alone.
        """
        before, self.seen = self.seen, self._look()
        self._looks = self._looks + 1 if self.seen == before else 1
        enough = LOOKS if any(self.seen) else LOOKS_AT_NOTHING
        return self.seen != self._known and self._looks >= enough

    def take(self) -> None:
        """Let the file as it was last seen be the known one, which at first is that of the start."""
        self._known = self.seen

    def refuse(self) -> None:
        """Let none be known, so that the one that was is told of too, when it comes back."""
        self._known = None

    def _look(self) -> tuple[int, ...]:
        """Size, number and time of the file; (0,) where it is empty, () where it is away."""
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return (found.st_size, found.st_ino, found.st_mtime_ns) if found.st_size else (0,)


def read_again(config: Path, relay: Relay, asked: bool) -> str | None:
    """Apply what the file says now; where that is wrong the old settings stay, and what is wrong is told in one line.

    So they do where feeds would go since the file says nothing, which is how writing begins, or has none any more,
    which may be its beginning alone. `asked` says that somebody asked for it: then it may have none, and feeds that
    have failed are opened again.
    """
    from stream.errors import SettingsError
    from stream.settings import load_settings, require_weights

    try:
        settings = load_settings(config)
        require_weights(settings.engine, f"{config}: [engine]")
    except SettingsError as error:
        return "; ".join(str(error).splitlines())
    tables = tables_of(config)
    named = settings.feeds and tables.get("feeds")  # without the latter all are of the environment
    if relay.feeds.keys() - settings.feeds.keys() and not named:
        if not tables:
            return f"{config} says nothing"
        if not asked:
            return f"{config} has no feeds, as if it were cut off; SIGHUP takes it as it is"
    changes = relay.apply(settings, reopen_failed=asked)
    log.log(logging.WARNING if changes.removed else logging.INFO, "%s was read again: %s", config, changes)
    if changes.need_restart:
        log.warning("%s of %s takes effect at the next start", ", ".join(changes.need_restart), config)
    return None


def tables_of(config: Path) -> dict[str, Any]:
    """What a file says; nothing where it is empty, or holds comments alone."""
    try:
        return tomllib.loads(config.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):  # it went away meanwhile, or is being written
        return {}
