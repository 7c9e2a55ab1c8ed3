"""The id that Kafka gives a new topic: a recreated topic of the same name has another one (KIP-516).

The client library does not ask for it: the request is spelt out here as the protocol has it, from Kafka 2.8 on
(https://kafka.apache.org/protocol.html).
"""

from collections.abc import Collection
from io import BytesIO
from typing import NamedTuple
from uuid import UUID

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

TEXT = CompactString("utf-8")


class Uuid(AbstractType[UUID]):  # type: ignore[misc]  # aiokafka ships no types
    """A UUID, as its sixteen bytes."""

    @classmethod
    def encode(cls, value: UUID) -> bytes:
        """Return the bytes."""
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        """Read the bytes."""
        return UUID(bytes=data.read(16))


NO_ID = UUID(int=0)


class TopicIdAnswer(Response):  # type: ignore[misc]  # as above
    """Metadata, version 10."""

    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(("node_id", Int32), ("host", TEXT), ("port", Int32), ("rack", TEXT), ("tags", TaggedFields)),
        ),
        ("cluster_id", TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", TEXT),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_operations", Int32),
        ("tags", TaggedFields),
    )


class TopicIdQuestion(RequestStruct):  # type: ignore[misc]  # as above
    """Metadata, version 10."""

    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = TopicIdAnswer
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", Uuid), ("topic", TEXT), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class AskForTopicId(Request[TopicIdQuestion]):  # type: ignore[misc]  # as above
    """Asks which id a topic has."""

    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, kind: type[TopicIdQuestion]) -> TopicIdQuestion:
        """Return the request as it is sent."""
        return kind([(NO_ID, self._topic, {})], False, False, False, {})  # noqa: FBT003 - fields of the protocol


class TopicId(NamedTuple):
    """What a broker knows of a topic: its id (None from a Kafka that gives none), and its partitions."""

    id: UUID | None
    partitions: Collection[int]


async def topic_id(client: AIOKafkaClient, topic: str) -> UUID | None:
    """Return the id of a topic; None from a Kafka that gives none. Raises `KafkaError` or `OSError`."""
    try:
        return (await topic_of(client, client.get_random_node(), topic)).id
    except NotImplementedError:  # the broker knows no such version of the request
        return None


async def topic_of(client: AIOKafkaClient, node: int, topic: str) -> TopicId:
    """Return what a broker knows of a topic.

    Raises `NotImplementedError` when it is older than topic ids, `KafkaError` or `OSError`.
    """
    answer = await client.send(node, AskForTopicId(topic))
    (described,) = answer.to_object()["topics"]
    if code := described["error_code"]:
        raise for_code(code)(topic)
    found: UUID = described["topic_id"]
    return TopicId(None if found == NO_ID else found, {one["partition"] for one in described["partitions"]})
