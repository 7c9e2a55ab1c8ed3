import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import Stored

from apps.consumer.browsing.window import PIECE_RECORDS, Cursor, StaleCursor, Window
from contracts.record import HEADER_OVERHEAD_BYTES, RECORD_OVERHEAD_BYTES, Record, latest_date, memory_of, place_of

PLACES = st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 9))
MICROSECONDS = 1_790_000_000_000_000


def at(timestamp: int, partition: int = 0, offset: int | None = None, **fields: bytes | None) -> Stored:
    record = Stored(partition, timestamp if offset is None else offset, timestamp)
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def window_of(*records: Record, size: int = 100, max_bytes: int = 1_000_000) -> Window:
    window = Window(size, max_bytes)
    window.extend(records)
    return window


def newest(window: Window, limit: int = 100) -> list[int]:
    return [record.timestamp for record in window.newest(limit)[0]]


def test_the_records_consumed_last_come_in_the_order_of_their_consumption() -> None:
    window = window_of(*map(at, [1, 2, 3, 4, 5]))
    assert newest(window, 3) == [3, 4, 5]
    assert newest(window, 100) == [1, 2, 3, 4, 5]


def test_no_timestamp_hides_what_was_consumed_later() -> None:
    ahead, yesterday = latest_date() + 50 * 60 * 1_000, latest_date() - 24 * 60 * 60 * 1_000
    window = window_of(*(at(ahead, 0, offset) for offset in range(12)), at(MICROSECONDS, 1, 0))
    window.extend([at(latest_date(), 2, offset) for offset in range(30)])
    window.extend([at(yesterday, 3, offset) for offset in range(20)])
    places = [place_of(record) for record in window.newest(25)[0]]
    assert places == [*((2, offset) for offset in range(25, 30)), *((3, offset) for offset in range(20))]
    assert len(window.newest(100)[0]) == 63


def test_an_empty_window_has_no_records_and_nothing_before_them() -> None:
    assert Window(10).newest(10) == ([], None)


def test_the_window_keeps_the_last_records_up_to_its_size() -> None:
    window = window_of(*map(at, range(7)), size=5)
    assert newest(window) == [2, 3, 4, 5, 6]
    window.extend([at(7)])
    assert newest(window) == [3, 4, 5, 6, 7]
    assert len(window) == 5


@pytest.mark.parametrize("part", ["key", "value", "headers"])
def test_the_window_is_bounded_in_bytes_of_any_part_however_few_the_records_are(part: str) -> None:
    def taking(timestamp: int, size: int) -> Stored:
        overhead = RECORD_OVERHEAD_BYTES + (HEADER_OVERHEAD_BYTES if part == "headers" else 0)
        record, content = Stored(0, timestamp, timestamp, None, None), b"x" * (size - overhead)
        setattr(record, part, [("", content)] if part == "headers" else content)
        return record

    window = window_of(*(taking(i, 600) for i in range(5)), max_bytes=1_400)
    assert newest(window) == [3, 4]
    window.extend([taking(5, 801)])
    assert newest(window) == [5]
    window.extend([taking(6, 599)])
    assert newest(window) == [5, 6]


def test_the_window_is_bounded_in_bytes_however_small_the_records_are() -> None:
    window = window_of(*map(at, range(100)), max_bytes=10 * RECORD_OVERHEAD_BYTES)
    assert 5 <= len(window) < 10


def test_bytes_that_were_dropped_give_their_room_back() -> None:
    window = Window(3, max_bytes=3 * 500)
    for i in range(1_000):
        window.extend([at(i, value=b"x" * 200)])
    assert newest(window) == [997, 998, 999]


def test_only_records_of_the_key_or_partition_asked_for_come() -> None:
    window = window_of(at(1, 0, key=b"a"), at(2, 1, key=b"b"), at(3, 1, key=b"a"), at(4, 0, key=None))
    assert [record.timestamp for record in window.newest(9, key=b"a")[0]] == [1, 3]
    assert [record.timestamp for record in window.newest(9, partition=0)[0]] == [1, 4]
    assert [record.timestamp for record in window.newest(9, key=b"a", partition=1)[0]] == [3]
    assert window.newest(9, key=b"c") == ([], None)


def test_a_key_is_found_however_often_it_was_looked_for_before_its_record_came() -> None:
    window = window_of(at(1, key=b"a"))
    for timestamp, key in ((2, b"b"), (3, b"c")):
        assert window.newest(9, key=key) == ([], None)
        window.extend([at(timestamp, key=key)])
        assert [record.timestamp for record in window.newest(9, key=key)[0]] == [timestamp]


def test_a_limit_counts_what_the_filter_lets_through() -> None:
    window = window_of(*(at(i, i % 2) for i in range(10)))
    records, earlier = window.newest(2, partition=1)
    assert [record.timestamp for record in records] == [7, 9]
    records, earlier = window.newest(2, partition=1, before=earlier)
    assert [record.timestamp for record in records] == [3, 5]
    assert earlier is not None
    assert window.newest(2, partition=1, before=earlier) == ([at(1, 1)], None)


@given(st.lists(PLACES, max_size=60), st.lists(PLACES, max_size=3), st.integers(1, 7))
def test_paging_back_shows_every_record_exactly_once(
    places: list[tuple[int, int, int]], meanwhile: list[tuple[int, int, int]], limit: int
) -> None:
    """Also while others are consumed, and some of them not for the first time."""
    window = window_of(*(at(*place) for place in places), size=1_000)
    pages: list[list[Record]] = []
    before: Cursor | None = None
    while True:
        page, before = window.newest(limit, before=before)
        pages.insert(0, page)
        window.extend([at(*place) for place in meanwhile])
        assert len(pages) <= len(places) + 1
        assert before is None or len(page) == limit
        if before is None:
            break
        before = Cursor.parse(str(before))
    shown = [place_of(record) for page in pages for record in page]
    last_consumed = {(partition, offset): number for number, (_, partition, offset) in enumerate(places)}
    assert shown == sorted(last_consumed, key=lambda place: last_consumed[place])


def test_a_record_that_was_consumed_twice_stands_there_once() -> None:
    window = window_of(*map(at, [1, 2, 3]))
    window.extend([at(2), at(3), at(4)])
    assert newest(window) == [1, 2, 3, 4]
    assert newest(window, 3) == [2, 3, 4]
    window.extend([at(1)])
    assert newest(window) == [2, 3, 4, 1]


def test_a_cursor_of_another_instance_is_refused() -> None:
    _, cursor = window_of(*map(at, range(6))).newest(2)
    with pytest.raises(StaleCursor, match="begin again"):
        Window(10).newest(2, before=cursor and cursor._replace(window=1))


def test_a_refill_puts_records_before_all_that_were_consumed_since_the_start() -> None:
    window = window_of(at(5), at(6), at(5, 1))
    window.refill([at(1), at(4, 1), at(5), at(7, 1)])
    window.refill([at(2), at(3, 1)])
    assert [(record.timestamp, record.partition) for record in window.newest(9)[0]] == [
        (1, 0),
        (2, 0),
        (3, 1),
        (4, 1),
        (7, 1),
        (5, 0),
        (6, 0),
        (5, 1),
    ]
    assert len(window) == 8


def test_a_refill_merges_partitions_by_timestamp_and_no_absurd_one_puts_a_record_out_of_its_place() -> None:
    window = Window(100)
    window.refill(
        [
            at(10, 0, 0),
            at(MICROSECONDS, 0, 1),
            at(30, 0, 2),
            at(1, 0, 3),
            *(at(20 + n, 1, n) for n in range(3)),
            at(40, 1, 3),
        ]
    )
    places = [place_of(record) for record in window.newest(100)[0]]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (0, 2), (0, 3), (1, 3)]


def test_paging_goes_on_over_a_refill_that_came_in_between() -> None:
    window = window_of(*(at(n) for n in range(10, 14)))
    page, before = window.newest(3)
    window.refill(map(at, range(3)))
    rest, none = window.newest(10, before=before)
    assert [record.timestamp for record in (*rest, *page)] == [0, 1, 2, 10, 11, 12, 13]
    assert none is None


def test_a_refill_of_a_full_window_drops_the_oldest_records() -> None:
    window = window_of(at(5), at(6), size=3)
    window.refill(map(at, range(5)))
    assert newest(window) == [4, 5, 6]


def test_a_refill_leaves_the_bound_in_bytes_as_it_was() -> None:
    window = window_of(*(at(i, value=b"x" * 10) for i in range(5, 10)), max_bytes=10 * 270)
    for _ in range(3):
        window.refill([at(i, value=b"x" * 10) for i in range(5)])
    assert newest(window) == list(range(10))
    window.extend([at(10, value=b"x" * 10)])
    assert newest(window)[-5:] == [6, 7, 8, 9, 10]
    assert 0 not in newest(window)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**58), st.integers(0, 2**58))
def test_a_cursor_is_read_as_it_was_shown(window: int, top: int, before: int) -> None:
    assert Cursor.parse(str(Cursor(window, top, before))) == Cursor(window, top, before)


@pytest.mark.parametrize(
    "text", ["", "1", "1-2", "1-2-3-4", "1-2-x", "1--2-3", " 1-2-3", "1-2-3\n", "1.0-2-3", "9" * 99 + "-1-1"]
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        Cursor.parse(text)


def test_a_refused_cursor_is_not_quoted_at_length() -> None:
    with pytest.raises(ValueError, match="not a cursor") as refused:
        Cursor.parse("x" * 100_000)
    assert len(str(refused.value)) < 200


@given(st.text() | st.from_regex(r"-?[0-9]{1,20}-[0-9]{1,11}-[0-9]{1,20}"))
def test_any_text_is_a_cursor_that_pages_or_is_refused(text: str) -> None:
    try:
        cursor = Cursor.parse(text)
    except ValueError:
        return
    assert Cursor.parse(str(cursor)) == cursor
    window = window_of(at(1), at(2))
    assert window.newest(10, before=cursor._replace(window=window._name))[1] is None


def test_nothing_is_kept_of_a_record_whose_key_was_deleted_later_but_its_place_and_key() -> None:
    window = Window(1_000, deletes=True)
    window.extend([at(1, key=b"ada", value=b"one"), at(2, key=b"bob", value=b"two")])
    window.extend([at(n, key=b"bob", value=b"x") for n in range(10, 10 + PIECE_RECORDS)])
    handled = at(600, key=b"ada", value=b"three")
    window.extend([handled, at(601, key=b"ada", value=None), at(602, key=b"ada", value=b"new")])
    found, _ = window.newest(9, key=b"ada")
    assert [(record.offset, record.value) for record in found] == [(1, None), (600, None), (601, None), (602, b"new")]
    assert window.newest(1_000, key=b"bob")[0][0].value == b"two"
    assert handled.value == b"three", "the handler may still have it"
    assert window.bytes_of(len(window)) == memory_of([*window])
    assert sum(len(record.value or b"") for record in window) == len(b"two" + b"new") + PIECE_RECORDS


def test_a_refilled_window_keeps_nothing_of_deleted_keys_either() -> None:
    window = Window(100, deletes=True)
    window.extend([at(5, key=b"ada", value=b"again")])
    window.refill([at(1, key=b"ada", value=b"one"), at(2, key=b"bob", value=b"two"), at(3, key=b"ada", value=None)])
    assert [record.value for record in window.newest(9)[0]] == [None, b"two", None, b"again"]


@pytest.mark.parametrize("after", range(8, 14))
def test_a_refill_that_ends_late_shows_nobody_whose_deletion_was_pushed_out_by_bytes_meanwhile(after: int) -> None:
    window = Window(100, max_bytes=10 * (1_000 + RECORD_OVERHEAD_BYTES), deletes=True)
    window.refill([at(2, key=b"bob", value=b"two")])
    window.extend([at(9, key=b"ada", value=None)])
    for number in range(10, 10 + after):
        window.extend([at(number, key=b"other", value=b"x" * 1_000)])
    window.refill([at(1, key=b"ada", value=b"one")])
    assert [record.value for record in window.newest(100, key=b"ada")[0] if record.value] == []


def test_a_deletion_in_another_partition_counts_for_older_records_as_after_partitions_were_added() -> None:
    window = Window(100, deletes=True)
    window.extend([at(1, 1, key=b"ada", value=b"one"), at(3, 1, 0, key=b"ada", value=b"newer")])
    window.extend([at(2, 2, 0, key=b"ada", value=None)])
    assert [record.value for record in window.newest(9)[0]] == [None, b"newer", None]


def test_a_record_without_a_value_deletes_nothing_where_the_stream_takes_no_deletions() -> None:
    window = window_of(at(1, key=b"ada", value=b"one"), at(2, key=b"ada", value=None))
    assert [record.value for record in window.newest(9)[0]] == [b"one", None]


def test_a_deletion_of_the_empty_key_deletes_no_record_without_a_key() -> None:
    window = Window(100, deletes=True)
    window.extend([at(1, key=None, value=b"one"), at(2, key=b"", value=b"two"), at(3, key=b"", value=None)])
    window.extend([at(4, key=None, value=None)])
    assert [record.value for record in window.newest(9)[0]] == [b"one", None, None, None]


def test_an_invalidated_window_begins_anew_where_records_can_be_deleted_and_its_cursors_end() -> None:
    window = Window(100, deletes=True)
    window.extend([at(1), at(2)])
    _, cursor = window.newest(1)
    window.invalidate()
    assert (newest(window), len(window), window.bytes_of(2)) == ([], 0, 0)
    window.refill([at(2)])
    window.refill([at(1), at(3)])
    window.extend([at(4)])
    assert newest(window) == [1, 2, 3, 4]
    with pytest.raises(StaleCursor):
        window.newest(1, before=cursor)


def test_an_invalidated_window_stays_as_it_is_where_no_record_can_be_deleted() -> None:
    window = window_of(at(1), at(2))
    _, cursor = window.newest(1)
    window.invalidate()
    assert [record.timestamp for record in window.newest(1, before=cursor)[0]] == [1]
