"""A new producer keeps the id of the one before it, in a higher epoch: a PROTECTION.

Kafka refuses a batch of a lower epoch once the partition has one of the higher. aiokafka asks for a new id instead, and
Kafka cannot know then that two producers are one: what the network held back of the old one would be written behind
newer records of the same keys, perhaps behind a tombstone. Java's clients raise the epoch by themselves too, in
`TransactionManager.bumpIdempotentProducerEpoch` (KIP-360). The ids belong to a cluster: a Kafka that was set up anew
gives the same ones to others. Reaches for the id of transactions in a request.
"""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from aiokafka.errors import NoError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.transaction import InitProducerIdRequest, InitProducerIdResponse_v0

REACHES = (
    "aiokafka.protocol.transaction:InitProducerIdRequest.__init__ uses _transactional_id",
    "aiokafka.protocol.transaction:InitProducerIdResponse_v0",
    "aiokafka.client:AIOKafkaClient.send(node_id, request)",
)

LAST_EPOCH = 2**15 - 1

Untyped = Any
"""A request or an answer of a broker: aiokafka has no types for them."""
Send = Callable[[Untyped], Awaitable[Untyped]]
"""Sends a request to a broker; returns the answer."""


class ProducerEpoch(NamedTuple):
    """The epoch of an idempotent producer, and the cluster that its id belongs to."""

    cluster: str
    producer_id: int
    epoch: int


class ProducerEpochs:
    """The epochs of one producer after another of the same client; no two of them may write to a topic at a time."""

    def __init__(self) -> None:
        self._last: ProducerEpoch | None = None

    async def begin(self, request: InitProducerIdRequest, send: Send) -> Untyped:
        """Return Kafka's answer to the request for an id, or the same id in the next epoch. Raises what `send` raises.

        A transactional producer is always answered by Kafka, which raises its epoch itself.
        """
        if request._transactional_id is not None:
            return await send(request)
        cluster = getattr(await send(MetadataRequest([])), "cluster_id", None)
        last, self._last = self._last, None
        if last is not None and last.cluster == cluster and last.epoch < LAST_EPOCH:
            answer = InitProducerIdResponse_v0(0, NoError.errno, last.producer_id, last.epoch + 1)
        else:
            answer = await send(request)
        if cluster and answer.error_code == NoError.errno:
            self._last = ProducerEpoch(cluster, answer.producer_id, answer.producer_epoch)
        return answer
