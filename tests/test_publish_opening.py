import signal
import socket
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path

import pytest

from stream import publish
from stream.errors import WireError
from stream.publish import Publisher
from stream.settings import RelaySettings
from stream.subscribe import Subscriber
from stream.wire.messages import Header
from tests.live import Viewer
from tests.published import relay
from tests.sockets import ANYWHERE, receive, viewer, wait_for_join
from tests.waiting import DEADLINE, wait_until


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:*", "ipc://{folder}/wire"])
def test_an_address_that_is_taken_is_named(tmp_path: Path, endpoint: str) -> None:
    with Publisher(RelaySettings(endpoint=endpoint.format(folder=tmp_path)), "run-1") as first:
        taken = RelaySettings(endpoint=first.endpoint)
        with (
            pytest.raises(WireError, match=f"cannot publish at {first.endpoint}: Address already in use"),
            Publisher(taken, "run-2"),
        ):
            pass


def test_a_file_in_place_of_a_socket_is_refused_and_stays(tmp_path: Path) -> None:
    mission = tmp_path / "mission.mp4"
    mission.write_text("pictures")
    settings = RelaySettings(endpoint=f"ipc://{mission}")
    with (
        pytest.raises(WireError, match=r"ipc://.*mission\.mp4: the path exists and is not a socket"),
        Publisher(settings, "run"),
    ):
        pass
    assert mission.read_text() == "pictures"


def test_a_socket_that_a_killed_relay_left_is_no_hindrance(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "wire"))
    with Publisher(RelaySettings(endpoint=f"ipc://{tmp_path}/wire"), "run") as publisher:
        assert publisher.endpoint == f"ipc://{tmp_path}/wire"


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(WireError, match=r"cannot publish at tcp://203\.0\.113\.1:5560"):
        Publisher(RelaySettings(endpoint="tcp://203.0.113.1:5560"), "run-1").__enter__()


def test_a_closed_publisher_says_so_and_frees_its_address() -> None:
    with Publisher(ANYWHERE, "run-1") as publisher:
        endpoint = publisher.endpoint
    with pytest.raises(WireError, match="closed"):
        publisher.publish("pier", "video", Header(), b"")
    with pytest.raises(WireError, match="closed"):
        publisher.take_join("pier")

    with relay("run-2", endpoint) as again:
        assert again.endpoint == endpoint


def test_the_last_messages_still_arrive_after_the_publisher_has_closed() -> None:
    with Publisher(ANYWHERE, "run-1") as publisher, viewer(publisher, b"pier/") as socket:
        wait_for_join(publisher, "pier")
        for _ in range(10):
            publisher.publish("pier", "video", Header(), bytes(20_000))
        publisher.__exit__(None, None, None)
        assert [receive(socket).header.seq for _ in range(10)] == list(range(10))


def test_a_viewer_that_takes_nothing_does_not_hold_up_the_end() -> None:
    with Publisher(ANYWHERE, "run-1") as publisher, viewer(publisher, b"pier/", rcvhwm=1, rcvbuf=65_536):
        wait_for_join(publisher, "pier")
        for _ in range(100):
            publisher.publish("pier", "video", Header(), bytes(100_000))
        ending = threading.Thread(target=publisher.__exit__, args=(None, None, None))
        ending.start()
        ending.join(10.0)
        assert not ending.is_alive()


def test_a_stopped_viewer_that_takes_nothing_is_cut_off_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "VIEWER_LOST", 1.0)
    with Publisher(ANYWHERE, "run-1") as publisher, Viewer(publisher.endpoint) as stopped:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        stopped.process.send_signal(signal.SIGSTOP)

        def is_forgotten() -> bool:
            publisher.publish("pier", "video", Header(), bytes(50_000))
            return not publisher.wait_for_viewer("pier", 0)

        wait_until(is_forgotten, "cutting off the viewer")


PUBLISH_AND_END = """
import sys, time
from stream.publish import Publisher
from stream.settings import RelaySettings
from stream.wire.messages import Header
with Publisher(RelaySettings(endpoint="tcp://127.0.0.1:*"), "run", lossless=sys.argv[1] == "lossless") as publisher:
    print(publisher.endpoint, flush=True)
    publisher.wait_for_viewer("pier", 30)
    for number in range(50):
        publisher.publish("pier", "video", Header(key=True), bytes(100_000))
"""


@pytest.mark.parametrize("manner", ["live", "lossless"])
def test_the_last_messages_leave_before_the_process_ends(manner: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PUBLISH_AND_END, manner],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert program.stdout is not None
    with program.stdout, Subscriber(program.stdout.readline().strip(), "pier", max_age=None) as subscriber:
        seen = [message.header.seq for message in islice(iter(lambda: subscriber.receive(DEADLINE), None), 50)]
        assert program.wait(DEADLINE) == 0
    assert seen == list(range(50))


def test_opening_and_closing_leaves_nothing_behind() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with Publisher(ANYWHERE, "run-0") as publisher, viewer(publisher, b""):
        pass  # what all of them share has been opened
    before, threads = descriptors(), threading.active_count()
    for run in range(20):
        with Publisher(ANYWHERE, f"run-{run}") as publisher, viewer(publisher, b""):
            wait_for_join(publisher, "pier")
    wait_until(lambda: descriptors() <= before, "closing every socket")
    wait_until(lambda: threading.active_count() <= threads, "the end of all threads")
