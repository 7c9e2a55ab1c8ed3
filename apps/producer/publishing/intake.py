"""From what a caller sent to records, and from what became of them to receipts. Knows neither HTTP nor Kafka."""

import asyncio
from codecs import BOM_UTF8
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec

from apps.chassis.http.admission import Share
from apps.chassis.http.repeated_names import RepeatedName, check_names, count_quotes, fewest_quotes
from apps.producer.generating.generators import generator_of
from apps.producer.publishing.publisher import Busy, Delivery, OutOfReach, Publisher, Receipt
from contracts.stream import Stream, encode

T = TypeVar("T")

CHUNK = 2_000
"""Records made, encoded and handed over at a time: some 10 ms in which nothing else runs."""
TIMES_AS_LONG = 6
"""How much longer than its record a line may be: a letter that JSON spells out (`\\u0041`) has six bytes for one."""
CHUNKS_ON_THE_WAY = 8
"""Chunks of one call that are made or read before the first of them must be acknowledged."""
TIMES_IN_MEMORY = 6
"""Memory of a body while it is processed, as a multiple of its size, as measured."""
MAX_LINES = 640
"""Lines read at a time: as many as the shortest records fill 64 KiB with. Lines that are none may have a byte each."""
BAD_LINE_BYTES = 400
"""Bytes that the answer to a bad line takes of memory until it is sent, about."""


class BadRecords(ValueError):
    """A body does not hold records; `path` is the place in it (`$` is all of it), the message says what is wrong."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(detail)
        self.path = path


class Answer(msgspec.Struct):
    """How many records were delivered, and a receipt for every record in the order given."""

    delivered: int
    receipts: list[Receipt]


class BadLine(msgspec.Struct):
    """A line that is no record: its number from 1, and what is wrong with it. Nothing of it was written."""

    line: int
    error: str
    outcome: Literal["not_written"] = "not_written"


class Made(msgspec.Struct):
    """Values that were made: each as JSON, in order; `answer` only where not all of them were delivered."""

    values: list[bytes]
    answer: Answer | None


def read_values(stream: Stream[T], body: bytes) -> list[T]:
    """Return the values of a JSON body: one, or a list. Raises `BadRecords` for the first place that is wrong."""
    values = _decode(stream, body)
    if count_quotes(body) != fewest_quotes(stream.strict_type) * len(values):
        _check_names(stream, body)
    return values


def _decode(stream: Stream[T], body: bytes) -> list[T]:
    try:
        if is_list(body):
            return stream.decode_all_strictly(body)
        return [stream.decode_strictly(body)]
    except msgspec.MsgspecError as error:
        detail, _, path = str(error).partition(" - at ")
        raise BadRecords(path.strip("`") or "$", detail) from None
    except UnicodeDecodeError:
        raise BadRecords("$", "the body is not valid UTF-8") from None
    except RecursionError:
        raise BadRecords("$", "the body is nested too deeply") from None


def _check_names(stream: Stream[Any], body: bytes) -> None:
    """Raise `BadRecords` for the first repeated field, which no decoder reports."""
    several = is_list(body)
    texts = msgspec.json.decode(body, type=list[msgspec.Raw]) if several else [body]
    for index, text in enumerate(map(bytes, texts)):
        if count_quotes(text) == fewest_quotes(stream.strict_type):  # ten times as fast as the look for its names
            continue
        try:
            check_names(text)
        except RepeatedName as error:
            raise BadRecords(f"$[{index}].{error.name}" if several else f"$.{error.name}", str(error)) from None


def is_list(body: bytes) -> bool:
    """Tell whether a JSON body is a list, if it is anything."""
    return body.lstrip(b" \t\r\n")[:1] == b"["


def to_records(
    stream: Stream[T], values: Sequence[T], largest: int, where: str = "$[{}]"
) -> tuple[list[bytes], list[bytes]]:
    """Return keys and encoded values.

    Raises `BadRecords` for the first record that is larger than `largest` bytes; `where` makes the path of its index.
    """
    keys, encoded = stream.keys_of(values), list(map(encode, values))
    for index, (key, value) in enumerate(zip(keys, encoded, strict=True)):
        if len(key) + len(value) > largest:
            size = len(key) + len(value)
            raise BadRecords(where.format(index), f"the record has {size} bytes; {largest} are taken")
    return keys, encoded


def ids_of(keys: Sequence[bytes]) -> list[str]:
    """Return what receipts say of whose they are: the keys, as text."""
    return [key.decode() for key in keys]


async def send(stream: Stream[T], publisher: Publisher, values: Sequence[T], where: str = "$[{}]") -> Answer:
    """Send values, and return within 10 s what became of each. Raises `BadRecords`, `Busy`, `OutOfReach`: none sent."""
    return await _send_records(publisher, *to_records(stream, values, publisher.largest_record, where))


async def _send_records(publisher: Publisher, keys: list[bytes], values: list[bytes]) -> Answer:
    delivery = await publisher.publish(keys, values)
    return Answer(delivery.confirmed, delivery.receipts(ids_of(keys)))


async def make(stream: Stream[T], publisher: Publisher, number: int) -> Made:
    """Make values and send them; once a chunk of them fails, those after it are not sent.

    Raises `Busy` or `OutOfReach` when not even the first could be sent.
    """
    made: list[bytes] = []
    keys: list[bytes] = []
    chunks: list[Delivery | Busy | OutOfReach] = []
    failure: Busy | OutOfReach | None = None
    generate = await asyncio.to_thread(generator_of, stream)  # the first time it imports what it needs

    async def chunk(keys: list[bytes], values: list[bytes]) -> Delivery | Busy | OutOfReach:
        if failure:
            return failure
        try:
            return await publisher.publish(keys, values)
        except (Busy, OutOfReach) as error:
            return error

    async def work() -> AsyncIterator[Coroutine[Any, Any, Delivery | Busy | OutOfReach]]:
        for start in range(0, number, CHUNK):
            values = await generate(min(CHUNK, number - start))
            of_chunk, encoded = stream.keys_of(values), list(map(encode, values))
            made.extend(encoded)
            keys.extend(of_chunk)
            yield chunk(of_chunk, encoded)

    async with aclosing(in_order(work())) as results:
        async for result in results:
            if isinstance(result, Busy | OutOfReach):
                failure = failure or result
            elif not result.complete:
                failure = failure or OutOfReach("not sent: an earlier record was not acknowledged")
            chunks.append(result)
    if isinstance(chunks[0], Busy | OutOfReach):
        raise chunks[0]
    return Made(made, _answer_of(chunks, ids_of(keys)) if failure else None)


def _answer_of(chunks: Sequence[Delivery | Busy | OutOfReach], ids: Sequence[str]) -> Answer:
    answer = Answer(0, [])
    for index, chunk in enumerate(chunks):
        chunk_ids = ids[index * CHUNK : (index + 1) * CHUNK]
        if isinstance(chunk, Delivery):
            answer.delivered += chunk.confirmed
            answer.receipts.extend(chunk.receipts(chunk_ids))
        else:
            answer.receipts.extend(Receipt(i, error=str(chunk), outcome="not_written") for i in chunk_ids)
    return answer


@dataclass
class Chunk:
    """Lines that are sent together: their records, and the answers in order; None where a record's receipt goes."""

    keys: list[bytes] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    answers: list[BadLine | None] = field(default_factory=list)


async def send_lines(
    stream: Stream[Any], publisher: Publisher, body: AsyncIterator[bytes], share: Share
) -> AsyncGenerator[list[Receipt | BadLine], None]:
    """Read values from lines of JSON, and yield the result of each line, in order, while reading on.

    Lines that arrived together are sent together. Empty lines are skipped. Raises the errors of `body`, once all lines
    before are answered; an unfinished line is not sent.
    """

    async def work() -> AsyncIterator[Coroutine[Any, Any, list[Receipt | BadLine]]]:
        number = 0
        async for ended in split_lines(body, TIMES_AS_LONG * publisher.largest_record, share):
            for start in range(0, len(ended), MAX_LINES):
                if start:
                    await asyncio.sleep(0)  # a compressed body may hold a million lines, and others run too
                lines = ended[start : start + MAX_LINES]
                chunk = read_lines(stream, lines, number + 1, publisher.largest_record)
                if not share.take(_bad_lines_weight(chunk.answers)):
                    raise Busy("too many calls are under way")
                yield _send_chunk(publisher, chunk, share)
                number += len(lines)

    async with aclosing(in_order(work())) as results:
        async for answers in results:
            yield answers
            share.give_back(_bad_lines_weight(answers))


def _bad_lines_weight(answers: Sequence[Receipt | BadLine | None]) -> int:
    return BAD_LINE_BYTES * sum(isinstance(answer, BadLine) for answer in answers)


def read_lines(stream: Stream[Any], lines: Sequence[bytes | None], first: int, largest: int) -> Chunk:
    """Return the records of some lines, and the answers to the invalid lines."""
    chunk, taken = _read_lines(stream, lines, first, largest)
    if count_quotes(b"".join(taken)) != fewest_quotes(stream.strict_type) * len(taken):
        chunk, _ = _read_lines(stream, lines, first, largest, look_twice=True)
    return chunk


def _read_lines(
    stream: Stream[Any], lines: Sequence[bytes | None], first: int, largest: int, *, look_twice: bool = False
) -> tuple[Chunk, list[bytes]]:
    """Return a chunk and its valid lines. Repeated fields are only noticed with `look_twice`."""
    chunk = Chunk()
    taken: list[bytes] = []
    for number, line in enumerate(lines, first):
        try:
            if line is None:
                raise BadRecords("$", f"the line is far longer than a record, of which {largest} bytes are taken")  # noqa: TRY301
            if line.strip():
                (key,), (value,) = to_records(stream, [decode_line(stream, line)], largest, "$")
                if look_twice:
                    _check_names(stream, line.removeprefix(BOM_UTF8))
                chunk.keys.append(key)
                chunk.values.append(value)
                chunk.answers.append(None)
                taken.append(line)
        except BadRecords as error:
            chunk.answers.append(BadLine(number, f"{error} - at `{error.path}`"))
    return chunk, taken


async def _send_chunk(publisher: Publisher, chunk: Chunk, share: Share) -> list[Receipt | BadLine]:
    if not chunk.keys:
        return _fill_in(chunk, [])
    size = TIMES_IN_MEMORY * sum(map(len, chunk.values))
    if not share.take(size):
        return _fill_in(chunk, _refused(chunk, Busy("too many calls are under way")))
    try:
        return _fill_in(chunk, (await _send_records(publisher, chunk.keys, chunk.values)).receipts)
    except (Busy, OutOfReach) as error:
        return _fill_in(chunk, _refused(chunk, error))
    finally:
        share.give_back(size)


def _refused(chunk: Chunk, error: Exception) -> list[Receipt]:
    return [Receipt(record_id, error=str(error), outcome="not_written") for record_id in ids_of(chunk.keys)]


def _fill_in(chunk: Chunk, receipts: Sequence[Receipt]) -> list[Receipt | BadLine]:
    left = iter(receipts)
    return [next(left) if answer is None else answer for answer in chunk.answers]


def decode_line(stream: Stream[T], line: bytes) -> T:
    """Return the value of one line. Raises `BadRecords`, also for a list.

    A byte order mark is skipped: concatenated files have them in the middle.
    """
    line = line.removeprefix(BOM_UTF8)
    if is_list(line):
        raise BadRecords("$", "Expected `object`, got `array`")
    return _decode(stream, line)[0]


async def split_lines(
    body: AsyncIterator[bytes], longest: int, share: Share
) -> AsyncGenerator[list[bytes | None], None]:
    """Yield the lines that each piece of the body completes; None is a line longer than `longest` bytes.

    Raises `Busy` when there is no room to keep a long unfinished line.
    """
    rest, too_long = bytearray(), False  # it grows in place: a long line may come in very many pieces
    async for piece in body:
        *ended, last = piece.split(b"\n")
        if ended:
            ended[0] = bytes(rest + ended[0])
            lines = [None if len(line) > longest else line for line in ended]
            yield [None, *lines[1:]] if too_long else lines
            rest, too_long = bytearray(), False
        if not too_long:
            rest += last
        if len(rest) > longest:
            rest, too_long = bytearray(), True
        if not share.hold(len(rest)):
            raise Busy("too many long lines are under way")
    if rest or too_long:
        yield [None if too_long else bytes(rest)]


async def in_order(work: AsyncIterator[Coroutine[Any, Any, T]]) -> AsyncGenerator[T, None]:
    """Run what `work` yields, eight at a time, and yield each result in order, as soon as it is known.

    `work` is drawn on while results are awaited, so that a slow sender is answered before it has sent all.
    """
    running: asyncio.Queue[asyncio.Task[T] | None] = asyncio.Queue(CHUNKS_ON_THE_WAY)
    started: set[asyncio.Task[T]] = set()

    async def draw() -> None:
        try:
            async for coroutine in work:
                task = asyncio.create_task(coroutine)
                started.add(task)
                task.add_done_callback(started.discard)
                await running.put(task)
        except Exception:  # who waits for the next result must be woken; it is raised there, by `await drawing`
            await running.put(None)
            raise
        await running.put(None)

    drawing = asyncio.create_task(draw())
    try:
        while task := await running.get():
            yield await task
        await drawing
    finally:
        for left in (drawing, *started):
            left.cancel()
