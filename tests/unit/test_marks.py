from itertools import pairwise
from uuid import UUID

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from samples import Stored

from apps.consumer.redriving.actions import Action
from apps.consumer.redriving.marks import TOPIC_ID, Marks, contains, last_outside, merged, minus, next_outside

INTERVALS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)))


def mark(key: bytes | None, value: bytes | None, *headers: tuple[str, bytes | None]) -> Stored:
    return Stored(0, 0, 0, key, value, headers, "events-dlt-redriven")


@given(INTERVALS, st.integers(0, 41))
def test_merged_ranges_hold_the_same_offsets_and_are_apart(intervals: list[tuple[int, int]], offset: int) -> None:
    assert contains(merged(intervals), offset) == any(start <= offset < stop for start, stop in intervals)
    ranges = merged(intervals)
    assert all(one[1] < following[0] for one, following in pairwise(ranges))


@given(INTERVALS, st.integers(0, 41))
def test_the_next_offset_to_read_is_the_first_that_is_not_marked(intervals: list[tuple[int, int]], at: int) -> None:
    marked = merged(intervals)
    assert next_outside(marked, at) == next(offset for offset in range(at, 50) if not contains(marked, offset))


@given(INTERVALS, st.integers(0, 45))
def test_the_last_offset_to_read_is_the_last_before_that_is_not_marked(
    intervals: list[tuple[int, int]], end: int
) -> None:
    marked = merged(intervals)
    read_up_to = last_outside(marked, end)
    left = [offset for offset in range(end) if not contains(marked, offset)]
    assert [offset for offset in range(read_up_to) if not contains(marked, offset)] == left
    assert read_up_to in {0, end} or not left or read_up_to == left[-1] + 1


@given(INTERVALS, INTERVALS)
def test_all_but_some_offsets(intervals: list[tuple[int, int]], removed: list[tuple[int, int]]) -> None:
    left = minus(merged(intervals), removed)
    assert {offset for offset in range(50) if contains(left, offset)} == {
        offset for offset in range(50) if contains(merged(intervals), offset) and not contains(merged(removed), offset)
    }
    assert all(one[1] < following[0] for one, following in pairwise(left))


def test_marks_of_groups_are_apart_and_those_of_an_earlier_version_count_for_all() -> None:
    marks = Marks()
    written = [*marks.apply(Action.REDRIVE, "one", 3, [(1, 2)]), *marks.apply(Action.REDRIVE, None, 3, [(5, 6)])]
    marks = Marks()
    for key, value in written:
        marks.read(mark(key, value))
    marks.read(mark(b"3", b"[[8,9]]"))
    assert [offset for offset in range(10) if marks.contains("one", 3, offset)] == [1, 8]
    assert [offset for offset in range(10) if marks.contains("two", 3, offset)] == [8]
    assert [offset for offset in range(10) if marks.contains(None, 3, offset)] == [5, 8]
    assert [offset for offset in range(10) if marks.contains("one", 4, offset)] == []
    assert marks.of("one", 3) == [(1, 2), (8, 9)]
    assert marks.unreadable is None


def test_marks_of_a_topic_that_had_the_name_before_do_not_count() -> None:
    marks = Marks(UUID(int=2))
    marks.read(mark(b"3", b"[[8,9]]", (TOPIC_ID, str(UUID(int=1)).encode())))
    assert not marks.contains("one", 3, 8)
    marks.read(mark(b"3", b"[[8,9]]", (TOPIC_ID, str(UUID(int=2)).encode())))
    assert marks.contains("one", 3, 8)


def test_a_mark_that_was_deleted_marks_nothing_and_what_is_no_mark_is_named() -> None:
    marks = Marks()
    marks.read(mark(b"3", b"[[8,9]]"))
    marks.read(mark(b"3", None))
    assert not marks.contains("one", 3, 8)
    for key, value in ((None, b"[]"), (b"\xff", b"[]"), (b"3", b"text"), (b'{"group":1}', b"[]")):
        strange = Marks()
        strange.read(mark(key, value))
        assert strange.unreadable == "events-dlt-redriven-0 offset 0 is no mark"


def test_discarded_letters_are_marked_like_those_that_were_sent_back_and_are_told_apart() -> None:
    marks = Marks()
    marks.apply(Action.REDRIVE, "one", 3, [(1, 2)])
    written = [
        *marks.apply(Action.DISCARD, "one", 3, [(4, 6)], gaps=[(2, 4)]),
        *marks.apply(Action.DISCARD, None, 3, [(9, 10)]),
    ]
    read = Marks()
    for key, value in written:
        read.read(mark(key, value))
    for each in (marks, read):
        assert each.of("one", 3) == [(1, 6)]
        assert each.discarded("one", 3) == [(4, 6)], "a gap holds letters of others"
        assert [offset for offset in range(12) if each.is_discarded(3, offset)] == [4, 5, 9]
        assert not each.is_discarded(2, 4)
    written = marks.apply(Action.RESTORE, "one", 3, [(5, 6)])
    for key, value in written:
        read.read(mark(key, value))
    for each in (marks, read):
        assert each.of("one", 3) == [(1, 5)]
        assert each.discarded("one", 3) == [(4, 5)]


def test_purged_letters_count_no_more_and_those_that_were_written_again_keep_their_marks() -> None:
    marks = Marks()
    marks.read(mark(b"3", b"[[0,1]]"))
    written = [
        *marks.apply(Action.REDRIVE, "one", 3, [(1, 2), (7, 8)]),
        *marks.apply(Action.DISCARD, "one", 3, [(2, 3), (4, 5), (8, 9)]),
        *marks.purge("one", 3, 5, {0: 20, 1: 21, 2: 23, 3: 24}),
    ]
    read = Marks()
    for key, value in written:
        read.read(mark(key, value))
    for each in (marks, read):
        assert [offset for offset in range(30) if not each.contains("one", 3, offset)][:2] == [5, 6]
        assert [offset for offset in range(5, 30) if each.contains("one", 3, offset)] == [7, 8, 20, 21, 23]
        assert each.discarded("one", 3) == [(8, 9), (23, 24)], "what is purged cannot be restored"
        assert (each.purged("one", 3), each.purged("two", 3), each.purged("one", 2)) == (5, 0, 0)
    marks.purge("one", 3, 4, {})
    assert marks.purged("one", 3) == 5, "a purge that was slow brings none back"


def test_an_earlier_version_takes_discarded_letters_for_sent_back_and_keeps_apart_what_was() -> None:
    class EarlierKey(msgspec.Struct, frozen=True):
        group: str | None
        partition: int

    marks = Marks()
    marks.apply(Action.REDRIVE, "one", 3, [(1, 2)])
    written = dict(marks.apply(Action.DISCARD, "one", 3, [(4, 6)]))
    seen = {msgspec.json.decode(key, type=EarlierKey): msgspec.json.decode(value) for key, value in written.items()}
    assert seen == {EarlierKey("one", 3): [[1, 2], [4, 6]], EarlierKey("", 3): [[4, 6]]}
    key = msgspec.json.encode(EarlierKey("one", 3))
    marks.read(mark(key, b"[[1,3],[4,6]]"))
    assert marks.discarded("one", 3) == [(4, 6)], "what an earlier version marks then leaves them discarded"
