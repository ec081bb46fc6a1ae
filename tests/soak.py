"""Lets a relay run on two feeds for some minutes and watches its memory: `python -m tests.soak 30`.

The first fifth is not counted: what a process fetches once is no leak.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from stream.subscribe import Subscriber
from stream.wire.messages import decode_status
from tests.cameras import LiveCamera
from tests.clips import free_port
from tests.reliability import slope
from tools.benchmarks.stream import make_feed

SAMPLE_SECONDS = 10
CLIP = Path(__file__).parents[1] / "tools" / "clip" / "day.mp4"


def soak(minutes: float) -> dict[str, object]:
    """Memory of a relay process in MB: after the first fifth, at the end, its peak, and what an hour adds."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="nightbridge-soak-")))
        night = folder / "night.ts"
        make_feed(CLIP, night, (352, 288), 500)
        ports = [free_port(), free_port()]
        for port in ports:
            stack.enter_context(LiveCamera(night, port))
        endpoint = f"ipc://{folder}/wire"
        feeds = "".join(f'[feeds.cam{port}]\nurl = "udp://127.0.0.1:{port}"\n' for port in ports)
        config = folder / "config.toml"
        config.write_text(f'[relay]\nendpoint = "{endpoint}"\nlog_level = "warning"\n{feeds}')
        relay = subprocess.Popen([sys.executable, "-m", "tools", "run", str(config)])
        stack.callback(relay.kill)
        held: list[int] = []
        end = time.monotonic() + 60 * minutes
        with Subscriber(endpoint, f"cam{ports[0]}", ("status", "video")) as viewer:
            due = time.monotonic()
            status = None
            while (now := time.monotonic()) < end:
                message = viewer.receive(1)
                if message is not None and message.kind == "status":
                    status = decode_status(message.payload)
                if now >= due:
                    due += SAMPLE_SECONDS
                    held.append(resident(relay.pid))
        counted = held[len(held) // 5 :]
        relay.terminate()
        assert relay.wait(30) == 0
    assert status is not None
    return {
        "minutes": minutes,
        "first_mb": counted[0] / 1e6,
        "last_mb": counted[-1] / 1e6,
        "most_mb": max(held) / 1e6,
        "slope_mb_an_hour": slope(counted) * 3600 / SAMPLE_SECONDS / 1e6,
        "received": status.received,
        "published": status.published,
        "dropped": status.dropped,
        "lost": status.lost,
        "held_mb": [round(each / 1e6, 1) for each in held],
    }


def resident(pid: int) -> int:
    """Bytes of a process that are in memory (Linux)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


if __name__ == "__main__":
    json.dump(soak(float(sys.argv[1])), sys.stdout, indent=2)
    print()
