"""A dead letter has the stack of the handler that raised, and is never too large because of it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from samples import Stored
from streams import Stream

from apps.chassis.kafka.clients import client_options, size_of_batch
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.settings import Settings
from apps.consumer.consuming.batch import Batch
from apps.consumer.consuming.dead_letters import BadRecord, DeadLetters
from apps.consumer.consuming.each import each
from contracts.dead_letter import DeadLetter, Header, read
from tests.event import Event

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_stacks")]


COLUMNS: dict[str, str] = {}


def save(event: Event) -> None:
    if event.id == "bad":
        try:
            COLUMNS["no column for Ada"]
        except KeyError as error:
            raise ConnectionError("x" * 100_000) from error


async def raising(batch: Batch[Event]) -> None:
    for event in batch.values:
        save(event)


async def naming(batch: Batch[Event]) -> None:
    for record in batch:
        try:
            save(record.value)
        except ConnectionError as error:
            batch.fail(record, error)


@each()
async def one_by_one(event: Event, _: object) -> None:
    save(event)


class Written:
    """A producer that keeps the value and the headers of what it writes."""

    def __init__(self, **_: object) -> None: ...

    value: bytes | None = None
    headers: Sequence[Header] = ()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def partitions_for(self, _: str) -> set[int]:
        return {0}

    def create_batch(self) -> "Written":
        return self

    def append(self, *, value: bytes | None, headers: Sequence[Header], **_: object) -> bool:
        Written.value, Written.headers = value, headers
        return True

    async def send_batch(self, *_: object, **__: object) -> "asyncio.Future[None]":
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        return sent


class OldCluster(Cluster):
    """Gives topics no ids."""

    async def topic_id(self, topic: str) -> None: ...


async def letter_of(bad: BadRecord, max_message_bytes: int = 1_000_000) -> DeadLetter:
    """Return the dead letter that is written of a bad record."""
    options = client_options(Settings(), "consumer")
    cluster = OldCluster(options, [])
    cluster.configs["events-dlt"] = {"max.message.bytes": str(max_message_bytes)}
    await DeadLetters(options, "events-dlt", cluster, "group", Written).write([bad])
    return read(bad.record.key, Written.value, Written.headers)


async def bad_of(handler: Any, *ids: str) -> BadRecord:  # noqa: ANN401 - of any kind
    stream = Stream(handler)
    stream.add("good", *ids, "last")
    await stream.consume(turns=5)
    (bad,) = stream.letters
    return bad


@pytest.mark.parametrize("handler", [raising, naming, one_by_one])
async def test_a_dead_letter_has_the_stack_of_its_error_and_of_what_led_to_it(handler: Any) -> None:  # noqa: ANN401 - likewise
    stack = str((await letter_of(await bad_of(handler, "bad"))).stack)
    first, last = stack.split("KeyError: 'no column for Ada'\n")
    for part, line in ((first, 'COLUMNS["no column'), (last, "raise ConnectionError")):
        assert part.startswith("Traceback (most recent call last):\n")
        assert line in part
    assert "in save" in last
    assert "apps/consumer/consuming" not in stack, "only the handler's own code"
    assert len(stack) < 3_000


async def test_a_stack_of_any_depth_keeps_its_beginning_and_its_end() -> None:
    stack = str((await letter_of(await bad_of(recursing_in_turn, "bad"))).stack)
    assert len(stack) <= 4_010
    assert stack.startswith("Traceback")
    assert stack.endswith("RecursionError: too deep\n")


async def recursing_in_turn(batch: Batch[Event], depth: int = 0) -> None:
    if depth == 200:
        raise RecursionError("too deep")
    if any(event.id == "bad" for event in batch.values):
        await (recursing_in_turn if depth % 2 else another_turn)(batch, depth + 1)


async def another_turn(batch: Batch[Event], depth: int) -> None:
    await recursing_in_turn(batch, depth)


async def test_a_record_that_was_refused_without_an_error_that_was_raised_has_no_stack() -> None:
    async def rejecting(batch: Batch[Event]) -> None:
        for record in batch:
            if record.value.id == "bad":
                batch.reject(record, "not taken")

    assert (await letter_of(await bad_of(rejecting, "bad"))).stack is None
    undecodable = BadRecord(Stored(value=b"no event"), ValueError("wrong"), tries=1)
    assert (await letter_of(undecodable)).stack is None


async def test_a_stack_never_makes_a_dead_letter_too_large() -> None:
    bad = await bad_of(raising, "bad")
    written = await letter_of(bad)
    size = size_of_batch(bad.record.key, bad.record.value, Written.headers)
    assert (await letter_of(bad, size)).stack == written.stack is not None
    assert (await letter_of(bad, size - 1)).stack is None
