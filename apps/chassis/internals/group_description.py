"""Describe groups of newer protocols (KIP-848, KIP-932), which DescribeGroups calls dead: a PROTECTION.

aiokafka does not know the requests: ConsumerGroupDescribe and ListGroups with the types of groups are spelt out here as
the protocol has them, from Kafka 3.7 and 3.8 on (https://kafka.apache.org/protocol.html), with the undocumented base
classes of aiokafka's own requests. Lost without it: the members of such a group, which would look empty, and that an id
is in use by a share group.
"""

from typing import NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from apps.chassis.kafka.topic_metadata import Uuid

REACHES = (
    "aiokafka.protocol.api:Request.build(request_struct_class)",
    "apps.chassis.internals.group_description:DescribeGroup._CLASSES",
    "apps.chassis.internals.group_description:ListTypes._CLASSES",
)

GROUP_ID_NOT_FOUND = 69
TEXT = CompactString("utf-8")
ASSIGNMENT = Schema(
    (
        "topics",
        CompactArray(("topic_id", Uuid), ("topic", TEXT), ("partitions", CompactArray(Int32)), ("tags", TaggedFields)),
    ),
    ("tags", TaggedFields),
)


MEMBERS = CompactArray(
    ("member_id", TEXT),
    ("instance_id", TEXT),
    ("rack_id", TEXT),
    ("member_epoch", Int32),
    ("client_id", TEXT),
    ("client_host", TEXT),
    ("subscribed_topics", CompactArray(TEXT)),
    ("subscribed_regex", TEXT),
    ("assignment", ASSIGNMENT),
    ("target_assignment", ASSIGNMENT),
    ("tags", TaggedFields),
)


class Answer(Response):  # type: ignore[misc]  # aiokafka ships no types
    """ConsumerGroupDescribe, version 0: later ones add nothing that is shown."""

    API_KEY = 69
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "groups",
            CompactArray(
                ("error_code", Int16),
                ("error_message", TEXT),
                ("group", TEXT),
                ("state", TEXT),
                ("group_epoch", Int32),
                ("assignment_epoch", Int32),
                ("assignor", TEXT),
                ("members", MEMBERS),
                ("operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class Question(RequestStruct):  # type: ignore[misc]  # as above
    """ConsumerGroupDescribe, version 0."""

    FLEXIBLE_VERSION = True
    API_KEY = 69
    API_VERSION = 0
    RESPONSE_TYPE = Answer
    SCHEMA = Schema(("groups", CompactArray(TEXT)), ("include_authorized_operations", Boolean), ("tags", TaggedFields))


class DescribeGroup(Request[Question]):  # type: ignore[misc]  # as above
    """Asks for a group of the newer protocol."""

    API_KEY = 69

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, kind: type[Question]) -> Question:
        """Return the request as it is sent."""
        return kind([self._group], False, {})  # noqa: FBT003 - fields of the protocol


class GroupMember(NamedTuple):
    """A member of a group, and which partitions of each topic it has."""

    member_id: str
    client_id: str
    host: str
    partitions: dict[str, list[int]]


async def describe_group(client: AIOKafkaClient, coordinator: int, group: str) -> tuple[str, list[GroupMember]] | None:
    """Return the state and the members of a group of the newer protocol; None when Kafka knows no such group.

    Raises `KafkaError` or `OSError`.
    """
    try:
        answer = await client.send(coordinator, DescribeGroup(group))
    except (IncompatibleBrokerVersion, NotImplementedError):  # the broker is older than the protocol
        return None
    (described,) = answer.to_object()["groups"]
    if (code := described["error_code"]) == GROUP_ID_NOT_FOUND:
        return None
    if code:
        raise for_code(code)(group)
    return described["state"], [
        GroupMember(
            member["member_id"],
            member["client_id"],
            member["client_host"].removeprefix("/"),
            {topic["topic"]: sorted(topic["partitions"]) for topic in member["assignment"]["topics"]},
        )
        for member in described["members"]
    ]


class TypesAnswer(Response):  # type: ignore[misc]  # as above
    """ListGroups, version 5: with the types of the groups."""

    API_KEY = 16
    API_VERSION = 5
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        (
            "groups",
            CompactArray(
                ("group", TEXT), ("protocol_type", TEXT), ("state", TEXT), ("type", TEXT), ("tags", TaggedFields)
            ),
        ),
        ("tags", TaggedFields),
    )


class TypesQuestion(RequestStruct):  # type: ignore[misc]  # as above
    """ListGroups, version 5."""

    FLEXIBLE_VERSION = True
    API_KEY = 16
    API_VERSION = 5
    RESPONSE_TYPE = TypesAnswer
    SCHEMA = Schema(("states", CompactArray(TEXT)), ("types", CompactArray(TEXT)), ("tags", TaggedFields))


class ListTypes(Request[TypesQuestion]):  # type: ignore[misc]  # as above
    """Asks a coordinator for all of its groups, with their types."""

    API_KEY = 16

    def build(self, kind: type[TypesQuestion]) -> TypesQuestion:
        """Return the request as it is sent."""
        return kind([], [], {})


async def find_type(client: AIOKafkaClient, coordinator: int, group: str) -> tuple[str, str] | None:
    """Return the type and the state of a group of any protocol; None when Kafka knows none, or does not say.

    Raises `KafkaError` or `OSError`.
    """
    try:
        answer = await client.send(coordinator, ListTypes())
    except (IncompatibleBrokerVersion, NotImplementedError):  # the broker is older than the types
        return None
    groups = answer.to_object()["groups"]
    return next(((one["type"], one["state"]) for one in groups if one["group"] == group), None)
