"""Private parts of aiokafka's clients for which there is no public way.

Requests to a chosen broker (the admin client asks any, and has no method for some), the member id of a consumer, and
giving up what a producer cannot write. Without them: no diagnosis of rights and leaders, no member id in the status,
and producers that stay behind with their connections.
"""

import asyncio
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import ProducerClosed
from faststream.kafka import KafkaBroker


def producer_of(broker: KafkaBroker) -> AIOKafkaProducer | None:
    """Return aiokafka's producer of a broker; None when it is not connected, or a `TestKafkaBroker`."""
    state = getattr(broker.config.producer, "_producer", None)
    return state.producer if state else None


def client_of_admin(admin: AIOKafkaAdminClient) -> AIOKafkaClient:
    """Return the client of an admin client, which can send any request to a chosen broker."""
    return admin._client


async def ask_any_broker(admin: AIOKafkaAdminClient, request: Any) -> Any:  # noqa: ANN401 - aiokafka ships no types
    """Send a request to any broker; return its answer."""
    return await admin._send_request(request)


def member_id_of(consumer: AIOKafkaConsumer) -> str:
    """Return the id of a consumer in its group."""
    member_id: str = consumer._coordinator.member_id
    return member_id


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
