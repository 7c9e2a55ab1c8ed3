"""A commit is sent as the member that began it, or not at all."""

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import CommitFailedError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.structs import OffsetAndMetadata

from apps.chassis.internals.kafka_client import WatchedClient
from apps.chassis.internals.member_commits import commit_as_member

pytestmark = pytest.mark.anyio

FIVE = {TopicPartition("events", 0): OffsetAndMetadata(5, "")}


class Member:
    """A consumer that commits as aiokafka's does: as the member that it is by then, and again after an error.

    It is another one (`becomes`) from an attempt on.
    """

    def __init__(self, becomes: tuple[int, str] = (7, "member"), attempt: int = 0) -> None:
        self._coordinator = SimpleNamespace(generation=7, member_id="member")
        self._becomes, self._attempt = becomes, attempt
        self._client = WatchedClient(bootstrap_servers="127.0.0.1:1")

    async def commit(self, _: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        for attempt in range(2):
            if attempt == self._attempt:
                self._coordinator.generation, self._coordinator.member_id = self._becomes
            await asyncio.shield(self._commit())

    async def _commit(self) -> None:
        own = self._coordinator
        await self._client.send(1, OffsetCommitRequest("group", own.generation, own.member_id, -1, []))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The member ids of the commits that were sent."""
    members: list[str] = []

    async def send(_: object, __: int, request: OffsetCommitRequest, **___: object) -> Any:  # noqa: ANN401 - an answer
        members.append(request._consumer_id)
        await asyncio.sleep(0)
        return SimpleNamespace()

    monkeypatch.setattr(AIOKafkaClient, "send", send)
    return members


async def test_a_member_commits_and_a_client_outside_of_groups_does_too(sent: list[str]) -> None:
    await commit_as_member(cast("Any", Member()), FIVE)
    await Member((-1, "")).commit(FIVE)
    assert sent == ["member", "member", "", ""]


@pytest.mark.parametrize("becomes", [(-1, ""), (8, "member"), (8, "another")])
@pytest.mark.parametrize("attempt", [0, 1])
async def test_a_commit_is_not_sent_as_another_member_than_the_one_that_began_it(
    sent: list[str], attempt: int, becomes: tuple[int, str]
) -> None:
    with pytest.raises(CommitFailedError):
        await commit_as_member(cast("Any", Member(becomes, attempt)), FIVE)
    assert sent == ["member"] * attempt
