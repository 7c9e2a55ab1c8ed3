"""How a stream connects to Kafka, in one place: tests pass a `Kafka` that stays in memory."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from uuid import UUID

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from apps.chassis.internals.partition_topic_ids import partition_topic_ids
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.connection import Connection
from apps.chassis.kafka.log_reader import LogReader

AskTopicIds = Callable[[AIOKafkaConsumer, Collection[TopicPartition]], Awaitable[Mapping[TopicPartition, UUID | None]]]


@dataclass(frozen=True)
class Kafka:
    """The factories of a stream's Kafka clients; each takes the arguments of its default.

    `connection` keeps a FastStream broker connected. `cluster` manages topics and groups. `reader` reads a topic
    without a group. `producer` writes dead letters byte for byte. `ask_topic_ids` asks for the topic ids of partitions.
    """

    connection: Callable[..., Connection] = Connection
    cluster: Callable[..., Cluster] = Cluster
    reader: Callable[..., LogReader] = LogReader
    producer: Callable[..., AIOKafkaProducer] = AIOKafkaProducer
    ask_topic_ids: AskTopicIds = partition_topic_ids


REAL = Kafka()
