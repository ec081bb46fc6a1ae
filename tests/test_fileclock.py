from __future__ import annotations

from fractions import Fraction

import pytest

from stream.files.fileclock import CopyClock, FileClock, Jumps
from stream.files.parts import Part

MILLISECOND = Fraction(1, 1000)


def placed(*stamps: int) -> list[int]:
    """Of stamps in milliseconds, at 25 pictures a second."""
    clock = FileClock(MILLISECOND, Fraction(25))
    return [clock.place(stamp) for stamp in stamps]


def test_good_stamps_stay_as_they_are() -> None:
    assert placed(1400, 1440, 1480, 9000, 9033) == [1400, 1440, 1480, 9000, 9033]


def test_two_pictures_never_have_one_time_and_the_rest_is_not_moved_by_it() -> None:
    assert placed(0, 40, 40, 30, 120, 160) == [0, 40, 41, 42, 120, 160]


def test_a_clock_that_is_set_back_or_far_forward_leaves_no_hole() -> None:
    assert placed(5000, 5040, 0, 40, 80) == [5000, 5040, 5080, 5120, 5160]
    assert placed(0, 40, 9_000_000, 9_000_040) == [0, 40, 80, 120]


def test_a_pause_may_be_of_any_length_and_is_none_where_the_clock_is_set_back() -> None:
    clock = FileClock(MILLISECOND, Fraction(25))
    assert [clock.place(stamp, pause=True) for stamp in (0, 9_000_000, 0)] == [0, 9_000_000, 9_000_040]


def test_one_wild_stamp_alone_moves_nothing() -> None:
    assert placed(0, 40, 9_000_000, 120, 160) == [0, 40, 80, 120, 160]


def test_it_goes_on_after_a_part_as_if_it_had_never_ended() -> None:
    stamps = [5000, 5040, 0, 40, 40, 80, 120]
    whole = FileClock(MILLISECOND, Fraction(25))
    expected = [whole.place(stamp) for stamp in stamps]
    first = FileClock(MILLISECOND, Fraction(25))
    for stamp in stamps[:5]:
        first.place(stamp)
    part = Part(
        pictures=5,
        size=1,
        unit=4,
        key=0,
        placed=first.placed,
        last=first.last,
        jump=first.jump,
        jumps=[(2, first.jump)],
    )
    second = FileClock(MILLISECOND, Fraction(25))
    second.go_on(part, stamps[4])
    assert [second.place(stamp) for stamp in stamps[5:]] == expected[5:]
    assert second.jump == whole.jump


def test_stamps_that_are_counted_from_where_decoding_began_go_on_too() -> None:
    part = Part(pictures=5, size=1, unit=4, key=3, placed=160, last=160, jump=0, jumps=[])
    clock = FileClock(MILLISECOND, Fraction(25))
    clock.go_on(part, 40)
    assert [clock.place(80), clock.place(120)] == [200, 240]
    assert clock.jump == 0


def test_what_comes_around_a_jump_is_placed_with_the_pictures_that_it_belongs_to() -> None:
    """The clock was set back by 100 seconds before access unit 50."""
    jumps = Jumps([(50, Fraction(100))])
    jumps.pass_picture(49, Fraction(102))
    between = jumps.now, Fraction(102)
    assert [jumps.of(Fraction(101), between), jumps.of(Fraction(2), between)] == [0, 100]
    jumps.pass_picture(50, Fraction(2))
    assert jumps.now == 102
    assert [jumps.of(Fraction(101), between), jumps.of(Fraction(2), between)] == [0, 100]


def test_what_comes_in_a_pause_is_placed_as_the_pictures_around_it_however_near_a_jump_would_bring_it() -> None:
    """The clock was set back by 100 seconds before access unit 50, and no picture came for 5 minutes before unit 60."""
    jumps = Jumps([(50, Fraction(100))])
    jumps.pass_picture(59, Fraction(10))
    jumps.pass_picture(60, Fraction(310))
    between = Fraction(110), Fraction(410)
    assert jumps.now == between[1]
    assert [jumps.of(Fraction(seconds), between) for seconds in (11, 150, 309)] == [100, 100, 100]


def copied(*stamps: int | None, file_base: Fraction = MILLISECOND, duration: int = 20, until: int = 100) -> list[int]:
    """Of stamps in milliseconds, between pictures of the 100th second, or that and another one."""
    clock = CopyClock(MILLISECOND, file_base)
    followings = [*stamps[1:], None]
    return [
        clock.place(stamp, duration, (Fraction(100), until), following)
        for stamp, following in zip(stamps, followings, strict=True)
    ]


def test_what_is_copied_stays_where_it_is_and_no_two_have_one_time_in_the_new_file() -> None:
    assert copied(99_900, 99_920, 107_000, 107_000, 106_990) == [99_900, 99_920, 107_000, 107_001, 107_002]
    assert copied(99_900, 99_901, 99_903, file_base=Fraction(1, 400)) == [99_900, 99_903, 99_906]


@pytest.mark.parametrize("wild", [0, 10_000_000])
def test_a_wild_stamp_of_what_is_copied_moves_nothing(wild: int) -> None:
    assert copied(99_960, 99_980, wild, 100_020) == [99_960, 99_980, 100_000, 100_020]
    assert copied(wild, 99_980, 100_000) == [99_960, 99_980, 100_000]


def test_what_is_copied_may_lie_anywhere_between_two_pictures() -> None:
    assert copied(101_000, 150_000, 120_000, 179_000, until=180) == [101_000, 150_000, 150_001, 179_000]
    assert copied(101_000, 150_000, 200_000, 179_000, until=180) == [101_000, 150_000, 150_020, 179_000]


def test_what_is_copied_may_lie_near_the_pictures_however_far_from_what_came_before_it() -> None:
    assert copied(99_000, 40_000, 100_500, 60_000)[2] == 100_500
    assert copied(0, 10, 100_000, 100_500) == [0, 10, 100_000, 100_500]


def test_what_is_copied_may_lie_far_from_the_pictures_where_it_goes_on() -> None:
    for stamps in (range(300_000, 300_100, 20), range(109_000, 150_000, 8_000)):
        assert copied(*stamps) == list(stamps)


def test_what_has_no_stamp_goes_on_where_it_lasts_and_else_lies_beside_the_picture() -> None:
    assert copied(99_900, None, None) == [99_900, 99_920, 99_940]
    assert copied(99_900, None, None, duration=0) == [99_900, 100_000, 100_001]
