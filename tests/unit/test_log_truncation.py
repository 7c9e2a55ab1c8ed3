from typing import cast

import pytest
from samples import Stored

from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.log_truncation import LastRead
from tests.fakes import Ranges, StoredTopic

pytestmark = pytest.mark.anyio


class Topic(StoredTopic):
    """A topic of one partition, whose records before `first` were deleted."""

    first = 0

    async def timestamps(self, ranges: Ranges) -> dict[int, int]:
        assert ranges, "without a record there is nothing to ask for"
        assert all(self.first <= start < stop <= self.end(one) for one, (start, stop) in ranges.items())
        return await super().timestamps(ranges)

    async def lost(self, read: LastRead) -> set[int]:
        return await read.lost({0: self.first}, {0: self.end(0)})


def read_topic(length: int) -> tuple[Topic, LastRead]:
    topic = Topic({0: [Stored(0, offset, timestamp=offset) for offset in range(length)]})
    read = LastRead(cast(LogReader, topic))
    read.add(topic.records[0])
    return topic, read


async def test_a_partition_that_only_grew_has_lost_nothing() -> None:
    topic, read = read_topic(3)
    assert await topic.lost(read) == set()
    topic.records[0].append(Stored(0, 3))
    read.add(topic.records[0][:1])
    assert (await topic.lost(read), read.end(0), read.end(1)) == (set(), 3, 0)


@pytest.mark.parametrize("length", [0, 2, 3, 9])
async def test_a_partition_that_has_other_records_than_were_read_is_noticed_once(length: int) -> None:
    topic, read = read_topic(3)
    topic.records[0][:] = [Stored(0, offset, timestamp=100) for offset in range(length)]
    assert await topic.lost(read) == {0}
    assert await topic.lost(read) == set()
    read.add(topic.records[0])
    assert (await topic.lost(read), read.end(0)) == (set(), length)


async def test_what_kafka_has_deleted_or_compacted_is_not_lost() -> None:
    topic, read = read_topic(3)
    topic.records[0][2:] = [Stored(0, 5)]
    assert await topic.lost(read) == set()
    topic.first = 4
    assert await topic.lost(read) == set()


async def test_a_partition_that_is_gone_is_lost() -> None:
    _, read = read_topic(3)
    assert await read.lost({}, {}) == {0}
