import time
from typing import Any, cast

import pytest
from samples import Stored

from apps.chassis.kafka.log_reader import LogReader
from apps.consumer.operating.group import Group, look_at_group
from apps.consumer.operating.lag import GroupOffsets, Lag, LagMeter
from tests.fakes import GroupMember, StoredTopic

pytestmark = pytest.mark.anyio

END = 10
"""The high watermark of each partition."""
Times = dict[int, dict[int, int]]
"""The timestamp (ms) of the records of each partition that can be read, by offset."""


def topic(times: Times, end: int = END) -> StoredTopic:
    """Return partitions with ten offsets each, of which those in `times` hold a record that can be read."""
    records = {
        partition: [Stored(partition, offset, time) for offset, time in sorted(of_partition.items())]
        for partition, of_partition in times.items()
    }
    return StoredTopic(records, end)


def offsets_of(committed: dict[int, int | None], times: Times, *, stable: int = END) -> GroupOffsets:
    async def read() -> dict[int, int | None]:
        return committed

    return GroupOffsets(cast("LogReader", topic(times, stable)), cast("LogReader", topic(times)), read)


async def lag(
    committed: dict[int, int | None], times: Times, *, stable: int = END, client: GroupMember | None = None
) -> Lag:
    return await LagMeter(offsets_of(committed, times, stable=stable)).measure(cast("Any", client))


def seconds_ago(seconds: int) -> int:
    return int(time.time() - seconds) * 1_000


async def test_the_lag_in_seconds_is_the_age_of_the_oldest_record_not_consumed_yet() -> None:
    found = await lag({0: 10, 1: 4, 2: None}, {1: {4: seconds_ago(60)}, 2: {0: seconds_ago(0)}})
    assert found.records == 6 + 10
    assert found.ages[0] == 0
    assert found.seconds == found.ages[1] >= 60


async def test_a_record_without_a_time_leaves_the_lag_in_seconds_open() -> None:
    found = await lag({0: 10, 1: 4}, {1: {4: -1}})
    assert (found.records, found.seconds, found.ages) == (6, None, {0: 0.0})


async def test_of_a_topic_that_was_not_seen_yet_there_is_no_lag_to_tell() -> None:
    found = await lag({}, {})
    assert (found.records, found.seconds) == (None, None)


async def test_a_batch_that_was_fetched_and_not_committed_is_lag() -> None:
    client = GroupMember({0: END})
    found = await lag({0: 3, 1: None}, {0: {3: seconds_ago(60)}}, client=client)
    (partition,) = found.partitions
    assert (partition.position, partition.committed, partition.end, partition.lag) == (END, 3, END, 7)
    assert found.records == 7
    assert (found.seconds or 0) >= 60


async def test_behind_an_aborted_transaction_no_record_waits_though_its_offsets_are_lag() -> None:
    found = await lag({0: 4}, {})
    assert (found.records, found.waiting_for_transaction, found.seconds) == (6, 0, 0.0)


async def test_what_stands_behind_an_open_transaction_is_lag_and_named_as_such() -> None:
    times = {0: {6: seconds_ago(60)}}
    found = await lag({0: 4, 1: 10}, times, stable=6)
    assert [partition.lag for partition in found.partitions] == [6, 0]
    assert [partition.waiting_for_transaction for partition in found.partitions] == [4, 0]
    assert (found.records, found.waiting_for_transaction) == (6, 4)
    assert (found.seconds or 0) >= 60


async def test_the_lag_of_a_partition_that_was_added_just_now_is_not_known_rather_than_none() -> None:
    found = await lag({0: 10}, {}, client=GroupMember({0: 10, 1: 0}))
    assert [partition.lag for partition in found.partitions] == [0, None]
    assert (found.records, found.waiting_for_transaction, found.seconds) == (None, None, None)


async def test_a_member_without_partitions_has_no_lag() -> None:
    found = await lag({0: 4}, {}, client=GroupMember())
    assert (found.partitions, found.records, found.seconds) == ([], 0, 0.0)


async def test_the_group_is_behind_a_record_that_it_has_not_committed_and_not_where_that_is_unknown() -> None:
    found = await lag({0: 4, 1: None}, {})
    assert [found.is_behind(0, offset) for offset in (3, 4)] == [False, True]
    assert found.is_behind(1, 0)
    unknown = await lag({0: 4}, {}, client=GroupMember({1: 0}))
    assert not unknown.is_behind(0, 9)
    assert not unknown.is_behind(1, 9)


async def members() -> tuple[str, list[Any]]:
    return "Empty", []


async def test_of_a_topic_that_was_not_seen_yet_the_group_has_no_lag_to_tell() -> None:
    group = await look_at_group("a group", members, offsets_of({}, {}))
    assert (group.partitions, group.lag, group.waiting_for_transaction) == ([], None, None)


async def test_group_and_status_speak_of_the_same_lag() -> None:
    committed = {0: 4, 1: None, 2: 10}
    group: Group = await look_at_group("a group", members, offsets_of(committed, {}, stable=6))
    found = await lag(committed, {}, stable=6)
    assert [(p.partition, p.lag, p.waiting_for_transaction) for p in group.partitions] == [
        (p.partition, p.lag, p.waiting_for_transaction) for p in found.partitions
    ]
    assert (group.lag, group.waiting_for_transaction) == (found.records, found.waiting_for_transaction) == (16, 8)
