"""What a record costs, in what no machine changes: so that it does not grow unnoticed.

Counted are the bytecode instructions that the project's own code executes, and the functions that it calls, Python's
and C's. The clock is not asked. Where a change is worth its cost, or saves some, write the new numbers below.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import RecordMetadata, TopicPartition
from samples import a_person
from test_publisher import TOPIC, bench
from test_sending import pieces_of

from apps.chassis.http.admission import unbounded
from apps.chassis.internals.record_fetching import Fetched, PartitionRecords
from apps.chassis.kafka.clients import client_options, new_broker
from apps.chassis.settings import Settings
from apps.consumer.browsing.window import Window
from apps.consumer.consuming.consumption import Consumption
from apps.producer.generating.people import PersonFactory
from apps.producer.publishing.intake import make, read_values, send, send_lines
from apps.producer.publishing.publisher import LARGEST_BATCH, Publisher
from apps.producer.publishing.transport import send_client_batch
from contracts.person import PEOPLE, Person
from contracts.stream import encode

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        sys.version_info[:2] != (3, 11), reason="other versions compile the same code to other instructions and calls"
    ),
]

OURS = tuple(str(Path(__file__).parents[2] / folder) for folder in ("apps", "contracts"))
PARTITIONS = 6
PIECE = 64 * 1024
"""Bytes of a body that arrive at a time."""
MORE = 0.2
"""Share by which a record may cost more than was committed."""
FEW, MANY = 200, 600
"""Records of two runs: what the second costs more is what so many records cost; the rest is the call's own."""


class Work(NamedTuple):
    """What was executed: bytecode instructions, and calls of functions."""

    instructions: float
    calls: float


async def work_of(what: Callable[[], Awaitable[object]]) -> Work:
    """Count what the project's own code does, in all tasks, until `what` is done."""
    instructions, calls = count(), count()

    def trace(frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401 - itself
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            next(instructions)
        return trace

    def profile(frame: FrameType, event: str, _: object) -> None:
        caller = {"call": frame.f_back, "c_call": frame}.get(event)
        if caller is not None and caller.f_code.co_filename.startswith(OURS):
            next(calls)

    task = asyncio.ensure_future(what())
    before = sys.gettrace(), sys.getprofile()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        await task
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    return Work(next(instructions), next(calls))


async def work_of_a_record(what: Callable[[int], Callable[[], Awaitable[object]]]) -> Work:
    """Count what one record more costs; `what(n)` prepares the work on n records."""
    await what(FEW)()  # what is done only once is done
    few = min([await work_of(what(FEW)) for _ in range(3)])  # a garbage collection may call finalizers in between
    many = min([await work_of(what(MANY)) for _ in range(3)])
    return Work(*((b - a) / (MANY - FEW) for a, b in zip(few, many, strict=True)))


def check(found: Work, committed: Work) -> None:
    changes = [now / then - 1 for now, then in zip(found, committed, strict=True)]
    assert max(changes) <= MORE, f"a record costs {found}, and {committed} was committed"
    assert min(changes) >= -MORE, f"a record costs only {found}: write that in the place of {committed}"


class FakeClient:
    """Takes batches as aiokafka's producer does, and acknowledges each at once."""

    def create_batch(self) -> BatchBuilder:
        return BatchBuilder(LARGEST_BATCH, 0)

    async def send_batch(self, _: BatchBuilder, topic: str, *, partition: int) -> "asyncio.Future[RecordMetadata]":
        acknowledgement: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        acknowledgement.set_result(RecordMetadata(topic, partition, None, 0, None, 0, 0))
        return acknowledgement


async def work_of_producing(what: Callable[[Publisher, int], Callable[[], Awaitable[object]]]) -> Work:
    state = SimpleNamespace(producer=FakeClient())
    publisher = new_broker(client_options(Settings(), "producer")).publisher(TOPIC, batch=True)
    config = SimpleNamespace(producer=SimpleNamespace(_producer=state))
    async with bench(PARTITIONS) as b:
        b.publisher.send = send_client_batch
        b.connect(SimpleNamespace(config=config, publishers=[publisher]))
        return await work_of_a_record(lambda number: what(b.publisher, number))


def people(number: int) -> list[Person]:
    return [a_person(id=f"{i:036}") for i in range(number)]


async def test_people_that_are_made_cost_no_more_than_was_committed() -> None:
    PersonFactory.seed_random(1)
    check(await work_of_producing(lambda publisher, number: lambda: make(PEOPLE, publisher, number)), Work(115, 4))


async def test_a_list_of_people_costs_no_more_than_was_committed() -> None:
    def given(publisher: Publisher, number: int) -> Callable[[], Awaitable[object]]:
        body = encode(people(number))

        async def work() -> None:
            answer = await send(PEOPLE, publisher, read_values(PEOPLE, body))
            assert answer.delivered == number

        return work

    check(await work_of_producing(given), Work(137, 8))


async def test_people_in_lines_cost_no_more_than_was_committed() -> None:
    def given(publisher: Publisher, number: int) -> Callable[[], Awaitable[object]]:
        body = b"".join(encode(person) + b"\n" for person in people(number))
        pieces = [body[start : start + PIECE] for start in range(0, len(body), PIECE)]

        async def work() -> None:
            answers = [
                answer
                async for some in send_lines(PEOPLE, publisher, pieces_of(*pieces), unbounded())
                for answer in some
            ]
            assert len(answers) == number

        return work

    check(await work_of_producing(given), Work(377, 32))


async def test_a_person_alone_costs_no_more_than_was_committed() -> None:
    def given(publisher: Publisher, number: int) -> Callable[[], Awaitable[object]]:
        bodies = [encode(person) for person in people(number)]

        async def work() -> None:
            for body in bodies:
                await send(PEOPLE, publisher, read_values(PEOPLE, body))

        return work

    check(await work_of_producing(given), Work(1703, 118))


async def test_a_record_that_is_fetched_and_consumed_costs_no_more_than_was_committed() -> None:
    async def handle(_: Sequence[Person]) -> None:
        pass

    async def write(_: Sequence[object]) -> None:
        raise AssertionError("all are good")

    def given(number: int) -> Callable[[], Awaitable[object]]:
        batch = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 2**20)  # noqa: FBT003 - of no transaction
        for offset, person in enumerate(people(number)):
            batch.append(offset, 1_000, person.id.encode(), encode(person), [])
        fetched = bytes(batch.build())
        consumption = Consumption(PEOPLE.decode, Window(10 * number).extend, handle, write)

        async def work() -> None:
            partition = TopicPartition("people", 0)
            records = PartitionRecords(partition, Fetched(fetched), (), 0, None, None, True, 1)  # noqa: FBT003 - as aiokafka calls it
            consumption.settle(await consumption.consume(list(records)))
            assert consumption.consumed == number

        return work

    check(await work_of_a_record(given), Work(41, 2))
