"""The id of a topic, as the leader of each of its partitions knows it: a PROTECTION.

A leader serves the records of the topic whose id it knows. Another broker may learn of a recreated topic earlier or
later. aiokafka has no topic ids (KIP-516) and does not show which broker leads a partition: this reaches for a
consumer's client, its metadata and its choice of a random broker. Lost without it: the first records of a topic that
was deleted and created again, which are skipped when the group continues at its old offsets.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Sequence
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from apps.chassis.internals.client_parts import client_of_consumer
from apps.chassis.kafka.topic_metadata import topic_of

REACHES = (
    "aiokafka.cluster:ClusterMetadata.leader_for_partition(partition)",
    "aiokafka.client:AIOKafkaClient.get_random_node(self)",
)

LEADER_TIMEOUT_S = 2.0
"""Seconds for the answer of one broker."""


async def partition_topic_ids(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, UUID | None]:
    """Ask the leader of each partition for the id of its topic; None from a Kafka that gives none.

    Partitions are missing when their leader did not answer in time, or when their topic does not have them.
    """
    client = client_of_consumer(consumer)
    asked: dict[tuple[int, str], list[TopicPartition]] = defaultdict(list)
    for tp in partitions:
        leader = client.cluster.leader_for_partition(tp)
        node = client.get_random_node() if leader is None or leader < 0 else leader
        asked[node, tp.topic].append(tp)

    async def ask(node: int, topic: str, wanted: Sequence[TopicPartition]) -> dict[TopicPartition, UUID | None]:
        try:
            async with asyncio.timeout(LEADER_TIMEOUT_S):
                found = await topic_of(client, node, topic)
        except NotImplementedError:  # the broker is older than topic ids
            return dict.fromkeys(wanted)
        except (KafkaError, OSError, TimeoutError):
            return {}
        return {tp: found.id for tp in wanted if tp.partition in found.partitions}

    answers = await asyncio.gather(*(ask(node, topic, wanted) for (node, topic), wanted in asked.items()))
    return {tp: found for answer in answers for tp, found in answer.items()}
