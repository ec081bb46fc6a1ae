"""A feed as it comes to an inbox, in time and over a thin link, for tests."""

from itertools import count

from stream.wire.inbox import Inbox
from stream.wire.messages import Header, Kind, Message, Numbering

SECOND = 1_000_000_000
FRAME = 40_000_000
"""Nanoseconds between pictures."""


class Feed:
    """Makes the messages of a feed, one each 40 ms; the sender's clock is far from the receiver's."""

    def __init__(self, relay: str = "run-1", name: str = "pier", kind: Kind = "video", keys_every: int = 10) -> None:
        self._relay, self._name, self._kind, self._keys_every = relay, name, kind, keys_every
        self.numbers = Numbering(kind)
        self._places = count()

    def next(self, key: bool = False) -> Message:
        place = next(self._places)
        key = key or (self._kind != "data" and place % self._keys_every == 0)
        header = Header(key=key, state="clean")
        published_ns = 77 * SECOND + place * FRAME
        return Message(self._kind, self.numbers.stamp(header, self._relay, self._name, published_ns), b"")

    def take(self, amount: int) -> list[Message]:
        return [self.next() for _ in range(amount)]


def read_all(inbox: Inbox, now_ns: int) -> list[int]:
    """Numbers of everything that waits."""
    numbers = []
    while (message := inbox.take(now_ns)) is not None:
        numbers.append(message.header.seq)
    return numbers


def add_in_time(inbox: Inbox, messages: list[Message]) -> int:
    """Add each message at its own pace; tells the time of the last."""
    for message in messages:
        inbox.add(message, message.header.seq * FRAME)
    return messages[-1].header.seq * FRAME
