"""Send the values of one call, or generate and send them, and return the answer."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar

import msgspec

from apps.producer.generating.generators import CannotGenerate, generator_of, take_from_stock
from apps.producer.publishing.deliveries import Delivery
from apps.producer.publishing.in_order import in_order
from apps.producer.publishing.publisher import Busy, OutOfReach, Publisher
from apps.producer.publishing.receipts import Answer, ids_of, unwritten
from apps.producer.publishing.values import expected_size
from contracts.stream import Stream, encode

T = TypeVar("T")

CHUNK_RECORDS = 2_000
"""Records generated, encoded and published at a time: about 10 ms in which nothing else runs."""


MAX_GENERATED_BYTES = 64 * 1024 * 1024
"""Bytes of the values that one call may generate: they stay in memory until the call is answered."""
GENERATE_S = 7.0
"""Seconds that one call may generate, including its turns after others: all calls of a stream share one thread."""
TOMBSTONE = b""
"""The value of a record that is written as null."""
COUNTED_S = 5.0
"""Most seconds of making or reading records that count as waiting for their acknowledgement."""

Failed = Busy | OutOfReach | CannotGenerate
"""Why nothing of a chunk was sent."""


class Generated(msgspec.Struct):
    """Generated values as JSON, in order; `answer` is None when all of them were delivered.

    Each of the `pieces` has those of a chunk, with commas between them. Kept one by one, the values of a large call
    would leave the process 50 MB larger: Python gives memory of small objects back in pieces of 1 MiB alone.
    """

    pieces: list[bytes]
    answer: Answer | None


class Chunk(NamedTuple):
    """Generated keys and values, or why there are no values, and when their generation began."""

    keys: list[bytes]
    values: list[bytes] | Failed
    begun: float


async def send_records(
    publisher: Publisher,
    keys: Sequence[bytes],
    values: Sequence[bytes],
    *,
    patient: bool = True,
    since: float | None = None,
) -> Answer:
    """Send records, and return the result of each within 10 s of `since`, by default of now.

    Raises `Busy` or `OutOfReach` when nothing was sent.
    """
    since = since and _counted(since)
    delivery = await publisher.publish(keys, values, since=since, patient=patient)
    return Answer(delivery.confirmed, delivery.receipts(ids_of(keys)))


async def send_deletion(publisher: Publisher, key: str) -> Answer:
    """Send a tombstone for a key. Raises `Busy` or `OutOfReach` when it was not sent."""
    return await send_records(publisher, [key.encode()], [TOMBSTONE])


async def generate_value(stream: Stream[Any], max_record_bytes: int) -> bytes:
    """Generate a value and return it as JSON, without sending it. Raises `CannotGenerate`."""
    generate = await generator_of(stream)
    async with aclosing(generate(1, 1, asyncio.Semaphore())) as made:
        _, values = await _next_of(stream, made, 1, max_record_bytes, MAX_GENERATED_BYTES, GENERATE_S)
    if isinstance(values, Failed):
        raise values
    return values[0]


async def generate_and_send(  # noqa: PLR0913 - what tests replace
    stream: Stream[T],
    publisher: Publisher,
    number: int,
    turns: asyncio.Semaphore | None = None,
    *,
    chunk_records: int = CHUNK_RECORDS,
    max_bytes: int = MAX_GENERATED_BYTES,
    within_s: float = GENERATE_S,
) -> Generated:
    """Generate `number` values and send them in chunks. After a chunk fails, no more are sent or generated.

    The time for acknowledgements counts from the beginning of the oldest chunk without one, or from the last result:
    when Kafka does not answer, all chunks are given up together. Generating may take `within_s` seconds in all, and
    needs one of the `turns`.
    Raises `Busy`, `OutOfReach` or `CannotGenerate` when nothing was sent.
    """
    begun = time.monotonic()
    if taken := take_from_stock(stream, number):
        first = Chunk(*_encoded(stream, taken, publisher.max_record_bytes, max_bytes), begun)
    else:
        made = _chunks(stream, publisher, number, turns, chunk_records, max_bytes, within_s)
        first = await anext(made)
        if len(first.keys) < number:
            return await _send_in_order(publisher, first, made)
        await made.aclose()
    result = await _sent(publisher, first, _counted(first.begun))  # tasks and a queue would double the cost of a record
    failure = _failure_of(result)
    return Generated([*_pieces_of(first)], _answer_of([(first.keys, result)], failure) if failure else None)


async def _send_in_order(publisher: Publisher, first: Chunk, others: AsyncGenerator[Chunk, None]) -> Generated:
    """Send chunks, about eight at a time, while others are generated, and close `others`."""
    generated: list[bytes] = []
    results: list[tuple[list[bytes], Delivery | Failed]] = []
    failure: Failed | None = None
    since: deque[float] = deque()

    async def send(chunk: Chunk) -> tuple[list[bytes], Delivery | Failed]:
        since.append(_counted(chunk.begun))
        return chunk.keys, failure or await _sent(publisher, chunk, since[0])

    async def work() -> AsyncIterator[Coroutine[Any, Any, tuple[list[bytes], Delivery | Failed]]]:
        chunk: Chunk | None = first
        async with aclosing(others):
            while chunk:
                yield send(chunk)
                generated.extend(_pieces_of(chunk))
                chunk = None if failure else await anext(others, None)

    async with aclosing(in_order(work())) as sent:
        async for keys, result in sent:
            failure = failure or _failure_of(result)
            results.append((keys, result))
            since = deque([time.monotonic()] * (len(since) - 1))
    return Generated(generated, _answer_of(results, failure) if failure else None)


def _pieces_of(chunk: Chunk) -> Iterator[bytes]:
    if isinstance(chunk.values, list):
        yield b",".join(chunk.values)


async def _chunks(  # noqa: PLR0913, PLR0917 - what is generated, and within which limits
    stream: Stream[T],
    publisher: Publisher,
    number: int,
    turns: asyncio.Semaphore | None,
    chunk_records: int,
    max_bytes: int,
    within_s: float,
) -> AsyncGenerator[Chunk, None]:
    """Generate `number` values in chunks; the first without values is the last."""
    generate = await generator_of(stream)
    async with aclosing(generate(number, chunk_records, turns or asyncio.Semaphore())) as made:
        while number:
            begun, wanted = time.monotonic(), min(number, chunk_records)
            keys, values = await _next_of(stream, made, wanted, publisher.max_record_bytes, max_bytes, within_s)
            within_s -= time.monotonic() - begun
            yield Chunk(keys, values, begun)
            if isinstance(values, Failed):
                return
            number -= len(values)
            max_bytes -= sum(map(len, values))


async def _sent(publisher: Publisher, chunk: Chunk, since: float) -> Delivery | Failed:
    if isinstance(chunk.values, Failed):
        return chunk.values
    try:
        return await publisher.publish(chunk.keys, chunk.values, since=since)
    except (Busy, OutOfReach) as error:
        return error


def _counted(since: float) -> float:
    """Return from when the time for acknowledgements counts, for records whose reading or generating began then."""
    return max(since, time.monotonic() - COUNTED_S)


async def _next_of(  # noqa: PLR0913, PLR0917 - what is generated, and within which limits
    stream: Stream[T],
    made: AsyncIterator[Sequence[T]],
    wanted: int,
    max_record_bytes: int,
    max_bytes: int,
    within_s: float,
) -> tuple[list[bytes], list[bytes] | Failed]:
    """Return the keys and values of the next chunk, or empty keys and why there are no values."""
    try:
        async with asyncio.timeout(within_s):
            generated = await anext(made)
    except CannotGenerate as error:
        return [b""] * wanted, error
    except TimeoutError:
        return [b""] * wanted, Busy(f"too many {stream.name} are being generated: retry later, or generate fewer")
    return _encoded(stream, generated, max_record_bytes, max_bytes)


def _encoded(
    stream: Stream[T], generated: Sequence[T], max_record_bytes: int, max_bytes: int
) -> tuple[list[bytes], list[bytes] | Failed]:
    """Return the keys and values of records, or why there are no values."""
    keys, values = stream.keys_of(generated), list(map(encode, generated))
    largest = max(map(len, keys)) + max(map(len, values))
    if largest > max_record_bytes:
        fault = f"generated records may have {largest} bytes, {expected_size(max_record_bytes)}"
    elif sum(map(len, values)) > max_bytes:
        fault = "the generated records are too large for one call: generate fewer at a time"
    else:
        return keys, values
    return keys, CannotGenerate(fault)


def _failure_of(result: Delivery | Failed) -> Failed | None:
    if isinstance(result, Failed):
        return result
    return None if result.complete else OutOfReach("not sent: an earlier record was not acknowledged")


def _answer_of(chunks: Sequence[tuple[list[bytes], Delivery | Failed]], failure: Failed) -> Answer:
    """Return the result of each record. Raises `failure` when nothing was sent."""
    if not any(isinstance(result, Delivery) for _, result in chunks):
        raise failure
    answer = Answer(0, [])
    for keys, result in chunks:
        if isinstance(result, Delivery):
            answer.delivered += result.confirmed
            answer.receipts += result.receipts(ids_of(keys))
        else:
            answer.receipts += unwritten(keys, result)
    return answer
