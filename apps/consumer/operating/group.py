"""Show the whole group, from any instance: the owner and the progress of each partition."""

from collections.abc import Awaitable, Callable

import msgspec

from apps.chassis.kafka.consumer_groups import Member
from apps.consumer.operating.lag import GroupOffsets

Members = Callable[[], Awaitable[tuple[str, list[Member]]]]
"""Returns the state of the group and its members, as `Cluster.members` does."""


class GroupPartition(msgspec.Struct):
    """One partition: the committed offset (null: none yet), the high watermark, and the lag between them.

    `waiting_for_transaction` is the part of the lag behind another client's open transaction. `owner` is the
    `member_id` of its member, null while it has none.
    """

    partition: int
    committed: int | None
    end: int
    lag: int
    owner: str | None
    waiting_for_transaction: int


class Group(msgspec.Struct):
    """A consumer group; `state` is Kafka's word.

    `Stable`, `PreparingRebalance`, `CompletingRebalance` or `Empty`; with members of the newer protocol (KIP-848)
    `Assigning`, `Reconciling`, `Stable` or `Empty`. Where a share group (KIP-932) or one of another protocol (Kafka
    Connect) has the id, it says so: the members of such a group cannot be told. `lag` and `waiting_for_transaction`
    are the sums over all partitions, also of those without an owner; null before the topic was first seen.
    """

    group_id: str
    state: str
    members: list[Member]
    partitions: list[GroupPartition]
    lag: int | None
    waiting_for_transaction: int | None


async def look_at_group(group: str, members: Members, offsets: GroupOffsets) -> Group:
    """Return the group now; raises `KafkaError`, `OSError` or, after some seconds, `TimeoutError`."""
    state, present = await members()
    owners = {partition: member.member_id for member in present for partition in member.partitions}
    partitions = [
        GroupPartition(partition, one.committed, one.end, one.lag, owners.get(partition), one.waiting)
        for partition, one in (await offsets.read()).items()
    ]
    lag = sum(partition.lag for partition in partitions)
    waiting = sum(partition.waiting_for_transaction for partition in partitions)
    return Group(group, state, present, partitions, *((lag, waiting) if partitions else (None, None)))
