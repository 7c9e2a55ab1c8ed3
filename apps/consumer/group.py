"""The whole group, whichever copy of the service is asked: who holds what, and how far it is."""

from collections.abc import Awaitable, Callable

import msgspec

from apps.chassis.cluster import Committed, Member
from apps.consumer.log_reader import LogReader

Members = Callable[[], Awaitable[tuple[str, list[Member]]]]
"""Tells the state of the group and its members, as `Cluster.members` does."""


class GroupPartition(msgspec.Struct):
    """One partition: the offset committed (null: none yet), the one behind its last record, and the lag between them.

    `owner` is the `member_id` of the member that has it, null while nobody has.
    """

    partition: int
    committed: int | None
    end: int
    lag: int
    owner: str | None


class Group(msgspec.Struct):
    """A consumer group; `state` is Kafka's word: `Stable`, `PreparingRebalance`, `CompletingRebalance`, `Empty`."""

    group_id: str
    state: str
    members: list[Member]
    partitions: list[GroupPartition]


async def look_at_group(group: str, members: Members, committed: Committed, reader: LogReader) -> Group:
    """Return the group now; raises `KafkaError`, `OSError` or, after some seconds, `TimeoutError`."""
    state, present = await members()
    owners = {partition: member.member_id for member in present for partition in member.partitions}
    done = await committed()
    first, end = await reader.offsets(len(done))
    partitions = [
        GroupPartition(
            partition,
            offset,
            end[partition],
            max(0, end[partition] - (first[partition] if offset is None else offset)),
            owners.get(partition),
        )
        for partition, offset in sorted(done.items())
    ]
    return Group(group, state, present, partitions)
