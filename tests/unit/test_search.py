from collections.abc import Iterable, Mapping, Sequence
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import Stored

from apps.chassis.kafka.search import SEARCH_BYTES, Newest, Search, SearchLimits, Skip, Wanted, skip_nothing
from apps.consumer.redriving.marks import contains, last_outside, merged
from contracts.record import Record, latest_date, size_of

Topic = Mapping[int, Sequence[Stored]]
topics = st.dictionaries(
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 40), st.booleans()), max_size=30),
    max_size=4,
).map(lambda drawn: {partition: list(stored(partition, rows)) for partition, rows in drawn.items()})
"""Partitions with holes between their offsets, and timestamps that do not always grow."""


def stored(partition: int, rows: Iterable[tuple[int, int, bool]]) -> Iterable[Stored]:
    offset = 0
    for step, timestamp, is_wanted in rows:
        offset += step
        yield Stored(partition, offset, timestamp, key=b"wanted" if is_wanted else b"other", value=b"value")


def is_in_order(records: Sequence[Record]) -> bool:
    times = [record.timestamp for record in records]
    return times == sorted(times)


def is_wanted(record: Record) -> bool:
    return record.key == b"wanted"


def everything(_: Record) -> bool:
    return True


def end_of(topic: Topic) -> dict[int, int]:
    return {partition: max((r.offset for r in records), default=-1) + 1 for partition, records in topic.items()}


def run(
    topic: Topic, before: Mapping[int, int], wanted: Wanted, limit: int, skip: Skip = skip_nothing, /, **limits: int
) -> Newest:
    return result(Search(dict.fromkeys(before, 0), before, wanted, limit, SearchLimits(**limits), skip), topic)


def result(looking: Search, topic: Topic) -> Newest:
    while pieces := looking.pieces():
        read = (
            record
            for partition, (start, stop) in pieces.items()
            for record in topic[partition]
            if start <= record.offset < stop
        )
        if all(looking.take([record]) for record in read):
            for partition in pieces:
                looking.settle(partition)
    return looking.newest()


def pages(topic: Topic, wanted: Wanted, limit: int, skip: Skip = skip_nothing, /, **limits: int) -> list[Newest]:
    found = [run(topic, end_of(topic), wanted, limit, skip, **limits)]
    while (before := found[-1].before) is not None:
        assert len(found) < 500, "the search does not come to its end"
        found.append(run(topic, before, wanted, limit, skip, **limits))
    return found


def places(records: Iterable[Record]) -> list[tuple[int, int]]:
    return [(record.partition, record.offset) for record in records]


def assert_complete(found: Sequence[Record], topic: Topic, wanted: Wanted) -> None:
    """All that is wanted came once, and each partition in order."""
    assert sorted(places(found)) == sorted(places(r for records in topic.values() for r in records if wanted(r)))
    for partition in topic:
        offsets = [offset for number, offset in places(found) if number == partition]
        assert offsets == sorted(offsets, reverse=True)


@pytest.mark.slow
@given(topics, st.sampled_from([is_wanted, everything]), st.integers(1, 7))
def test_page_by_page_every_wanted_record_comes_once_and_the_newest_first(
    topic: Topic, wanted: Wanted, limit: int
) -> None:
    found = [record for page in pages(topic, wanted, limit) for record in page.records]
    assert_complete(found, topic, wanted)
    if all(is_in_order(records) for records in topic.values()):
        times = [record.timestamp for record in found]
        assert times == sorted(times, reverse=True)


@given(topics, st.integers(1, 3), st.integers(1, 5))
def test_however_little_is_read_at_a_time_nothing_is_passed_over_or_comes_twice(
    topic: Topic, piece: int, max_scanned: int
) -> None:
    limits = {"records": max_scanned, "min_piece_records": piece, "max_piece_records": piece}
    found = [record for page in pages(topic, is_wanted, 1, **limits) for record in page.records]
    assert_complete(found, topic, is_wanted)


@given(topics, st.integers(2, 40))
def test_however_large_records_are_nothing_is_passed_over_or_comes_twice(topic: Topic, max_bytes: int) -> None:
    found = [record for page in pages(topic, everything, 5, bytes=max_bytes) for record in page.records]
    assert_complete(found, topic, everything)


@given(topics, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=4), st.integers(1, 5))
def test_skipping_what_is_not_wanted_changes_nothing_of_what_is_found(
    topic: Topic, unwanted: list[tuple[int, int]], piece: int
) -> None:
    skipped = merged(unwanted)

    def is_left(record: Record) -> bool:
        return not contains(skipped, record.offset)

    limits = {"min_piece_records": piece, "max_piece_records": piece}
    skipping = pages(topic, is_left, 3, lambda _, offset: last_outside(skipped, offset), **limits)
    found = [record for page in skipping for record in page.records]
    assert_complete(found, topic, is_left)
    if all(is_in_order(records) for records in topic.values()):
        assert found == [record for page in pages(topic, is_left, 3, **limits) for record in page.records]


def test_what_is_skipped_is_not_read() -> None:
    topic = {0: [Stored(0, offset, timestamp=offset) for offset in range(50_000)]}
    skipped = [(100, 30_000), (30_010, 50_000)]

    def is_left(record: Record) -> bool:
        return not contains(skipped, record.offset)

    found = run(topic, end_of(topic), is_left, 20, lambda _, offset: last_outside(skipped, offset))
    assert [record.offset for record in found.records] == [*range(30_009, 29_999, -1), *range(99, 89, -1)]
    assert found.scanned < 1_000


@pytest.mark.slow
def test_a_search_in_vain_stops_after_so_many_records_and_says_how_far_it_came() -> None:
    topic = {0: [Stored(0, offset, timestamp=offset) for offset in range(150_000)]}
    found = run(topic, end_of(topic), is_wanted, 10)
    assert found.records == []
    assert found.before is not None
    assert 100_000 <= found.scanned < 110_000
    assert found.reached == found.before[0] == 150_000 - found.scanned


def test_what_is_held_of_large_records_is_bounded() -> None:
    topic = {number: [Stored(number, offset, value=bytes(2**20)) for offset in range(60)] for number in range(4)}
    found = run(topic, end_of(topic), everything, 1_000)
    assert sum(map(size_of, found.records)) <= SEARCH_BYTES + 4 * 2**20
    assert found.records
    assert found.before is not None


def test_of_far_larger_records_than_expected_not_a_whole_piece_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    topic = {number: [Stored(number, at, value=bytes(2**20)) for at in range(1_000)] for number in (0, 1)}
    looking = Search({0: 0, 1: 0}, end_of(topic), everything, 1_000)
    taken = Mock(wraps=looking.take)
    monkeypatch.setattr(looking, "take", taken)
    found = result(looking, topic)
    assert places(found.records)[0] == (0, 999)
    assert taken.call_count < 4 * SEARCH_BYTES / 2**20


def test_a_partition_that_hardly_gets_records_is_not_read_to_its_start() -> None:
    busy = [Stored(0, offset, timestamp=1_000_000 + offset) for offset in range(50_000)]
    quiet = [Stored(1, offset, timestamp=offset) for offset in range(50_000)]
    found = run({0: busy, 1: quiet}, {0: 50_000, 1: 50_000}, everything, 1_000)
    assert places(found.records) == [(0, offset) for offset in range(49_999, 48_999, -1)]
    assert found.scanned <= 4_000


def a_topic_dated(*partitions: Sequence[int]) -> Topic:
    return {
        number: [Stored(number, at, time) for at, time in enumerate(times)] for number, times in enumerate(partitions)
    }


def test_records_dated_ahead_hide_none_that_were_written_after_them() -> None:
    now, ahead, microseconds = latest_date() - 100_000, latest_date() + 50 * 60 * 1_000, 1_790_000_000_000_000
    later = [now + number for number in range(1, 31)]
    topic = a_topic_dated([now - 10, *[ahead] * 12], [now - 5, microseconds], later, [microseconds])
    newest = run(topic, end_of(topic), everything, 30)
    assert places(newest.records) == [(2, offset) for offset in range(29, -1, -1)]
    assert_complete([record for page in pages(topic, everything, 7) for record in page.records], topic, everything)
    rest = run(topic, end_of(topic), everything, 100).records[30:]
    assert places(rest) == [(1, 1), (1, 0), *((0, offset) for offset in range(12, -1, -1)), (3, 0)]


def test_a_record_dated_ahead_stays_between_its_neighbours() -> None:
    now = latest_date() - 100_000
    topic = a_topic_dated([now, 2**60, now + 20], [now - 1, now + 10, now + 30])
    assert places(run(topic, end_of(topic), everything, 9).records) == [(1, 2), (0, 2), (1, 1), (0, 1), (0, 0), (1, 0)]


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5), st.integers(1, 4))
def test_wherever_records_are_dated_ahead_each_comes_once_and_a_search_comes_to_its_end(
    ahead: list[bool], piece: int, limit: int
) -> None:
    topic = a_topic_dated([2**60 if one else 1_000 for one in ahead], [1_000, 2**60, 2_000])
    limits = {"records": piece, "min_piece_records": piece, "max_piece_records": piece}
    found = [record for page in pages(topic, everything, limit, **limits) for record in page.records]
    assert_complete(found, topic, everything)
