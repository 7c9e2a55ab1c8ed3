"""A new producer keeps the id of the one before it, in a higher epoch, as long as Kafka is the same: a PROTECTION.

Kafka refuses a batch of a lower epoch once the partition has one of the higher. aiokafka asks for a new id instead, and
Kafka cannot know then that two producers are one: what the network held back of the old one would be written behind
newer records of the same keys, perhaps behind a tombstone. Java's clients raise the epoch by themselves too, in
`TransactionManager.bumpIdempotentProducerEpoch` (KIP-360).

A Kafka that was set up anew gives the same ids to others, often under the same name. A batch with the id, epoch and
number of somebody else's counts as a duplicate there: it is acknowledged, and never written. So the id of the topic
tells one Kafka from another, and a producer is asked for it at each connection before it writes. No upstream issue is
known. Reaches for the id of transactions in a request.
"""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from uuid import UUID
from weakref import WeakSet

from aiokafka.errors import KafkaError, NoError
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
    """A topic was recreated, perhaps with all of Kafka: the id of a producer may belong to somebody else there."""

    retriable = False


class Place(NamedTuple):
    """A topic of a cluster; both ids are random, and a topic that is created again has another one."""

    cluster: str
    topic: UUID


class ProducerEpochs:
    """The epochs of one producer after another that write to the same `topic`.

    Without a topic, each producer has an id of its own.
    """

    def __init__(self, topic: str | None = None) -> None:
        self.topic = topic
        self._last: tuple[Place, int, int] | None = None

    async def place(self, send: Send) -> Place | None:
        """Return where the topic is, as a broker says; None when that is not known. Raises the errors of `send`."""
        if self.topic is None:
            return None
        try:
            answer = (await send(AskForTopics([self.topic]))).to_object()
        except NotImplementedError:  # before Kafka 2.3
            return None
        topic_id, cluster = id_in(answer["topics"][0]), answer["cluster_id"]
        return Place(cluster, topic_id) if cluster and topic_id else None

    async def begin(self, request: InitProducerIdRequest, send: Send) -> tuple[Untyped, Place | None]:
        """Return Kafka's answer to the request for an id, or the same id in the next epoch; and where it holds.

        A transactional producer is always answered by Kafka, which raises its epoch itself. Raises what `send` raises.
        """
        if request._transactional_id is not None or (place := await self.place(send)) is None:
            self._last = None
            return await send(request), None
        last, self._last = self._last, None
        if last is not None and last[0] == place and last[2] < LAST_EPOCH:
            answer = InitProducerIdResponse_v0(0, NoError.errno, last[1], last[2] + 1)
        else:
            answer = await send(request)
        if answer.error_code == NoError.errno:
            self._last = place, answer.producer_id, answer.producer_epoch
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
            self._checked.add(connection())
        return await send(request)
