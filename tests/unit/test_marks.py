from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from samples import Stored

from apps.consumer.redriving.marks import CLOSE_OFFSETS, TOPIC_ID, Marks, holds, merged, rest_of, without

OFFSETS = st.sets(st.integers(0, 40))
INTERVALS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)))


def mark(key: bytes | None, value: bytes | None, *headers: tuple[str, bytes | None]) -> Stored:
    return Stored(0, 0, 0, key, value, headers, "people-dlt-redriven")


@given(INTERVALS, st.integers(0, 41))
def test_merged_ranges_hold_the_same_offsets_and_are_apart(intervals: list[tuple[int, int]], offset: int) -> None:
    assert holds(merged(intervals), offset) == any(start <= offset < stop for start, stop in intervals)
    ranges = merged(intervals)
    assert all(one[1] < following[0] for one, following in pairwise(ranges))


@given(INTERVALS, st.integers(0, 40), st.integers(0, 40))
def test_the_rest_has_every_offset_that_is_not_marked(intervals: list[tuple[int, int]], start: int, stop: int) -> None:
    marked, rest = merged(intervals), rest_of(merged(intervals), start, stop)
    wanted = {offset for offset in range(start, stop) if not holds(marked, offset)}
    assert {offset for offset in wanted if not holds(rest, offset)} == set()
    assert all(start <= one < other <= stop for one, other in rest)
    assert {one for one, _ in rest} <= wanted


def test_what_is_marked_is_not_read_again_where_it_is_much() -> None:
    far, near = 2 + CLOSE_OFFSETS + 1, 2 + CLOSE_OFFSETS
    assert rest_of([(2, far)], 0, 9_000) == [(0, 2), (far, 9_000)]
    assert rest_of([(2, near)], 0, 9_000) == [(0, 9_000)]


@given(OFFSETS, st.integers(0, 20), st.integers(20, 41))
def test_all_but_some_offsets(offsets: set[int], start: int, stop: int) -> None:
    inside = {offset for offset in offsets if start <= offset < stop}
    ranges = without(start, stop, inside)
    assert {offset for offset in range(50) if holds(ranges, offset)} == set(range(start, stop)) - inside


def test_marks_of_groups_are_apart_and_those_of_an_earlier_version_count_for_all() -> None:
    marks = Marks()
    marks.add("one", 3, [(1, 2)])
    marks.add(None, 3, [(5, 6)])
    for group in ("one", None):
        marks.read(mark(*marks.to_write(group, 3)))
    marks.read(mark(b"3", b"[[8,9]]"))
    assert [offset for offset in range(10) if marks.holds("one", 3, offset)] == [1, 8]
    assert [offset for offset in range(10) if marks.holds("two", 3, offset)] == [8]
    assert [offset for offset in range(10) if marks.holds(None, 3, offset)] == [5, 8]
    assert [offset for offset in range(10) if marks.holds("one", 4, offset)] == []
    assert marks.of("one", 3) == [(1, 2), (8, 9)]
    assert marks.unreadable is None


def test_marks_of_a_topic_that_had_the_name_before_do_not_count() -> None:
    marks = Marks([(TOPIC_ID, b"new")])
    marks.read(mark(b"3", b"[[8,9]]", (TOPIC_ID, b"old")))
    assert not marks.holds("one", 3, 8)
    marks.read(mark(b"3", b"[[8,9]]", (TOPIC_ID, b"new")))
    assert marks.holds("one", 3, 8)


def test_a_mark_that_was_deleted_marks_nothing_and_what_is_no_mark_is_named() -> None:
    marks = Marks()
    marks.read(mark(b"3", b"[[8,9]]"))
    marks.read(mark(b"3", None))
    assert not marks.holds("one", 3, 8)
    for key, value in ((None, b"[]"), (b"\xff", b"[]"), (b"3", b"text"), (b'{"group":1}', b"[]")):
        strange = Marks()
        strange.read(mark(key, value))
        assert strange.unreadable == "people-dlt-redriven-0 offset 0 is no mark"
