"""Viewers that are bare sockets, for tests of the publisher."""

from collections.abc import Iterator
from contextlib import contextmanager

import zmq
import zmq.auth

from stream.publish import Publisher
from stream.settings import RelaySettings
from stream.wire.messages import Message, decode_message
from tests.waiting import DEADLINE, wait_until

ANYWHERE = RelaySettings(endpoint="tcp://127.0.0.1:*")


@contextmanager
def viewer(publisher: Publisher, *prefixes: bytes, **options: object) -> Iterator[zmq.SyncSocket]:
    context: zmq.SyncContext = zmq.Context.instance()
    with context.socket(zmq.SUB) as socket:
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVTIMEO, int(DEADLINE * 1000))
        for name, value in options.items():
            setattr(socket, name, value)
        for prefix in prefixes:
            socket.subscribe(prefix)
        socket.connect(publisher.endpoint)
        yield socket


def wait_for_join(publisher: Publisher, feed: str) -> None:
    wait_until(lambda: publisher.take_join(feed), f"a viewer of {feed}")


def receive(socket: zmq.SyncSocket) -> Message:
    return decode_message(socket.recv_multipart())
