"""A camera for tests that sends each picture when it would have been taken, as long as it is asked to."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Self

import av

from tests.clips import datagrams
from tests.waiting import CATCH_UP


class LiveCamera:
    """Sends a transport stream over UDP to 127.0.0.1 in its own time, over and over, from a thread of its own.

    A context manager. Every round begins again at the stream's first time stamp.
    """

    def __init__(self, path: Path, port: int) -> None:
        self._datagrams = datagrams(path)
        self._times = sending_times(path, len(self._datagrams))
        self._address = ("127.0.0.1", port)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-camera", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.monotonic()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while True:
                for data, due in zip(self._datagrams, self._times, strict=True):
                    if self._stop.wait(max(0.0, start + due - time.monotonic())):
                        return
                    start = max(start, time.monotonic() - CATCH_UP - due)
                    sender.sendto(data, self._address)
                start += self._times[-1] + 0.04


def sending_times(path: Path, count: int) -> list[float]:
    """For each datagram, seconds from the first to the picture whose last byte is in it or behind it."""
    with av.open(str(path)) as container:
        units = [
            (packet.pos, float(packet.dts * packet.time_base)) for packet in container.demux(video=0) if packet.dts
        ]
    first = units[0][1]
    size = path.stat().st_size / count
    times, index = [], 0
    for number in range(count):
        while index + 1 < len(units) and (units[index + 1][0] or 0) <= number * size:
            index += 1
        times.append(units[index][1] - first)
    return times
