"""Ask the coordinator of a consumer group for members, committed offsets and the permission to join."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, for_code
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request
from aiokafka.structs import OffsetAndMetadata

from apps.chassis.internals.client_parts import client_of_admin
from apps.chassis.internals.group_description import GROUP_ID_NOT_FOUND, describe_group, find_type
from apps.chassis.kafka.topic_metadata import may

CONSUMERS = "consumer"
"""The protocol type of a group of consumers; Kafka Connect and schema registries have others."""
EMPTY = "Empty"
"""The state of a group without members."""
DEAD = "Dead"
"""The state that DescribeGroups reports of a group that does not exist, or that uses another protocol."""
PERMISSION_TIMEOUT_S = 1.0
"""Seconds for the coordinator to say whether the client may join the group."""

Committed = Callable[[], Awaitable[dict[int, int | None]]]
"""Return the committed offset of a group in each partition of a topic, None for a partition without one."""


class GroupQuestion(DescribeGroupsRequest_v3):  # type: ignore[misc]  # aiokafka ships no types
    """DescribeGroups, version 3. aiokafka's own reads the answer as version 2, which lacks authorized operations."""

    RESPONSE_TYPE = DescribeGroupsResponse_v3


class AskForGroup(Request[GroupQuestion]):  # type: ignore[misc]  # as above
    """A request for the members of a group and, as bits of `authorized_operations`, the client's permissions."""

    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, kind: type[GroupQuestion]) -> GroupQuestion:
        """Return the request in this version."""
        return kind([self._group], True)  # noqa: FBT003 - fields of the protocol


class Member(msgspec.Struct):
    """A member of a consumer group, and its partitions of a topic."""

    member_id: str
    client_id: str
    host: str
    partitions: list[int]


async def may_join(admin: AIOKafkaAdminClient, group: str) -> bool:
    """Return whether the client may read the group, which joining it needs; True while that is unknown."""
    try:
        async with asyncio.timeout(PERMISSION_TIMEOUT_S):
            code, *_, operations = await _described(admin, group, await admin.find_coordinator(group))
    except GroupAuthorizationFailedError:
        return False
    except (KafkaError, OSError, TimeoutError):  # the coordinator is moving, or being elected
        return True
    return may("read", operations) if not code else code != GroupAuthorizationFailedError.errno


async def commits(
    admin: AIOKafkaAdminClient, group: str, topic: str, partitions: int
) -> dict[int, OffsetAndMetadata | None]:
    """Return the committed offset of a group in each partition, with its metadata; None where it has none."""
    wanted = [TopicPartition(topic, partition) for partition in range(partitions)]
    offsets = await admin.list_consumer_group_offsets(group, partitions=wanted)
    return {tp.partition: found if found.offset >= 0 else None for tp, found in offsets.items()}


async def members(admin: AIOKafkaAdminClient, group: str, topic: str) -> tuple[str, list[Member]]:
    """Return the state of a group (`Stable`, `PreparingRebalance`, `Empty`, ...) and its members.

    Of a group of another protocol than those of consumers the state says so, as in `Stable share group: ...`.

    Raises `KafkaError` when the coordinator answers with an error.
    """
    coordinator = await admin.find_coordinator(group)
    code, _, state, protocol_type, _, described, _ = await _described(admin, group, coordinator)
    if code in {0, GROUP_ID_NOT_FOUND} and (not described or code):  # perhaps a group of the newer protocol (KIP-848)
        newer = await describe_group(client_of_admin(admin), coordinator, group)
        if newer is not None:
            return newer[0], [Member(m.member_id, m.client_id, m.host, m.partitions.get(topic, [])) for m in newer[1]]
    if code not in {0, GROUP_ID_NOT_FOUND}:
        raise for_code(code)(group)
    if state in {"", DEAD} and (other := await find_type(client_of_admin(admin), coordinator, group)):
        return f"{other[1]} {other[0].lower()} group: its members cannot be told", []
    if described and protocol_type != CONSUMERS:
        return f"{state} {protocol_type} group: its members cannot be told", []
    return state or DEAD, [
        Member(member_id, client_id, host.removeprefix("/"), _partitions_in(assignment, topic))
        for member_id, client_id, host, _, assignment in described
    ]


async def _described(admin: AIOKafkaAdminClient, group: str, coordinator: int) -> tuple[Any, ...]:
    """Return the fields of a group: error, name, state, protocol type, protocol, members, authorized operations."""
    answer = await client_of_admin(admin).send(coordinator, AskForGroup(group))
    (described,) = answer.groups
    return tuple(described)


def _partitions_in(assignment: bytes, topic: str) -> list[int]:
    """Return which partitions of a topic a member was assigned; none while the group rebalances.

    Kafka stores whatever the leader of the group wrote: none of what cannot be read either.
    """
    try:
        given = ConsumerProtocolMemberAssignment.decode(assignment).partitions() if assignment else []
    except (ValueError, TypeError):
        return []
    return sorted(tp.partition for tp in given if tp.topic == topic)
