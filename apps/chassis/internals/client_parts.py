"""Private parts of Kafka's clients for which there is no public way: a PROTECTION.

Reaches for:

- the client of an admin client and of a consumer, to send any request to a chosen broker: aiokafka's own methods ask a
  random one, also a dead one, and do not know some requests;
- a consumer's member id; FastStream's aiokafka producer;
- what a producer has not written yet: an idempotent one retries for ever, and its `stop` waits for that
  (https://github.com/aio-libs/aiokafka/issues/1101; Java's has `delivery.timeout.ms`, KIP-91).

Lost without it: the diagnosis of permissions and leaders, the member id in the status, dead letters and headers byte
for byte, and the connections of each producer that Kafka refused once.
"""

import asyncio
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import ProducerClosed
from faststream.kafka import KafkaBroker
from faststream.kafka.subscriber.usecase import BatchSubscriber

REACHES = (
    "aiokafka.admin.client:AIOKafkaAdminClient.__init__ uses _client",
    "aiokafka.admin.client:AIOKafkaAdminClient._send_request(request)",
    "aiokafka.client:AIOKafkaClient.send(node_id, request)",
    "aiokafka.consumer.consumer:AIOKafkaConsumer.__init__ uses _client",
    "aiokafka.consumer.consumer:AIOKafkaConsumer.start uses _coordinator",
    "aiokafka.consumer.group_coordinator:GroupCoordinator.__init__ uses member_id",
    "aiokafka.producer.producer:AIOKafkaProducer.__init__ uses _sender, _message_accumulator",
    "aiokafka.producer.message_accumulator:MessageAccumulator.fail_all uses _batches, _pending_batches",
    "aiokafka.producer.sender:Sender.sender_task",
    "faststream.kafka.publisher.producer:AioKafkaFastProducerImpl._producer",
    "faststream.kafka.publisher.state:RealProducer.producer",
)


def producer_of(broker: KafkaBroker) -> AIOKafkaProducer | None:
    """Return aiokafka's producer of a broker; None when it is not connected, or a `TestKafkaBroker`."""
    state = getattr(broker.config.producer, "_producer", None)
    return state.producer if state else None


def client_of_admin(admin: AIOKafkaAdminClient) -> AIOKafkaClient:
    """Return the client of an admin client, which can send any request to a chosen broker."""
    return admin._client


def client_of_consumer(consumer: AIOKafkaConsumer) -> AIOKafkaClient:
    """Return the client of a consumer, which can send any request to a chosen broker."""
    return consumer._client


async def ask_any_broker(admin: AIOKafkaAdminClient, request: Any) -> Any:  # noqa: ANN401 - aiokafka ships no types
    """Send a request to any broker; return its answer."""
    return await admin._send_request(request)


def member_id_of(consumer: AIOKafkaConsumer) -> str:
    """Return the id of a consumer in its group."""
    member_id: str = consumer._coordinator.member_id
    return member_id


async def close_clients(broker: KafkaBroker) -> None:
    """Close the clients of consumers whose stop was cut off: it would have closed them last."""
    consumers = [subscriber.consumer for subscriber in broker.subscribers if isinstance(subscriber, BatchSubscriber)]
    await asyncio.gather(*(one._client.close() for one in consumers if isinstance(one, AIOKafkaConsumer)))


async def fail_unwritten(producer: AIOKafkaProducer, backoff_s: float) -> None:
    """Fail what a producer cannot write; what is on its way is queued again within `backoff_s`.

    Its sender goes first: it would trip over batches that are failed under it.
    """
    sender, waiting = producer._sender, producer._message_accumulator
    if sender.sender_task is not None:
        sender.sender_task.cancel()
    await producer.client.close()
    await asyncio.sleep(backoff_s)
    waiting._pending_batches.update(chain.from_iterable(waiting._batches.values()))  # `fail_all` looks for them there
    waiting.fail_all(ProducerClosed())
