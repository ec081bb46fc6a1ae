"""A thin link for tests: what a relay sends passes at so many bytes a second; what does not waits in small buffers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CHUNK = 1_400
"""Bytes that pass at once."""

BUFFER = 8_192
"""Bytes asked from the kernel at each of the link's ends."""


@contextmanager
def thin_link(relay: str, octets_per_second: float) -> Iterator[str]:
    """A TCP endpoint that stands for the one at `relay` until the block ends."""
    host, port = relay.removeprefix("tcp://").rsplit(":", 1)
    ended = threading.Event()
    threads: list[threading.Thread] = []
    sockets: list[socket.socket] = []

    def begin(stage: object, *arguments: object) -> None:
        thread = threading.Thread(target=stage, args=arguments)  # type: ignore[arg-type]
        threads.append(thread)
        thread.start()

    def accept() -> None:
        while not ended.is_set():
            with suppress(TimeoutError, ConnectionRefusedError):  # the relay has gone, and the viewer tries again
                near, _ = listener.accept()
                far = socket.socket()
                sockets.extend((near, far))
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
                near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
                far.connect((host, int(port)))
                begin(carry, far, near, octets_per_second)
                begin(carry, near, far, 1e9)

    def carry(source: socket.socket, target: socket.socket, rate: float) -> None:
        with suppress(OSError):
            while octets := source.recv(CHUNK):
                target.sendall(octets)
                if ended.wait(len(octets) / rate):
                    break
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        begin(accept)
        try:
            yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            for each in sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for each in sockets:
                each.close()
