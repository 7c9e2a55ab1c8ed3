"""A call that sends values or has them made, and its answer."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from apps.producer.generating.generators import generator_of
from apps.producer.publishing.deliveries import Delivery
from apps.producer.publishing.in_order import in_order
from apps.producer.publishing.publisher import Busy, OutOfReach, Publisher
from apps.producer.publishing.receipts import Answer, ids_of, unwritten
from apps.producer.publishing.values import to_records
from contracts.stream import Stream, encode

T = TypeVar("T")

CHUNK_RECORDS = 2_000
"""Records made, encoded and handed over at a time: some 10 ms in which nothing else runs."""


Sent = Delivery | Busy | OutOfReach
"""What became of a chunk."""


class Made(msgspec.Struct):
    """Values that were made: each as JSON, in order; `answer` only where not all of them were delivered."""

    values: list[bytes]
    answer: Answer | None


async def send(stream: Stream[T], publisher: Publisher, values: Sequence[T], where: str = "$[{}]") -> Answer:
    """Send values, and return within 10 s what became of each. Raises `BadRecords`, `Busy`, `OutOfReach`: none sent."""
    return await send_records(publisher, *to_records(stream, values, publisher.largest_record, where))


async def send_records(publisher: Publisher, keys: Sequence[bytes], values: Sequence[bytes]) -> Answer:
    """Send records, and return within 10 s what became of each. Raises `Busy` and `OutOfReach`."""
    delivery = await publisher.publish(keys, values)
    return Answer(delivery.confirmed, delivery.receipts(ids_of(keys)))


async def make(stream: Stream[T], publisher: Publisher, number: int, chunk_records: int = CHUNK_RECORDS) -> Made:
    """Make values and send them; once a chunk of them fails, those after it are not sent.

    Raises `Busy` or `OutOfReach` when not even the first could be sent.
    """
    made: list[bytes] = []
    chunks: list[tuple[list[bytes], Sent]] = []
    failure: Busy | OutOfReach | None = None
    generate = await asyncio.to_thread(generator_of, stream)  # the first time it imports what it needs

    async def chunk(keys: list[bytes], values: list[bytes]) -> tuple[list[bytes], Sent]:
        if failure:
            return keys, failure
        try:
            return keys, await publisher.publish(keys, values)
        except (Busy, OutOfReach) as error:
            return keys, error

    async def work() -> AsyncIterator[Coroutine[Any, Any, tuple[list[bytes], Sent]]]:
        for start in range(0, number, chunk_records):
            values = await generate(min(chunk_records, number - start))
            encoded = list(map(encode, values))
            made.extend(encoded)
            yield chunk(stream.keys_of(values), encoded)

    async with aclosing(in_order(work())) as results:
        async for keys, result in results:
            if isinstance(result, Busy | OutOfReach):
                if not chunks:
                    raise result
                failure = failure or result
            elif not result.complete:
                failure = failure or OutOfReach("not sent: an earlier record was not acknowledged")
            chunks.append((keys, result))
    return Made(made, _answer_of(chunks) if failure else None)


def _answer_of(chunks: Sequence[tuple[list[bytes], Sent]]) -> Answer:
    answer = Answer(0, [])
    for keys, result in chunks:
        if isinstance(result, Delivery):
            answer.delivered += result.confirmed
            answer.receipts += result.receipts(ids_of(keys))
        else:
            answer.receipts += unwritten(keys, result)
    return answer
