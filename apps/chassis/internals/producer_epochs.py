"""A new producer keeps the id of the one before it, in a higher epoch, as long as Kafka is the same: a PROTECTION.

Kafka refuses a batch of a lower epoch once the partition has one of the higher. aiokafka asks for a new id instead, and
Kafka cannot know then that two producers are one: what the network held back of the old one would be written behind
newer records of the same keys, perhaps behind a tombstone. Java's clients raise the epoch by themselves too, in
`TransactionManager.bumpIdempotentProducerEpoch` (KIP-360).

When Kafka is installed again with empty disks, it hands out the same ids a second time, often with the same cluster id.
Two producers may then have the same one. Kafka takes a batch whose id, epoch and sequence number it knows for a
duplicate: it acknowledges it and does not write it. Topic ids are random, so each new connection is asked for that of
the topic before the first batch. No upstream issue is known. Reaches for the id of transactions in a request.
"""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from uuid import UUID
from weakref import WeakSet

from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, NoError
from aiokafka.protocol.transaction import InitProducerIdRequest, InitProducerIdResponse_v0

from apps.chassis.kafka.topic_metadata import AskForTopics, id_in

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


class AnotherKafka(KafkaError):  # type: ignore[misc]  # aiokafka ships no types
    """The topic was recreated, perhaps with the whole cluster: another producer may have the same id there."""

    retriable = False


class Place(NamedTuple):
    """The ids of a cluster and of a topic; a recreated topic has another one."""

    cluster_id: str
    topic_id: UUID


class Begun(NamedTuple):
    """What the last producer has begun with."""

    place: Place
    producer_id: int
    epoch: int


class ProducerEpochs:
    """The epochs of one producer after another that write to the same `topic`.

    Without a topic, each producer has an id of its own.
    """

    def __init__(self, topic: str | None = None) -> None:
        self.topic = topic
        self._last: Begun | None = None

    async def place(self, send: Send) -> Place | None:
        """Return where the topic is, as a broker says; None when that is not known. Raises the errors of `send`."""
        if self.topic is None:
            return None
        try:
            answer = (await send(AskForTopics([self.topic]))).to_object()
        except (IncompatibleBrokerVersion, NotImplementedError):  # before Kafka 2.3
            return None
        cluster_id, topic_id = answer["cluster_id"], id_in(answer["topics"][0])
        return Place(cluster_id, topic_id) if cluster_id and topic_id else None

    async def begin(self, request: InitProducerIdRequest, send: Send) -> tuple[Untyped, Place | None]:
        """Return Kafka's answer to the request for an id, or the same id in the next epoch; and where it holds.

        A transactional producer is always answered by Kafka, which raises its epoch itself. Raises what `send` raises.
        """
        if request._transactional_id is not None or (place := await self.place(send)) is None:
            self._last = None
            return await send(request), None
        last, self._last = self._last, None
        if last is not None and last.place == place and last.epoch < LAST_EPOCH:
            answer = InitProducerIdResponse_v0(0, NoError.errno, last.producer_id, last.epoch + 1)
        else:
            answer = await send(request)
        if answer.error_code == NoError.errno:
            self._last = Begun(place, answer.producer_id, answer.producer_epoch)
        return answer, place


class ProducerOfClient:
    """Sends the requests of an idempotent producer, whose id holds where its topic was when it began."""

    def __init__(self, epochs: ProducerEpochs) -> None:
        self._epochs = epochs
        self._place: Place | None = None
        self._checked: WeakSet[object] = WeakSet()

    async def send(self, request: Untyped, send: Send, connection: Callable[[], object]) -> Untyped:
        """Send a request for an id, or a batch, by the present `connection`; return the answer.

        Raises the errors of `send`, or `AnotherKafka` when a new connection leads elsewhere: nothing was sent then.
        """
        if isinstance(request, InitProducerIdRequest):
            answer, self._place = await self._epochs.begin(request, send)
            return answer
        if self._place is not None and connection() not in self._checked:
            if await self._epochs.place(send) != self._place:
                raise AnotherKafka(f"topic {self._epochs.topic} was recreated")
            if (checked := connection()) is not None:  # it may be gone again
                self._checked.add(checked)
        return await send(request)
