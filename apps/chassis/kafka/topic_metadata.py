"""Ask a broker about topics: partitions, the client's permissions (KIP-430), and topic ids (KIP-516, Kafka 2.8).

A recreated topic has another id. aiokafka has no version of the request that asks for permissions or ids, so it is
defined here as in the protocol (https://kafka.apache.org/protocol.html).
"""

from collections.abc import Collection, Sequence
from io import BytesIO
from typing import Literal, NamedTuple
from uuid import UUID

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    String,
    TaggedFields,
)

Permission = Literal["read", "write"]

OPERATION_BITS: dict[Permission, int] = {"read": 1 << 3, "write": 1 << 4}
NO_ID = UUID(int=0)


class Uuid(AbstractType[UUID]):  # type: ignore[misc]  # aiokafka ships no types
    """The protocol's type of a UUID: sixteen bytes."""

    @classmethod
    def encode(cls, value: UUID) -> bytes:
        """Return the bytes."""
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        """Read the bytes."""
        return UUID(bytes=data.read(16))


def _answer(array: type[Array], text: String, *, flexible: bool) -> Schema:
    """Return the schema of the answer; the flexible version has tags and topic ids."""
    tags = (("tags", TaggedFields),) if flexible else ()
    topic_id = (("topic_id", Uuid),) if flexible else ()
    numbers = ("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32)
    brokers = ("replicas", array(Int32)), ("isr", array(Int32)), ("offline_replicas", array(Int32))
    partitions = array(*numbers, *brokers, *tags)
    names = ("error_code", Int16), ("topic", text), *topic_id, ("is_internal", Boolean)
    return Schema(
        ("throttle_time_ms", Int32),
        ("brokers", array(("node_id", Int32), ("host", text), ("port", Int32), ("rack", text), *tags)),
        ("cluster_id", text),
        ("controller_id", Int32),
        ("topics", array(*names, ("partitions", partitions), ("operations", Int32), *tags)),
        ("cluster_operations", Int32),
        *tags,
    )


OPTIONS = (
    ("allow_auto_topic_creation", Boolean),
    ("include_cluster_authorized_operations", Boolean),
    ("include_topic_authorized_operations", Boolean),
)


class MetadataAnswerV8(Response):  # type: ignore[misc]  # as above
    """Metadata, version 8: with permissions."""

    API_KEY = 3
    API_VERSION = 8
    SCHEMA = _answer(Array, String("utf-8"), flexible=False)


class MetadataAnswerV10(Response):  # type: ignore[misc]  # as above
    """Metadata, version 10: with permissions and topic ids."""

    API_KEY = 3
    API_VERSION = 10
    SCHEMA = _answer(CompactArray, CompactString("utf-8"), flexible=True)


class MetadataQuestionV8(RequestStruct):  # type: ignore[misc]  # as above
    """Metadata, version 8."""

    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = MetadataAnswerV8
    SCHEMA = Schema(("topics", Array(String("utf-8"))), *OPTIONS)


class MetadataQuestionV10(RequestStruct):  # type: ignore[misc]  # as above
    """Metadata, version 10."""

    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = MetadataAnswerV10
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields))),
        *OPTIONS,
        ("tags", TaggedFields),
    )


class AskForTopics(Request[MetadataQuestionV8 | MetadataQuestionV10]):  # type: ignore[misc]  # as above
    """A request for the partitions and ids of topics and, as bits of `operations`, the client's permissions."""

    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(self, kind: type[MetadataQuestionV8 | MetadataQuestionV10]) -> MetadataQuestionV8 | MetadataQuestionV10:
        """Return the request in this version."""
        options = (False, False, True)  # as in `OPTIONS`
        if kind is MetadataQuestionV8:
            return kind(list(self._topics), *options)
        return kind([(NO_ID, topic, {}) for topic in self._topics], *options, {})


def may(permission: Permission, operations: int) -> bool:
    """Return whether a permission is among the authorized operations that Kafka returned."""
    return bool(operations & OPERATION_BITS[permission])


class TopicId(NamedTuple):
    """The id of a topic (None before Kafka 2.8), and its partitions."""

    id: UUID | None
    partitions: Collection[int]


async def topic_of(client: AIOKafkaClient, node: int, topic: str) -> TopicId:
    """Return the id and the partitions of a topic, as a broker knows them.

    Raises `NotImplementedError` when the broker is older than Kafka 2.3, or `KafkaError` or `OSError`.
    """
    answer = await client.send(node, AskForTopics([topic]))
    (described,) = answer.to_object()["topics"]
    if code := described["error_code"]:
        raise for_code(code)(topic)
    return TopicId(id_in(described), {one["partition"] for one in described["partitions"]})


def id_in(described: dict[str, UUID]) -> UUID | None:
    """Return the id in a description of a topic; None before Kafka 2.8."""
    found = described.get("topic_id", NO_ID)
    return None if found == NO_ID else found
