import asyncio

import pytest
from samples import everything_else_has_run, until

from apps.consumer.consuming.abandonment import Abandonment

pytestmark = pytest.mark.anyio


async def test_batches_are_abandoned_until_the_last_reason_is_withdrawn() -> None:
    abandonment = Abandonment(lambda: None)
    abandonment.ask("rebalance")
    abandonment.ask("seek")
    abandonment.withdraw("seek")
    assert abandonment.is_asked, "the rebalance still needs the partitions"
    assert await abandonment.wait()
    abandonment.withdraw("rebalance", "stop")
    assert not abandonment.is_asked
    assert not await abandonment.wait(0)


async def test_a_call_is_cancelled_when_the_time_of_a_reason_is_up_and_never_once_that_is_withdrawn() -> None:
    cancelled: list[bool] = []
    abandonment = Abandonment(lambda: cancelled.append(True))
    abandonment.ask("stop", cancel_after_s=0)
    abandonment.withdraw("stop")
    await everything_else_has_run()
    assert not cancelled
    abandonment.ask("stop", cancel_after_s=0)
    await until(lambda: cancelled)


async def test_a_backoff_ends_without_a_reason_to_abandon_batches() -> None:
    abandonment = Abandonment(lambda: None)
    waiting = asyncio.create_task(abandonment.wait())
    await everything_else_has_run()
    abandonment.end_backoff()
    assert await waiting
    assert not abandonment.is_asked
