"""Calls that read the same of Kafka at the same time."""

import asyncio
from itertools import count

import pytest

from apps.chassis.shared_reads import SharedReads

pytestmark = pytest.mark.anyio


class Kafka:
    """Answers reads by their number, once `answers` is set."""

    def __init__(self) -> None:
        self.reads = SharedReads()
        self.numbers = count()
        self.answers = asyncio.Event()
        self.error: Exception | None = None

    async def _answer(self) -> int:
        number = next(self.numbers)
        await self.answers.wait()
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        return number

    async def ask(self, callers: int, thing: str = "lag") -> list[asyncio.Task[int]]:
        tasks = [asyncio.create_task(self.reads.read(thing, self._answer)) for _ in range(callers)]
        await asyncio.sleep(0)
        return tasks


async def test_those_who_wait_share_one_read_that_begins_after_they_asked() -> None:
    kafka = Kafka()
    tasks = [*await kafka.ask(1), *await kafka.ask(9)]
    other = await kafka.ask(1, "group")
    kafka.answers.set()
    assert await asyncio.gather(*tasks) == [0, *[2] * 9]
    assert await other[0] == 1
    assert await (await kafka.ask(1))[0] == 3


async def test_those_who_wait_are_told_the_error_of_the_read_under_way() -> None:
    kafka = Kafka()
    kafka.error = TimeoutError("Kafka did not answer")
    tasks = await kafka.ask(5)
    kafka.answers.set()
    assert await asyncio.gather(*tasks, return_exceptions=True) == [kafka.error] * 5
    assert next(kafka.numbers) == 1


async def test_when_the_caller_whose_call_reads_has_gone_another_one_reads() -> None:
    kafka = Kafka()
    first, second, third = await kafka.ask(3)
    first.cancel()
    second.cancel()
    kafka.answers.set()
    assert await third == 1
