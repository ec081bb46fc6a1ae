"""`nightbridge run`: runs the relay until a signal."""

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
"""Interval of each feed's `status` messages, and of checks whether the settings file has changed."""
LOOKS, LOOKS_AT_NOTHING = 2, 5
"""Checks in a row that must find the same before the file counts as changed; the second number if it is empty or
missing, as it is when writing begins."""


def run(config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings file.")] = Path("config.toml")) -> None:
    """Relay every feed of CONFIG until SIGTERM or SIGINT; a clean stop flushes every encoder.

    Feeds can be added, removed and changed while it runs: CONFIG is reloaded when it changes, and on SIGHUP, which also
    reopens failed feeds, and accepts a file without feeds unless it is empty or holds only comments.
    """
    from engines.runtime import EngineOptions, open_with_fallback
    from stream.errors import StreamError
    from stream.feed import reason_of
    from stream.publish import Publisher
    from stream.relay import Relay
    from stream.settings import high_water_mark_warning, load_settings, require_weights

    bound_arenas()
    raise_file_limit()
    watch = FileWatch(config)
    settings = load_settings(config)
    require_weights(settings.engine, f"{config}: [engine]")
    logging.getLogger().setLevel(settings.relay.log_level.upper())
    stop, reload = threading.Event(), threading.Event()
    if not settings.feeds:
        log.warning("%s has no feeds: add a table [feeds.NAME] with a url", config)
    if low := high_water_mark_warning(settings.relay.high_water_mark, len(settings.feeds)):
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
            reported: tuple[object, str | None] | None = None
            while not stop.wait(STATUS_SECONDS) and relay.failure is None:
                changed, asked = watch.changed(), reload.is_set()
                if changed or asked:
                    reload.clear()
                    relay.refused = wrong = reload_settings(config, relay, asked)
                    if wrong is None:
                        watch.accept()
                        if low := high_water_mark_warning(settings.relay.high_water_mark, len(relay.feeds)):
                            log.warning("%s; a new value takes effect at the next start", low)
                    else:
                        watch.refuse()
                        if asked or (watch.seen, wrong) != reported:
                            log.error("new settings not applied, the old ones stay in effect: %s", wrong)
                    reported = watch.seen, wrong
                relay.publish_status()
        relay.publish_status()
        for feed in relay.feeds.values():
            log.info("feed %s: %s", feed.name, feed.figures())
    if relay.failure is not None:
        raise StreamError(f"the relay failed: {reason_of(relay.failure)}")


def pictures_at_once(feeds: int) -> int:
    """2 for four feeds or more, else 1: a feed still has half of the processor when the others are idle."""
    return 2 if feeds >= 4 else 1


class FileWatch:
    """Tells whether a file was replaced, or written to, since it was last accepted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seen = self._look()
        """Fingerprint of the file at the latest check."""
        self._known: tuple[int, ...] | None = self.seen
        """Fingerprint of the file at the start, or as accepted; None after a refusal."""
        self._looks = 1
        """Checks in a row that have found the same fingerprint."""

    def changed(self) -> bool:
        """Check whether the file differs from the known one, and was the same in the last checks, this one included.

        So a file that is being written is left alone.
        """
        before, self.seen = self.seen, self._look()
        self._looks = self._looks + 1 if self.seen == before else 1
        enough = LOOKS if any(self.seen) else LOOKS_AT_NOTHING
        return self.seen != self._known and self._looks >= enough

    def accept(self) -> None:
        """Make the file as last seen the known one."""
        self._known = self.seen

    def refuse(self) -> None:
        """Forget the known file, so that going back to it counts as a change, too."""
        self._known = None

    def _look(self) -> tuple[int, ...]:
        """Size, inode and modification time of the file; (0,) if it is empty, () if it is missing."""
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return (found.st_size, found.st_ino, found.st_mtime_ns) if found.st_size else (0,)


def reload_settings(config: Path, relay: Relay, asked: bool) -> str | None:
    """Reload the settings file; returns None, or in one line what is wrong: then the old settings stay.

    They also stay if feeds would be removed because the file is empty or holds only comments, as when writing begins,
    or because it has no feeds, so that it may be incomplete. `asked`: the reload was requested; then the file may have
    no feeds, and failed feeds are reopened.
    """
    from stream.errors import SettingsError
    from stream.settings import load_settings, require_weights

    try:
        settings = load_settings(config)
        require_weights(settings.engine, f"{config}: [engine]")
    except SettingsError as error:
        return "; ".join(str(error).splitlines())
    tables = tables_of(config)
    named = settings.feeds and tables.get("feeds")  # without the second, all come from the environment
    if relay.feeds.keys() - settings.feeds.keys() and not named:
        if not tables:
            return f"{config} is empty or holds only comments"
        if not asked:
            return f"{config} has no feeds, so it may be incomplete; send SIGHUP to apply it anyway"
    changes = relay.apply(settings, reopen_failed=asked)
    log.log(logging.WARNING if changes.removed else logging.INFO, "reloaded %s: %s", config, changes)
    if changes.need_restart:
        log.warning("changes to %s in %s take effect at the next start", ", ".join(changes.need_restart), config)
    return None


def tables_of(config: Path) -> dict[str, Any]:
    """The tables of a file; none if it is empty, holds only comments, or cannot be read."""
    try:
        return tomllib.loads(config.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):  # removed meanwhile, or being written
        return {}
