"""Relays for tests: feeds of recordings and of cameras, and what their viewers are given."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np

from engines.door import Door
from stream.metrics import FeedFigures
from stream.publish import Publisher
from stream.relay import Relay
from stream.settings import FeedSettings, RelaySettings, Settings
from stream.subscribe import Subscriber
from stream.wire.messages import Message
from tests.clips import free_port
from tests.waiting import DEADLINE, wait_until


def settings(**feeds: FeedSettings) -> Settings:
    return Settings(relay=RelaySettings(endpoint="tcp://127.0.0.1:*", high_water_mark=10_000), feeds=feeds)


def recording(path: Path, **changes: object) -> FeedSettings:
    return FeedSettings(url=str(path), mode="replay", **changes)  # type: ignore[arg-type]


@contextmanager
def watched(publisher: Publisher, feed: str) -> Iterator[list[Message]]:
    """Everything that a viewer receives of a feed while the block lasts, and a little longer."""
    messages: list[Message] = []
    kinds = ("video", "source", "data", "status")
    with Subscriber(publisher.endpoint, feed, kinds, max_age=3600) as viewer:  # type: ignore[arg-type]
        wait_until(lambda: publisher.take_join(feed), "the viewer's coming")
        reader = threading.Thread(target=lambda: messages.extend(viewer))
        reader.start()
        yield messages
        seen = -1
        while seen != len(messages):
            seen = len(messages)
            reader.join(0.3)
        viewer.close()
        reader.join()


def replayed(engine: Door, feed: FeedSettings) -> tuple[FeedFigures, list[Message]]:
    """What became of a recording, and what a viewer received of it."""
    wanted = settings(tape=feed)
    with engine, Publisher(wanted.relay, "run") as publisher, watched(publisher, "tape") as messages:
        with Relay(wanted, engine, publisher) as relay:
            assert relay.wait(DEADLINE)
        assert relay.failure is None
    return relay.feeds["tape"].meter.figures(), messages


def pictures(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message.kind == "video"]


def decoded(messages: list[Message], codec: str = "h264") -> list[av.VideoFrame]:
    context = av.CodecContext.create(codec, "r")
    frames: list[av.VideoFrame] = []
    for message in pictures(messages):
        frames += context.decode(av.Packet(message.payload))  # type: ignore[arg-type]
    return frames + context.decode(None)  # type: ignore[operator]


def luma(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray()[: frame.height]


def holds(figures: FeedFigures) -> bool:
    return figures.received == figures.published + sum(figures.dropped.values()) + sum(figures.lost.values())


def camera(**changes: object) -> Settings:
    feed = FeedSettings(url=f"udp://127.0.0.1:{free_port()}", **changes)  # type: ignore[arg-type]
    return settings(cam=feed)


def as_filmed(clip: Path, pictures: int) -> int:
    """The bit rate at which a clip takes as long to send as it took to film: faster, it would be an overload."""
    return clip.stat().st_size * 8 * 25 // pictures


def port_of(wanted: Settings) -> int:
    return int(wanted.feeds["cam"].url.rpartition(":")[2])
