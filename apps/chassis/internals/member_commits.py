"""Commits that a consumer makes as the member that it is, or not at all: a PROTECTION.

aiokafka writes into a commit which member and generation the consumer is by then, and tries it again by itself. After a
lost session that is no member: Kafka takes such a commit while the group is empty, over offsets that a tool has reset
since. After a rejoin it is a new generation, which may not have these partitions. No upstream issue is known; Java's
client raises `CommitFailedException`. Reaches for the coordinator of a consumer, its generation and member id, and for
those of a request. Lost without it: offsets that were reset, or committed by another member.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError
from aiokafka.structs import OffsetAndMetadata

REACHES = (
    "aiokafka.consumer.consumer:AIOKafkaConsumer.start uses _coordinator",
    "aiokafka.consumer.group_coordinator:GroupCoordinator.__init__ uses generation, member_id",
    "aiokafka.protocol.commit:OffsetCommitRequest.__init__ uses _consumer_group_generation_id, _consumer_id",
)

_committing: ContextVar[tuple[int, str] | None] = ContextVar("committing", default=None)
"""The generation and the id of the member that commits."""


async def commit_as_member(consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
    """Commit offsets. Raises `CommitFailedError` unless the consumer is a member of its group, and still is on sending.

    Raises the errors of `AIOKafkaConsumer.commit` too.
    """
    coordinator = consumer._coordinator
    if not coordinator.member_id:
        raise CommitFailedError
    committing = _committing.set((coordinator.generation, coordinator.member_id))
    try:
        await consumer.commit(offsets)
    except _NoLongerMember:
        raise CommitFailedError from None
    finally:
        _committing.reset(committing)


class _NoLongerMember(Exception):
    """A commit would be sent as another member. It is no `KafkaError`: aiokafka would look for another coordinator."""


def refuse_commit_of_another_member(request: Any) -> None:  # noqa: ANN401 - aiokafka ships no types
    """Raise when the consumer is another member than when its commit began; other clients commit as they like."""
    if _committing.get() not in {None, (request._consumer_group_generation_id, request._consumer_id)}:
        raise _NoLongerMember
