"""Send the values of one call, or generate and send them, and return the answer."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from itertools import takewhile
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
"""Records generated, encoded and published at a time: about 10 ms in which nothing else runs."""


Sent = Delivery | Busy | OutOfReach
"""The result of a chunk."""


class Generated(msgspec.Struct):
    """Generated values, each as JSON, in order. `answer` is None when all of them were delivered."""

    values: list[bytes]
    answer: Answer | None


async def send(stream: Stream[T], publisher: Publisher, values: Sequence[T], where: str = "$[{}]") -> Answer:
    """Send values, and return the result of each within 10 s.

    `where` is a template for the JSON path of a value by its index. Raises `BadRecords`, `Busy` or `OutOfReach` when
    nothing was sent.
    """
    return await send_records(publisher, *to_records(stream, values, publisher.max_record_bytes, where))


async def send_records(publisher: Publisher, keys: Sequence[bytes], values: Sequence[bytes]) -> Answer:
    """Send records, and return the result of each within 10 s. Raises `Busy` or `OutOfReach` when nothing was sent."""
    delivery = await publisher.publish(keys, values)
    return Answer(delivery.confirmed, delivery.receipts(ids_of(keys)))


async def generate_value(stream: Stream[Any]) -> bytes:
    """Generate a value and return it as JSON, without sending it. Raises `CannotGenerate`."""
    generate = await asyncio.to_thread(generator_of, stream)  # the first call imports the generator
    (value,) = await generate(1)
    return encode(value)


async def generate_and_send(
    stream: Stream[T], publisher: Publisher, number: int, chunk_records: int = CHUNK_RECORDS
) -> Generated:
    """Generate `number` values and send them in chunks. After a chunk fails, no more are sent or generated.

    Raises `Busy`, `OutOfReach` or `CannotGenerate` when nothing was sent.
    """
    generated: list[bytes] = []
    chunks: list[tuple[list[bytes], Sent]] = []
    failure: Busy | OutOfReach | None = None
    generate = await asyncio.to_thread(generator_of, stream)  # the first call imports the generator

    async def chunk(keys: list[bytes], values: list[bytes]) -> tuple[list[bytes], Sent]:
        if failure:
            return keys, failure
        try:
            return keys, await publisher.publish(keys, values)
        except (Busy, OutOfReach) as error:
            return keys, error

    async def work() -> AsyncIterator[Coroutine[Any, Any, tuple[list[bytes], Sent]]]:
        for start in takewhile(lambda _: failure is None, range(0, number, chunk_records)):
            values = await generate(min(chunk_records, number - start))
            encoded = list(map(encode, values))
            generated.extend(encoded)
            yield chunk(stream.keys_of(values), encoded)

    async with aclosing(in_order(work())) as results:
        async for keys, result in results:
            if isinstance(result, Busy | OutOfReach):
                failure = failure or result
            elif not result.complete:
                failure = failure or OutOfReach("not sent: an earlier record was not acknowledged")
            chunks.append((keys, result))
    if failure and not any(isinstance(result, Delivery) for _, result in chunks):
        raise failure
    return Generated(generated, _answer_of(chunks) if failure else None)


def _answer_of(chunks: Sequence[tuple[list[bytes], Sent]]) -> Answer:
    answer = Answer(0, [])
    for keys, result in chunks:
        if isinstance(result, Delivery):
            answer.delivered += result.confirmed
            answer.receipts += result.receipts(ids_of(keys))
        else:
            answer.receipts += unwritten(keys, result)
    return answer
