"""An instance without partitions is all well only while other members of its group hold them."""

import asyncio
from typing import Any, cast

import pytest
from aiokafka.errors import GroupCoordinatorNotAvailableError
from samples import LONG

from apps.chassis.kafka.consumer_groups import Member
from apps.consumer.operating.missing_partitions import MissingPartitions
from tests.fakes import GroupMember

pytestmark = pytest.mark.anyio

EMPTY, HOLDING = Member("a", "consumer", "host", []), Member("b", "consumer", "host", [0])


def asking(state: str, *members: Member, error: Exception | None = None) -> MissingPartitions:
    async def ask() -> tuple[str, tuple[Member, ...]]:
        if error:
            raise error
        return state, members

    return MissingPartitions(ask)


@pytest.mark.parametrize(
    ("missing", "is_missing"),
    [
        (asking("Stable", EMPTY, EMPTY), True),
        (asking("Stable", EMPTY, HOLDING), False),
        (asking("PreparingRebalance", EMPTY), False),
        (asking("", error=GroupCoordinatorNotAvailableError()), False),
    ],
)
async def test_no_partitions_are_trouble_only_when_no_member_holds_any(
    missing: MissingPartitions, *, is_missing: bool
) -> None:
    assert (await missing.reason(cast("Any", GroupMember())) is not None) == is_missing
    assert await missing.reason(cast("Any", GroupMember({0: 5}))) is None
    assert await missing.reason(None) is None


async def test_a_client_whose_group_holds_no_partitions_looks_at_the_topic_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It looked only every 10 s: the status was `running` with no lag meanwhile."""
    looked = asyncio.Event()

    class Client:
        def force_metadata_update(self) -> None:
            looked.set()

    member = GroupMember()
    monkeypatch.setattr(member, "_client", Client(), raising=False)
    watching = asyncio.create_task(asking("Stable", EMPTY).watch(lambda: cast("Any", member), every_s=0.001))
    async with asyncio.timeout(LONG):
        await looked.wait()
    watching.cancel()
