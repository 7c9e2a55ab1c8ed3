"""The rate and the lag of the last hour, as the live page draws them."""

import asyncio
from itertools import count

import pytest

from apps.consumer.operating.history import Counts, HistoryKeeper
from apps.consumer.operating.rebalances import Rebalances

pytestmark = pytest.mark.anyio


async def history_of(lags: list[int | None], kept: int = 100) -> HistoryKeeper:
    """Keep a history until all lags were measured; 7 records are consumed at each step."""
    consumed, left, measured = count(0, 7), iter(lags), asyncio.Event()

    async def lag() -> int | None:
        try:
            return next(left)
        except StopIteration:
            measured.set()
            return await asyncio.Future()

    keeper = HistoryKeeper(lambda: Counts(next(consumed), 0), lag, step_s=0.001, kept=kept)
    keeping = asyncio.create_task(keeper.keep())
    await measured.wait()
    keeping.cancel()
    return keeper


async def test_each_point_has_the_rate_since_the_one_before_and_the_lag() -> None:
    history = (await history_of([12, None, 0])).history
    assert [point.lag for point in history.points] == [12, None, 0]
    assert all(point.consumed > 0 for point in history.points)
    assert [point.dead_lettered for point in history.points] == [0, 0, 0]
    assert [point.at for point in history.points] == sorted(point.at for point in history.points)


async def test_the_oldest_points_make_room_for_new_ones() -> None:
    assert [point.lag for point in (await history_of([*range(10)], kept=3)).history.points] == [7, 8, 9]


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ([0, 1, 2], [0], "another member joined and took partitions 1, 2"),
        ([0], [0, 1], "another member left, or the topic grew: partition 1 came here"),
        ([0, 1], [1, 2], "the group distributed its partitions again"),
        ([0, 1], [0, 1], "another member joined or left; this instance kept its partitions"),
    ],
)
def test_why_a_rebalance_happened_follows_from_the_partitions(before: list[int], after: list[int], reason: str) -> None:
    rebalances = Rebalances()
    rebalances.joins()
    rebalances.assigned(before)
    assert rebalances.last is not None
    assert rebalances.last.reason == "this instance joined the group"
    rebalances.assigned(after)
    assert (rebalances.last.reason, rebalances.last.partitions) == (reason, after)


def test_an_instance_that_joins_again_says_why() -> None:
    rebalances = Rebalances()
    rebalances.joins()
    rebalances.assigned([0], "the consume loop hangs")
    assert rebalances.last is not None
    assert rebalances.last.reason == "this instance joined the group again: the consume loop hangs"


def test_a_member_that_kafka_had_counted_as_gone_blames_no_other_member() -> None:
    rebalances = Rebalances()
    rebalances.joins()
    rebalances.assigned([0], member="consumer-1")
    rebalances.assigned([0], member="consumer-1")
    assert rebalances.last is not None
    assert rebalances.last.reason == "another member joined or left; this instance kept its partitions"
    rebalances.assigned([0], member="consumer-2")
    assert rebalances.last.reason == "this instance joined the group again: for Kafka it had been gone"
