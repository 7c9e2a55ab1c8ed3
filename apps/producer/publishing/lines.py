"""Send values from lines of JSON: lines are read, sent and answered in order, while more arrive."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from apps.chassis.http.admission import Share
from apps.chassis.http.repeated_names import count_quotes, fewest_quotes
from apps.producer.publishing.calls import send_records
from apps.producer.publishing.in_order import in_order
from apps.producer.publishing.publisher import Busy, OutOfReach, Publisher
from apps.producer.publishing.receipts import BadLine, Receipt, unwritten
from apps.producer.publishing.values import BadRecords, check_fields, expected_size, read_line, to_records
from contracts.stream import Stream

TIMES_AS_LONG = 6
"""How many times longer than its record a line may be: an escaped letter (`\\u0041`) takes six bytes instead of one."""
TIMES_IN_MEMORY = 6
"""Memory that a body takes while it is processed, as a multiple of its size (measured)."""
MAX_LINES = 640
"""Lines read at a time: 64 KiB of the shortest records have as many. Invalid lines may be as short as a byte."""
BAD_LINE_BYTES = 400
"""Approximate bytes of memory that the answer to a bad line takes until it is sent."""


@dataclass
class Chunk:
    """Lines that are sent together: their records, and an answer per line; None stands for the receipt of a record."""

    keys: list[bytes] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    answers: list[BadLine | None] = field(default_factory=list)


@dataclass
class Patience:
    """Whether the next chunk of a call waits for a connection: after one that found none only if patience `lasts`."""

    lasts: bool
    left: bool = True


async def send_lines(
    stream: Stream[Any], publisher: Publisher, body: AsyncIterator[bytes], share: Share, *, patient: bool = True
) -> AsyncGenerator[list[Receipt | BadLine], None]:
    """Read values from lines of JSON, and yield the result of each line, in order, while reading on.

    Lines that arrived together are sent together. Empty lines are skipped. Raises the errors of `body` after all
    earlier lines are answered; an unfinished line is not sent. Raises `Busy` when `share` has no room for the answers.
    Kafka may be out of reach: a caller that gets answers meanwhile is `patient`, and each chunk waits for a connection.
    """
    patience = Patience(patient)

    async def work() -> AsyncIterator[Coroutine[Any, Any, list[Receipt | BadLine]]]:
        number = 0
        async for ended in split_lines(body, TIMES_AS_LONG * publisher.max_record_bytes, share):
            if ended.count(b"") == len(ended):  # quickly: a small compressed body may hold sixty million
                number += len(ended)
                continue
            for start in range(0, len(ended), MAX_LINES):
                if start:
                    await asyncio.sleep(0)  # a compressed body may hold a million lines; let other tasks run
                lines = ended[start : start + MAX_LINES]
                chunk = read_lines(stream, lines, number + 1, publisher.max_record_bytes)
                if not share.take(_bad_lines_weight(chunk.answers)):
                    raise Busy("too many calls are under way")
                yield _send_chunk(publisher, chunk, share, patience)
                number += len(lines)

    async with aclosing(in_order(work())) as results:
        async for answers in results:
            yield answers
            share.give_back(_bad_lines_weight(answers))


def _bad_lines_weight(answers: Sequence[Receipt | BadLine | None]) -> int:
    return BAD_LINE_BYTES * sum(isinstance(answer, BadLine) for answer in answers)


def read_lines(stream: Stream[Any], lines: Sequence[bytes | None], first: int, max_record_bytes: int) -> Chunk:
    """Return the records of some lines, and the answers to the invalid lines."""
    chunk, taken = _read_lines(stream, lines, first, max_record_bytes)
    if count_quotes(b"".join(taken)) != fewest_quotes(stream.strict_type) * len(taken):
        chunk, _ = _read_lines(stream, lines, first, max_record_bytes, look_twice=True)
    return chunk


def _read_lines(
    stream: Stream[Any], lines: Sequence[bytes | None], first: int, max_record_bytes: int, *, look_twice: bool = False
) -> tuple[Chunk, list[bytes]]:
    """Return a chunk and its valid lines. Repeated fields are detected only with `look_twice`."""
    chunk = Chunk()
    taken: list[bytes] = []
    for number, line in enumerate(lines, first):
        try:
            if line is None:
                raise BadRecords("$", f"the line is too long for a record, {expected_size(max_record_bytes)}")  # noqa: TRY301 - a message of its own
            if line.strip():
                (key,), (value,) = to_records(stream, [read_line(stream, line)], max_record_bytes, "$")
                if look_twice:
                    check_fields(stream, line)
                chunk.keys.append(key)
                chunk.values.append(value)
                chunk.answers.append(None)
                taken.append(line)
        except BadRecords as error:
            chunk.answers.append(BadLine(number, f"{error} - at `{error.path}`"))
    return chunk, taken


async def _send_chunk(publisher: Publisher, chunk: Chunk, share: Share, patience: Patience) -> list[Receipt | BadLine]:
    size = TIMES_IN_MEMORY * sum(map(len, chunk.values))
    receipts: list[Receipt] = []
    if chunk.keys and not share.take(size):
        receipts = unwritten(chunk.keys, Busy("too many calls are under way"))
    elif chunk.keys:
        try:
            receipts = (await send_records(publisher, chunk.keys, chunk.values, patient=patience.left)).receipts
            patience.left = True
        except (Busy, OutOfReach) as error:
            patience.left = patience.lasts or isinstance(error, Busy)
            receipts = unwritten(chunk.keys, error)
        finally:
            share.give_back(size)
    left = iter(receipts)
    return [next(left) if answer is None else answer for answer in chunk.answers]


async def split_lines(
    body: AsyncIterator[bytes], max_line_bytes: int, share: Share
) -> AsyncGenerator[list[bytes | None], None]:
    """Yield the lines that each piece of the body completes; None stands for a line longer than `max_line_bytes`.

    Raises `Busy` when `share` has no room for a long unfinished line.
    """
    rest, too_long = bytearray(), False  # grows in place: a long line may come in many pieces
    async for piece in body:
        if piece.isspace() and not rest and not too_long:
            yield [b""] * piece.count(b"\n")
            rest += piece[piece.rfind(b"\n") + 1 :]
            continue
        *ended, last = piece.split(b"\n")
        if ended:
            ended[0] = bytes(rest + ended[0])
            lines = [None if len(line) > max_line_bytes else line for line in ended]
            yield [None, *lines[1:]] if too_long else lines
            rest, too_long = bytearray(), False
        if not too_long:
            rest += last
        if len(rest) > max_line_bytes:
            rest, too_long = bytearray(), True
        if not share.set_arriving(len(rest)):
            raise Busy("too many long lines are under way")
    if rest or too_long:
        yield [None if too_long else bytes(rest)]
