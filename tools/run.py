"""`nightbridge run`: the relay, until a signal."""

from __future__ import annotations

import logging
import threading
import uuid
from pathlib import Path
from typing import Annotated

import typer

from tools.signals import stopped_by_signals

log = logging.getLogger("nightbridge")

STATUS_SECONDS = 1.0
"""Between two messages of kind `status` of a feed."""


def run(config: Annotated[Path, typer.Argument(help="Settings.")] = Path("config.toml")) -> None:
    """Relay every feed of CONFIG until SIGTERM or SIGINT; a clean stop flushes every encoder."""
    from engines.runtime import EngineOptions, open_engine
    from stream.pipeline import Relay
    from stream.publish import Publisher
    from stream.settings import load_settings

    settings = load_settings(config)
    logging.getLogger().setLevel(settings.relay.log_level.upper())
    stop = threading.Event()
    if not settings.feeds:
        log.warning("%s has no feeds: add a table [feeds.NAME] with a url", config)
    options = EngineOptions(
        precision=settings.engine.precision,
        threads=settings.engine.threads,
        cache=settings.engine.cache,
        slots=Relay.slots(settings),
    )
    with (
        stopped_by_signals(stop.set),
        open_engine(settings.engine.runtime, settings.engine.weights, options) as engine,
        Publisher(settings.relay, uuid.uuid4().hex) as publisher,
    ):
        log.info(
            "engine: %s %s on %s, weights %s",
            engine.info.runtime,
            engine.info.precision,
            engine.info.device,
            engine.info.weights,
        )
        log.info("publishing %d feeds at %s", len(settings.feeds), publisher.endpoint)
        with Relay(settings, engine, publisher) as relay:
            while not stop.wait(STATUS_SECONDS) and relay.failure is None:
                relay.publish_status()
        relay.publish_status()
        for feed in relay.feeds.values():
            log.info("feed %s: %s", feed.name, feed.meter.figures())
    if relay.failure is not None:
        raise relay.failure
