"""A relay's figures as Prometheus metrics, read at each scrape; docs/health.md lists them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.door import Door, EngineInfo
from stream.errors import Reason
from stream.feed import Feed
from stream.metrics import DROPS, LOSSES, STAGES, AgeHistogram, FeedFigures
from stream.relay import Relay

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of Prometheus' text format."""

RECONNECTS = (*get_args(Reason), "unexpected")
"""Why a source is given up; `unexpected` stands for all other reasons."""


class RelayCollector(Collector):
    """Makes the metrics of a relay. Reads each feed's figures once per scrape, so that they are consistent."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def collect(self) -> Iterator[Metric]:
        """All metrics, at this moment."""
        yield info("nightbridge_build", "The program.", {"version": program_version()})
        yield info("nightbridge_engine", "What enhances the pictures.", engine_labels(self._relay.engine.info))
        yield engine_failures(self._relay.engine)
        yield settings_current(self._relay)
        feeds = dict(self._relay.feeds)
        figures = {name: feed.figures() for name, feed in feeds.items()}
        yield from counters(figures)
        yield from gauges(figures, feeds)
        yield ages({name: each.ages for name, each in figures.items()})


def exposition(registry: CollectorRegistry) -> str:
    """All metrics of a registry in Prometheus' text format."""
    return generate_latest(registry).decode()


def registry_of(relay: Relay) -> CollectorRegistry:
    """A registry with the metrics of a relay and of the process it runs in."""
    registry = CollectorRegistry()
    registry.register(RelayCollector(relay))
    ProcessCollector(registry=registry)
    return registry


def program_version() -> str:
    """The version of the program; empty if it is not installed."""
    try:
        return version("nightbridge")
    except PackageNotFoundError:
        return ""


def engine_labels(engine: EngineInfo) -> dict[str, str]:
    """Labels that distinguish engines."""
    return {"runtime": engine.runtime, "precision": engine.precision, "weights": engine.weights}


def engine_failures(engine: Door) -> Metric:
    """How often engines failed; every runtime that may be used is present from the start, at 0."""
    metric = CounterMetricFamily("nightbridge_engine_failures", "Times an engine was given up.", labels=["runtime"])
    for runtime, count in engine.failures.items():
        metric.add_metric([runtime], count)
    return metric


def settings_current(relay: Relay) -> Metric:
    """Whether the latest settings were accepted."""
    text = "0 while the settings file is refused or gone, else 1."
    return GaugeMetricFamily("nightbridge_settings_current", text, value=relay.refused is None)


def info(name: str, text: str, labels: Mapping[str, str]) -> Metric:
    """A metric that is always 1 and carries its information in labels."""
    metric = GaugeMetricFamily(f"{name}_info", text, labels=list(labels))
    metric.add_metric(list(labels.values()), 1)
    return metric


def counters(figures: Mapping[str, FeedFigures]) -> Iterator[Metric]:
    """What feeds have counted since they began; known reasons are present from the start, at 0."""

    def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"nightbridge_{name}", text, labels=["feed", *labels])

    received = counter("frames_received", "Access units that came from the source.")
    published = counter("frames_published", "Enhanced pictures that left for the viewers.")
    dropped = counter("frames_dropped", "Access units or frames thrown away on purpose.", "stage", "reason")
    lost = counter("frames_lost", "Access units that gave no picture.", "stage", "reason")
    reconnects = counter("reconnects", "Times that the source was given up, to be opened again.", "reason")
    repairs = counter("timestamp_repairs", "Frames whose time stamps were not credible.")
    for name, feed in figures.items():
        received.add_metric([name], feed.received)
        published.add_metric([name], feed.published)
        for drop in DROPS:
            dropped.add_metric([name, STAGES[drop], drop], feed.dropped.get(drop, 0))
        for loss in LOSSES:
            lost.add_metric([name, STAGES[loss], loss], feed.lost.get(loss, 0))
        for reason, count in (dict.fromkeys(RECONNECTS, 0) | feed.reconnects).items():
            reconnects.add_metric([name, reason], count)
        repairs.add_metric([name], feed.timestamp_repairs)
    yield from (received, published, dropped, lost, reconnects, repairs)


def gauges(figures: Mapping[str, FeedFigures], feeds: Mapping[str, Feed]) -> Iterator[Metric]:
    """The state of the feeds at this moment."""

    def gauge(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"nightbridge_{name}", text, labels=["feed"])

    live = gauge("feed_live", "1 while the source is there and its pictures are published, else 0.")
    under_way = gauge("frames_under_way", "Access units received, and not yet published, dropped or lost.")
    waiting = gauge("frames_waiting", "Frames in front of the engine.")
    in_engine = gauge("frames_in_engine", "Frames in the engine or the encoder.")
    for name, feed in figures.items():
        live.add_metric([name], feeds[name].gives_pictures)
        under_way.add_metric([name], feed.under_way)
        waiting.add_metric([name], feed.waiting)
        in_engine.add_metric([name], feed.in_engine)
    yield from (live, under_way, waiting, in_engine)


def ages(histograms: Mapping[str, AgeHistogram]) -> Metric:
    """How old the published pictures of each feed were."""
    metric = HistogramMetricFamily("nightbridge_age_seconds", "Capture to published.", labels=["feed"])
    for name, histogram in histograms.items():
        metric.add_metric([name], cumulative(histogram), histogram.sum)
    return metric


def cumulative(histogram: AgeHistogram) -> list[tuple[str, float]]:
    """Upper bounds as Prometheus writes them, each with the number of pictures up to it."""
    bounds = [*map(str, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))
