from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from stream.codecs.h264 import Bits, ReferenceCheck, nal_units
from tests.access_units import clip, coded, is_referred, nal, units_of
from tests.clips import REAL_CLIPS

ENCODINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "b-frames": {"b_frames": 2},
    "b-pyramid": {"b_frames": 5, "options": {"x264-params": "b-pyramid=normal:b-adapt=0:ref=4"}},
    "strict b-pyramid": {"b_frames": 3, "options": {"x264-params": "b-pyramid=strict:b-adapt=0"}},
    "open gop": {"b_frames": 3, "options": {"x264-params": "open-gop=1"}},
    "interlaced": {"interlaced": True},
    "interlaced b-frames": {"interlaced": True, "b_frames": 2},
    "fake interlaced": {"options": {"x264-params": "fake-interlaced=1"}},
    "slices": {"options": {"slices": "4"}},
    "references": {"options": {"preset": "medium", "x264-params": "ref=6:weightp=2"}},
    "intra refresh": {"options": {"intra-refresh": "1"}},
    "key frames only": {"key_interval": 1},
    "access unit delimiters": {"options": {"x264-params": "aud=1:nal-hrd=cbr:vbv-maxrate=400:vbv-bufsize=400"}},
    "scaling lists": {"options": {"x264-params": "cqm=jvt"}},
    "4:4:4": {"pix_fmt": "yuv444p"},
    "4:2:2, 10 bit": {"pix_fmt": "yuv422p10le"},
    "grey": {"pix_fmt": "gray"},
    "baseline": {"options": {"profile": "baseline"}},
    "long groups": {"key_interval": 250, "pictures": 300},
}


@pytest.fixture(scope="module", params=list(ENCODINGS.values()), ids=list(ENCODINGS))
def encoded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The access units of a clip, once for each encoding."""
    return clip(tmp_path_factory.mktemp("clip"), request.param)


def holes(units: list[bytes], missing: set[int] | None = None) -> list[int]:
    """The numbers of the units in front of which references are missing, where those in `missing` are left out."""
    check = ReferenceCheck()
    left = [(number, unit) for number, unit in enumerate(units) if number not in (missing or set())]
    return [number for number, unit in left if check.is_missing(unit)]


def kinds(unit: bytes) -> set[int]:
    return {kind for kind, _, _ in nal_units(unit)}


def test_nothing_is_missing_in_a_whole_stream(encoded: list[bytes]) -> None:
    assert holes(encoded) == []


def test_one_missing_picture_is_noticed_at_once_if_others_refer_to_it_and_only_then(encoded: list[bytes]) -> None:
    for number in range(1, min(len(encoded) - 1, 60)):
        renewed = 5 in kinds(encoded[number + 1])
        if 5 not in kinds(encoded[number]):
            expected = [number + 1] if is_referred(encoded[number]) and not renewed else []
            assert holes(encoded, {number}) == expected, number


def test_several_missing_pictures_are_one_hole(tmp_path: Path) -> None:
    units = clip(tmp_path, {})
    assert holes(units, {5, 6, 7}) == [8]
    assert holes(units, {5, 9}) == [6, 10]
    assert holes(units, {17, 18, 19}) == []


@pytest.mark.parametrize("key_interval", [20, 18, 30])
def test_a_missing_idr_picture_is_noticed(tmp_path: Path, key_interval: int) -> None:
    units = clip(tmp_path, {"key_interval": key_interval})
    assert 5 in kinds(units[key_interval])
    assert holes(units, {key_interval}) == [key_interval + 1]


def test_pictures_that_may_be_left_out_on_purpose_are_no_hole(tmp_path: Path) -> None:
    units = clip(tmp_path, {})
    with_gaps = [allow_gaps(unit) for unit in units]
    assert holes(with_gaps, {5, 6}) == []


def allow_gaps(unit: bytes) -> bytes:
    """The unit with `gaps_in_frame_num_value_allowed_flag` set in its sequence parameter set."""
    for kind, _, body in nal_units(unit):
        if kind == 7:
            bits = Bits(body)
            bits.take(24)
            bits.count()  # number
            bits.count(), bits.count(), bits.count()  # chroma format, depths
            bits.take(2)
            bits.count()  # bits of frame_num
            if bits.count() == 0:
                bits.count()
            bits.count()  # references
            left = bits._left
            plain = body.replace(b"\x00\x00\x03", b"\x00\x00")
            changed = (int.from_bytes(plain, "big") | 1 << (left - 1)).to_bytes(len(plain), "big")
            return unit.replace(body, re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", changed))
    return unit


def test_parameter_sets_may_come_from_outside(tmp_path: Path) -> None:
    units = clip(tmp_path, {})
    outside = units[0][: units[0].index(b"\x00\x00\x01\x65")]
    bare = [unit.replace(outside, b"") for unit in units]
    assert holes(bare, {5}) == [], "nothing can be told without them"
    check = ReferenceCheck(outside)
    assert [number for number, unit in enumerate(bare) if number != 5 and check.is_missing(unit)] == [6]


BASELINE = f"{66:08b}{0:08b}{30:08b}"
"""What a sequence set begins with."""


def sets(frames_only: bool, sequence: int = 3, picture: int = 1, bits: int = 4, order: str | None = None) -> bytes:
    """A sequence set (Baseline, `bits` of `frame_num`) and a picture set, which belongs to it."""
    body = coded(sequence, bits - 4) + (order or coded(2)) + coded(1) + "0" + coded(9, 7) + str(int(frames_only))
    return nal(0x67, BASELINE + body) + nal(0x68, coded(picture, sequence))


def test_a_sequence_set_that_changes_is_noticed_beside_another_that_does_not() -> None:
    other = sets(frames_only=True, sequence=1)
    check = ReferenceCheck(sets(frames_only=True, sequence=0) + other)
    for frames_only, changed in ((True, False), (False, True), (False, False)):
        check.is_missing(sets(frames_only=frames_only, sequence=0) + other)
        assert check.sequence_changed == changed


def header(number: int, more: str = "", picture: int = 1, bits: int = 4) -> bytes:
    """A slice of a picture that others refer to."""
    return nal(0x61, coded(0, 5, picture) + f"{number:0{bits}b}" + more + "1" * 20)


def test_a_count_that_begins_again_is_no_hole() -> None:
    check = ReferenceCheck(sets(frames_only=True))
    assert not any(check.is_missing(header(number % 16)) for number in range(7, 40))
    assert check.is_missing(header(9))
    assert not check.is_missing(header(10))


def test_two_fields_of_one_picture_have_one_number_and_two_pictures_do_not() -> None:
    frames, fields = ReferenceCheck(sets(frames_only=True)), ReferenceCheck(sets(frames_only=False))
    assert [frames.is_missing(header(number)) for number in (4, 4, 5)] == [False, True, False]
    top, bottom = "10", "11"
    assert not any(
        fields.is_missing(header(number, field)) for number, field in ((4, top), (4, bottom), (5, top), (5, bottom))
    )
    assert [fields.is_missing(header(number, "0")) for number in (6, 6)] == [False, True]


ORDERS = coded(0, 4)
"""In a sequence set: pictures tell the lowest 8 bits of their order count."""


def ordered(number: int, order: int, referred: bool = True, idr: bool = False) -> bytes:
    """A slice of a picture that tells its order count."""
    body = coded(0, 5, 1) + f"{number % 16:04b}" + (coded(0) if idr else "") + f"{order % 256:08b}" + "1" * 20
    return nal((0x60 if referred else 0) | (5 if idr else 1), body)


def group(length: int, referred: bool = True) -> list[bytes]:
    """An IDR picture and those after it; `referred`: each refers to the one before, else all to the first."""
    others = [ordered(number if referred else 1, 2 * number, referred) for number in range(1, length)]
    return [ordered(0, 0, idr=True), *others]


def holes_after(outside: bytes, units: list[bytes]) -> list[int]:
    check = ReferenceCheck(outside)
    return [number for number, unit in enumerate(units) if check.is_missing(unit)]


@pytest.mark.parametrize(("length", "referred"), [(5, False), (17, True), (33, True), (65, True)])
def test_a_missing_idr_picture_is_noticed_by_order_counts_where_frame_num_goes_on(length: int, referred: bool) -> None:
    outside, whole = sets(frames_only=True, order=ORDERS), group(length, referred) * 4
    assert holes_after(outside, whole) == []
    first = 3 * length
    assert holes_after(outside, whole[:first] + whole[first + 1 :]) == [first]


def test_an_encoder_that_repeats_its_order_counts_is_not_believed() -> None:
    outside = sets(frames_only=True, order=ORDERS)
    careless = [ordered(number, 0, idr=not number) for number in range(20)]
    assert holes_after(outside, careless * 4) == []


def test_a_picture_that_others_do_not_refer_to_is_noticed_if_it_comes_twice(tmp_path: Path) -> None:
    units = clip(tmp_path, {"b_frames": 2})
    [twice, *_] = [number for number in range(25, 60) if not is_referred(units[number])]
    assert holes(units) == []
    assert holes([*units[: twice + 1], *units[twice:]]) == [twice + 1]


def cycle(length: int) -> str:
    """An order of showing that repeats itself after so many pictures."""
    return coded(1) + "0" + coded(0, 0, length, *[0] * length)


@pytest.mark.parametrize(
    ("allowed", "forbidden"),
    [
        ({"sequence": 31}, {"sequence": 32}),
        ({"picture": 255}, {"picture": 256}),
        ({"bits": 16}, {"bits": 17}),
        ({"order": cycle(255)}, {"order": cycle(256)}),
    ],
)
def test_parameter_sets_may_say_what_the_standard_allows_and_no_more(
    allowed: dict[str, Any], forbidden: dict[str, Any]
) -> None:
    def notices(said: dict[str, Any]) -> bool:
        check = ReferenceCheck(sets(frames_only=True, **said))
        written = {key: value for key, value in said.items() if key in ("picture", "bits")}
        check.is_missing(header(4, **written))
        return check.is_missing(header(9, **written))

    assert notices(allowed)
    assert not notices(forbidden), "a set that cannot be is not believed"


@pytest.mark.parametrize(
    "crafted",
    [
        nal(0x67, BASELINE + coded(0, 0, 1) + "0" + coded(0, 0, 1 << 22) + "1" * 700_000),
        nal(0x68, "0" * 10_000_000),
    ],
    ids=["a cycle without an end", "a number without an end"],
)
def test_a_crafted_parameter_set_takes_no_time(crafted: bytes) -> None:
    check = ReferenceCheck()
    began = time.thread_time()
    assert not check.is_missing(crafted)
    assert time.thread_time() - began < 0.5


def test_a_crafted_message_takes_no_time(encoded: list[bytes]) -> None:
    check = ReferenceCheck()
    crafted = (b"\x00\x00\x01\x06" + b"\x01\x00" * 512) * 200 + encoded[0]
    began = time.thread_time()
    check.is_missing(crafted, 0)
    assert time.thread_time() - began < 0.03


def test_nonsense_raises_nothing(encoded: list[bytes]) -> None:
    random = np.random.default_rng(1)
    check = ReferenceCheck()
    for unit in encoded:
        damaged = np.frombuffer(unit, np.uint8).copy()
        where = random.integers(0, min(len(damaged), 120), 3)
        damaged[where] = random.integers(0, 256, 3)
        check.is_missing(damaged.tobytes()[: random.integers(0, len(damaged))])
    for length in range(200):
        check.is_missing(b"\x00\x00\x01" + random.bytes(length))
        check.is_missing(b"\x00\x00\x01\x67" + random.bytes(length))


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason=f"{REAL_CLIPS.name} is not here")
def test_real_recordings_have_no_holes() -> None:
    checked = 0
    for file in sorted(REAL_CLIPS.iterdir()):
        if file.suffix not in (".mp4", ".mkv", ".ts"):
            continue
        with av.open(str(file)) as container:
            if container.streams.video[0].codec_context.name != "h264":
                continue
        units = units_of(file)
        assert holes(units) == [], file.name
        referred = [number for number in range(1, len(units) - 1) if is_referred(units[number])]
        assert holes(units, {referred[len(referred) // 2]}) != [], file.name
        checked += 1
    assert checked
