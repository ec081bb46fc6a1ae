"""A relay's state over HTTP, for Prometheus, for people, and for what restarts programs; see docs/health.md."""

from __future__ import annotations

import json
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

from stream.feed import Feed
from stream.monitor.http import Page, PageServer
from stream.monitor.prometheus import CONTENT_TYPE, exposition, registry_of
from stream.relay import Relay

PERCENTILES = (50, 95, 99)


class Health:
    """Serves `/metrics`, `/status`, `/healthz` and `/readyz` of a relay at HOST:PORT. A context manager.

    Use it inside the relay's `with` block. It only reads the relay, whose feeds may come and go meanwhile, and no
    client can slow the relay down. Port 0 takes any free port. Raises `WireError` if it cannot listen.
    """

    def __init__(self, address: str, relay: Relay) -> None:
        registry = registry_of(relay)
        self._server = PageServer(
            address,
            {
                "/metrics": lambda: Page(exposition(registry), CONTENT_TYPE),
                "/status": lambda: Page(json.dumps(status(relay), indent=2) + "\n", "application/json"),
                "/healthz": lambda: liveness(relay),
                "/readyz": lambda: readiness(relay),
            },
        )

    @property
    def address(self) -> str:
        """HOST:PORT; inside the `with` block with its real port."""
        return self._server.address

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.__exit__(kind, error, trace)


def liveness(relay: Relay) -> Page:
    """A page that says that the process lives, and which engines have failed; `/status` says why."""
    failed = ", ".join(runtime for runtime, count in relay.engine.failures.items() if count)
    return Page(f"ok, but engines have failed: {failed}\n" if failed else "ok\n")


def readiness(relay: Relay) -> Page:
    """A page that says whether the relay works, even if no camera sends anything."""
    if relay.failure is not None:  # only its type is shown: the message may hold anything
        return Page(f"failed: {type(relay.failure).__name__}\n", status=HTTPStatus.SERVICE_UNAVAILABLE)
    return Page("ready\n")


def status(relay: Relay) -> dict[str, Any]:
    """The state of the relay and its feeds, for JSON. Keys may be added, but are never removed."""
    engine = relay.engine.info
    return {
        "relay": relay.id,
        "engine": {
            "runtime": engine.runtime,
            "device": engine.device,
            "precision": engine.precision,
            "weights": engine.weights,
            "weights_id": engine.weights_id,
            "failures": relay.engine.failures,
            "reason": relay.engine.reason,
        },
        "settings": {"reason": relay.refused, "need_restart": relay.need_restart},
        "feeds": {name: feed_status(feed) for name, feed in dict(relay.feeds).items()},
    }


def feed_status(feed: Feed) -> dict[str, Any]:
    """The state of a feed; `received` is the sum of `published`, `dropped`, `lost` and `under_way`."""
    figures = feed.figures()
    ages = {f"p{percentile}": figures.age_ms(percentile) for percentile in PERCENTILES}
    return {
        "state": feed.state,
        "reason": feed.reason,
        "decoder": feed.codecs.get("decoder"),
        "encoder": feed.codecs.get("encoder"),
        "received": figures.received,
        "published": figures.published,
        "dropped": figures.dropped,
        "lost": figures.lost,
        "under_way": figures.under_way,
        "reconnects": figures.reconnects,
        "timestamp_repairs": figures.timestamp_repairs,
        "waiting": figures.waiting,
        "in_engine": figures.in_engine,
        "age_ms": {name: age if age is None else round(age, 1) for name, age in ages.items()},
        "memory_mb": feed.settings.memory / 1_000_000,
    }
