"""What a client may do, as Kafka itself tells it with a topic or a group (KIP-430, Kafka 2.3 and newer).

The client library does not ask for it: the two requests are spelt out here as the protocol has them
(https://kafka.apache.org/protocol.html).
"""

from typing import Literal

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Bytes, Int16, Int32, Schema, String

Right = Literal["read", "write"]

BITS: dict[Right, int] = {"read": 1 << 3, "write": 1 << 4}
WORDS: dict[Right, str] = {"read": "read", "write": "write to"}

TEXT = String("utf-8")


class TopicsAnswer(Response):  # type: ignore[misc]  # aiokafka ships no types
    """Metadata, version 8."""

    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node_id", Int32), ("host", TEXT), ("port", Int32), ("rack", TEXT))),
        ("cluster_id", TEXT),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", TEXT),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("operations", Int32),
            ),
        ),
        ("cluster_operations", Int32),
    )


class TopicsQuestion(RequestStruct):  # type: ignore[misc]  # as above
    """Metadata, version 8."""

    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = TopicsAnswer
    SCHEMA = Schema(
        ("topics", Array(TEXT)),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class AskForTopics(Request[TopicsQuestion]):  # type: ignore[misc]  # as above
    """Asks what topics are like and, in the bits of `operations`, what may be done with each."""

    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, kind: type[TopicsQuestion]) -> TopicsQuestion:
        """Return the request as it is sent."""
        return kind(self._topics, False, False, True)  # noqa: FBT003 - fields of the protocol


class GroupsAnswer(Response):  # type: ignore[misc]  # as above
    """DescribeGroups, version 3."""

    API_KEY = 15
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "groups",
            Array(
                ("error_code", Int16),
                ("group", TEXT),
                ("state", TEXT),
                ("protocol_type", TEXT),
                ("protocol", TEXT),
                (
                    "members",
                    Array(
                        ("member_id", TEXT),
                        ("client_id", TEXT),
                        ("client_host", TEXT),
                        ("member_metadata", Bytes),
                        ("member_assignment", Bytes),
                    ),
                ),
                ("operations", Int32),
            ),
        ),
    )


class GroupsQuestion(RequestStruct):  # type: ignore[misc]  # as above
    """DescribeGroups, version 3."""

    API_KEY = 15
    API_VERSION = 3
    RESPONSE_TYPE = GroupsAnswer
    SCHEMA = Schema(("groups", Array(TEXT)), ("include_authorized_operations", Boolean))


class AskForGroup(Request[GroupsQuestion]):  # type: ignore[misc]  # as above
    """Asks what may be done with a group, in the bits of `operations`."""

    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, kind: type[GroupsQuestion]) -> GroupsQuestion:
        """Return the request as it is sent."""
        return kind([self._group], True)  # noqa: FBT003 - fields of the protocol


def may(right: Right, operations: int) -> bool:
    """Tell whether a right is among the operations that Kafka told."""
    return bool(operations & BITS[right])
