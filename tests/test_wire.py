import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream.errors import WireError
from stream.subscribe import Subscriber
from stream.wire.messages import (
    KINDS,
    Header,
    Message,
    Numbering,
    Stamped,
    Status,
    decode_feeds,
    decode_message,
    decode_status,
    encode_feeds,
    encode_message,
    encode_status,
    moment,
    ticks,
    topic,
)
from tests.published import Camera, relay
from tests.waiting import DEADLINE

HEADER = Header(
    key=True,
    codec="h264",
    width=1280,
    height=720,
    orientation=6,
    pts=-3600,
    dts=-7200,
    source_pts=126_000,
    time_base=Fraction(1, 90000),
    capture_ns=1_794_000_000_000_000_000,
    capture_clock="rtcp",
    received_ns=1_794_000_000_010_000_000,
    state="clean",
    mode="enhanced",
    model="f00d",
    source_sha256=bytes(range(32)),
)


def stamped(**changes: Any) -> Stamped:
    header = Numbering("video").stamp(HEADER, "run-1", "pier", 1_794_000_000_020_000_000)
    return msgspec.structs.replace(header, **changes)


def parts_with(**changes: Any) -> list[bytes]:
    """A good message's parts whose header map has other values; None takes a key away."""
    parts = encode_message(topic("pier", "video"), stamped(), b"unit")
    values = msgspec.msgpack.decode(parts[1]) | changes
    parts[1] = msgspec.msgpack.encode({key: value for key, value in values.items() if value is not None})
    return parts


def test_a_message_survives_the_wire() -> None:
    parts = encode_message(topic("pier", "video"), stamped(), b"unit")
    assert parts[0] == b"pier/video/"
    assert decode_message(parts) == Message("video", stamped(), b"unit")


def test_keys_that_are_not_known_do_not_travel() -> None:
    header = Numbering("data").stamp(Header(codec="klv"), "run-1", "pier", 5)
    sent = msgspec.msgpack.decode(encode_message(topic("pier", "data"), header, b"")[1])
    assert sent == {"v": 1, "relay": "run-1", "feed": "pier", "seq": 0, "published_ns": 5, "codec": "klv"}


def test_the_time_base_travels_as_two_integers() -> None:
    sent = msgspec.msgpack.decode(parts_with()[1])
    assert sent["time_base"] == [1, 90000]


def test_what_a_later_program_adds_is_ignored() -> None:
    parts = parts_with(colour_of_the_sky="green", nested={"a": [1, 2]})
    assert decode_message([*parts, b"a fourth part"]) == Message("video", stamped(), b"unit")


def test_unknown_words_in_a_header_are_read_as_they_are() -> None:
    assert decode_message(parts_with(state="repaired", capture_clock="ptp")).header.state == "repaired"


def test_another_major_version_is_refused_by_its_number_whatever_else_it_holds() -> None:
    with pytest.raises(WireError, match="feed pier speaks wire version 2; this program speaks version 1"):
        decode_message(parts_with(v=2, seq="a1", time_base="1/25"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"v": None}, "`v`"),
        ({"relay": None}, "`relay`"),
        ({"seq": None}, "`seq`"),
        ({"published_ns": None}, "`published_ns`"),
        ({"seq": "one"}, "seq"),
        ({"key": 1}, "key"),
        ({"time_base": [1, 0]}, "time base is two positive integers"),
        ({"time_base": [1]}, "time base is two positive integers"),
        ({"time_base": "1/25"}, "time base is two positive integers"),
        ({"source_sha256": 7}, "source_sha256"),
        ({"time_base": [1, 2**40]}, "time base is two positive integers"),
        ({"width": 0}, "width"),
        ({"height": 70_000}, "height"),
        ({"orientation": 0}, "orientation"),
        ({"orientation": 9}, "orientation"),
        ({"pts": 2**63}, "pts"),
        ({"dts": -(2**63)}, "dts"),
        ({"source_pts": 2**62 + 1}, "source_pts"),
        ({"source_pts": "126000"}, "source_pts"),
        ({"capture_ns": 2**63}, "capture_ns"),
        ({"published_ns": -1}, "published_ns"),
        ({"feed": "quay"}, "has a header of feed 'quay'"),
    ],
)
def test_a_header_that_is_wrong_is_refused_with_the_key(changes: dict[str, object], words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode_message(parts_with(**changes))


@pytest.mark.parametrize("stamp", [None, 0, 2**62, -(2**62), 2**62 + 1, -(2**62) - 1, 2**63 - 1, -(2**63) + 1])
def test_a_stamp_travels_or_is_left_out_but_never_makes_a_message_that_is_refused(stamp: int | None) -> None:
    header = stamped(pts=ticks(stamp), dts=ticks(stamp), source_pts=ticks(stamp))
    came = decode_message(encode_message(topic("pier", "video"), header, b"unit")).header
    expected = None if stamp is None or abs(stamp) > 2**62 else stamp
    assert (came.pts, came.dts, came.source_pts) == (expected, expected, expected)


@pytest.mark.parametrize("utc_ns", [-1, 0, 2**62, 2**62 + 1])
def test_a_time_travels_or_is_left_out_but_never_makes_a_message_that_is_refused(utc_ns: int) -> None:
    header = stamped(capture_ns=moment(utc_ns))
    came = decode_message(encode_message(topic("pier", "video"), header, b"unit")).header
    assert came.capture_ns == (utc_ns if 0 <= utc_ns <= 2**62 else None)


def test_bytes_that_are_no_message_are_refused() -> None:
    good = parts_with()
    for parts in (
        [],
        good[:1],
        good[:2],
        [b"pier", *good[1:]],
        [b"pier/music/", *good[1:]],
        [b"\xff/video/", *good[1:]],
    ):
        with pytest.raises(WireError):
            decode_message(parts)
    for header in (b"", b"\xc1", b"\x90", b"\x81\xa1v"):
        with pytest.raises(WireError, match="pier/video/"):
            decode_message([good[0], header, good[2]])


@pytest.mark.parametrize("feed", ["", "Pier", "pier/1", "-pier", "p" * 65, "pier\n", "pïer"])
def test_a_feed_whose_name_cannot_travel_has_no_topic(feed: str) -> None:
    with pytest.raises(WireError, match="name is 1 to 64"):
        topic(feed, "video")


def test_topics_of_feeds_with_like_names_are_no_prefixes_of_each_other() -> None:
    assert not topic("cam10", "video").startswith(topic("cam1", "video"))


def test_pictures_are_numbered_by_group_and_place_in_it() -> None:
    numbers = Numbering("video")
    keys = [False, True, False, False, True, False]
    headers = [numbers.stamp(Header(key=key), "run-1", "pier", 0) for key in keys]
    assert [header.seq for header in headers] == [0, 1, 2, 3, 4, 5]
    assert [header.gop for header in headers] == [0, 1, 1, 1, 2, 2]
    assert [header.au for header in headers] == [0, 0, 1, 2, 0, 1]


def test_pictures_of_a_source_that_begins_anew_are_of_no_group_up_to_their_key_frame() -> None:
    numbers = Numbering("source")
    headers = []
    for key in (True, False, None, False, False, True, False):
        if key is None:
            numbers.begin_anew()
        else:
            headers.append(numbers.stamp(Header(key=key), "run-1", "pier", 0))
    assert [header.seq for header in headers] == [0, 1, 2, 3, 4, 5]
    assert [header.gop for header in headers] == [1, 1, 0, 0, 2, 2]
    assert [header.au for header in headers] == [0, 1, 0, 1, 0, 1]


def test_messages_without_pictures_have_a_number_alone() -> None:
    numbers = Numbering("status")
    headers = [numbers.stamp(Header(), "run-1", "pier", 0) for _ in range(3)]
    assert [(header.seq, header.gop, header.au) for header in headers] == [
        (0, None, None),
        (1, None, None),
        (2, None, None),
    ]


def test_a_status_survives_the_wire() -> None:
    status = Status(
        state="connecting",
        received=100,
        published=90,
        under_way=2,
        dropped={"late": 5, "overload": 2},
        lost={"undecodable": 1},
        reason="timed out after 5 s",
    )
    assert decode_status(encode_status(status)) == status


def test_the_list_of_feeds_has_a_topic_of_its_own_and_survives_the_wire() -> None:
    status = Status(state="live", received=1, published=1, under_way=0, dropped={}, lost={})
    assert decode_feeds(encode_feeds({"pier": status, "quay": status})) == {"pier": status, "quay": status}
    assert decode_feeds(encode_feeds({})) == {}
    assert topic("*", "feeds") == b"*/feeds/"
    for feed, kind in (("*", "video"), ("pier", "feeds"), ("*", "status")):
        with pytest.raises(WireError, match="a kind is one of video, source, data, status, feeds; feeds goes with"):
            topic(feed, kind)
    with pytest.raises(WireError, match="cannot read the list of feeds"):
        decode_feeds(b"\x01")


def test_a_status_that_cannot_be_read_is_refused() -> None:
    for payload in (b"", b"\x80", b"\x01", msgspec.msgpack.encode({"state": 1})):
        with pytest.raises(WireError, match="cannot read a status message"):
            decode_status(payload)


DOCUMENT = (Path(__file__).parents[1] / "docs" / "wire.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """What stands between fences of this language in docs/wire.md."""
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def table_keys(section: str) -> set[str]:
    """All keys in the first column of the first table of a section of docs/wire.md."""
    _, _, text = DOCUMENT.partition(f"\n## {section}\n")
    rows = re.search(r"(\|.*\n)+", text)
    assert rows is not None
    return {key for row in rows[0].splitlines()[2:] for key in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_the_example_of_the_document_is_what_the_code_reads_and_writes() -> None:
    parts = [bytes.fromhex(block) for block in blocks("text")]
    message = decode_message(parts)
    shown = json.loads(blocks("json")[0])
    shown["source_sha256"] = bytes.fromhex(shown["source_sha256"])
    assert msgspec.msgpack.decode(parts[1]) == shown
    assert encode_message(topic(message.header.feed, message.kind), message.header, message.payload) == parts


def test_the_document_has_every_key_and_kind_and_no_other() -> None:
    assert table_keys("Header") == set(Stamped.__struct_fields__)
    assert table_keys("Status") == set(Status.__struct_fields__)
    assert table_keys("Topics") == set(KINDS)


def test_the_smallest_viewer_of_the_document_works() -> None:
    with relay() as publisher:
        camera = Camera(publisher)
        camera.show(3)
        viewer = subprocess.Popen(
            [sys.executable, "-c", blocks("python")[0], publisher.endpoint, "pier"], stdout=subprocess.PIPE
        )
        assert viewer.stdout is not None
        try:
            camera.wait_for_viewer()
            with Subscriber(publisher.endpoint, "pier", max_age=3600) as subscriber:
                camera.wait_for_viewer()
                camera.show(30)
                messages = [subscriber.receive(DEADLINE) for _ in range(20)]
            sent = b"".join(message.payload for message in messages if message)
            assert viewer.stdout.read(len(sent)) == sent
        finally:
            viewer.kill()
            viewer.wait()
            viewer.stdout.close()
