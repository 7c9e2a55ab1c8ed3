import time
from typing import cast

import pytest

from apps.consumer.lag import Lag, LagMeter
from apps.consumer.log_reader import LogReader

pytestmark = pytest.mark.anyio


class Topic:
    """Partitions with ten records each; `oldest` is the timestamp (ms) of the next one to consume in each."""

    def __init__(self, oldest: dict[int, int]) -> None:
        self.oldest = oldest

    async def offsets(self, partitions: int) -> tuple[dict[int, int], dict[int, int]]:
        return dict.fromkeys(range(partitions), 0), dict.fromkeys(range(partitions), 10)

    async def timestamps(self, offsets: dict[int, int]) -> dict[int, int]:
        return {partition: self.oldest[partition] for partition in offsets}


async def lag(committed: dict[int, int | None], oldest: dict[int, int]) -> Lag:
    async def told() -> dict[int, int | None]:
        return committed

    return await LagMeter(cast(LogReader, Topic(oldest)), told).measure(None)


async def test_the_lag_in_seconds_is_the_age_of_the_oldest_record_not_consumed_yet() -> None:
    found = await lag({0: 10, 1: 4, 2: None}, {1: int(time.time() * 1_000) - 60_000, 2: int(time.time() * 1_000)})
    assert found.records == 6 + 10
    assert found.ages[0] == 0
    assert found.seconds == found.ages[1] >= 60


async def test_a_record_without_a_time_leaves_the_lag_in_seconds_open() -> None:
    found = await lag({0: 10, 1: 4}, {1: -1})
    assert (found.records, found.seconds, found.ages) == (6, None, {0: 0.0})


async def test_of_a_topic_that_was_not_seen_yet_there_is_no_lag_to_tell() -> None:
    found = await lag({}, {})
    assert (found.records, found.seconds) == (None, None)
