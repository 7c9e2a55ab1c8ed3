"""What an instance still shows of records that were deleted, also when another instance consumed the deletion."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata
from memory import Memory
from pair import Pair, pair

from apps.consumer.consuming.batch import Batch
from apps.consumer.redriving.purge import Purged, PurgedInPart, Purger
from apps.producer import routes
from apps.producer.publishing.receipts import Answer, Receipt
from contracts.stream import Deletion, Stream, encode

pytestmark = pytest.mark.anyio

MARK = "Muster-Person"
ODD_KEYS = ("/ada", "ada/", "x/../ada", "//ada", "..", "a/generate", "generate", "a b+c&d=%2F#?", "a\ufffdb")
NO_KEYS = ("", "?key=", "?key=%FF", "?key=a%FF%EF%BF%BD", "?key=ada&key=bob", "?key=ada&number=1")


class Guest(msgspec.Struct):
    number: str
    name: str


GUESTS: Stream[Guest] = Stream("guests", Guest, key=lambda guest: guest.number, deletes=True)


async def refuse_the_rude(batch: Batch[Guest | Deletion]) -> None:
    """Reject each rude guest, with an error that quotes the name; and the deletion of those who owe something."""
    for record in batch:
        if isinstance(record.value, Deletion) and record.key == b"debtor":
            batch.reject(record, "a bill refers to it")
        if isinstance(record.value, Guest) and record.value.name.startswith("rude"):
            batch.reject(record, f"{record.value.name} is refused")


class Hotel:
    """A consumer of guests, and its Kafka, in which another instance may have a part."""

    def __init__(self, p: Pair, memory: Memory) -> None:
        self.p = p
        self._memory = memory
        self.topic = "guests"

    def write(self, key: str, name: str | None, partition: int = 0) -> None:
        value = None if name is None else encode(Guest(key, name))
        self._memory.append(self.topic, partition, int(time.time() * 1_000), (key.encode(), value, ()))

    def commit_elsewhere(self, partition: int = 0) -> None:
        """Commit all records of a partition, as another instance does that has consumed them."""
        tp = TopicPartition(self.topic, partition)
        self._memory.committed[tp] = OffsetAndMetadata(len(self._memory.records[tp]), "")

    def compact_away(self, offset: int, partition: int = 0) -> None:
        """Leave nothing of a record on the topic."""
        records = self._memory.records[TopicPartition(self.topic, partition)]
        records[offset] = msgspec.structs.replace(records[offset], key=b"compacted", value=None, headers=())

    async def consumed(self, number: int) -> None:
        await self.p.until(GUESTS, messages_consumed_count=number, lag=0)

    async def shown(self, **query: str) -> list[tuple[str, Any]]:
        """Return the keys and values of the window."""
        answer = (await self.p.consumer.get("/consumers/messages", params={"limit": "100", **query})).json()
        return [(one["key"], one["value"]) for one in answer["messages"]]

    async def until_shown(self, *keys: str) -> None:
        async with asyncio.timeout(30):
            while sorted(key for key, _ in await self.shown()) != sorted(keys):  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0.001)


@asynccontextmanager
async def hotel() -> AsyncIterator[Hotel]:
    memory = Memory()
    async with pair({GUESTS: refuse_the_rude}, memory) as p:
        yield Hotel(p, memory)


async def test_a_stopped_instance_shows_no_record_whose_deletion_another_one_may_consume() -> None:
    async with hotel() as own:
        own.write("ada", MARK)
        await own.consumed(1)
        assert [key for key, _ in await own.shown()] == ["ada"]
        stopped = (await own.p.consumer.post("/consumers/stop")).json()
        assert (stopped["messages_consumed_count"], await own.shown(), await own.shown(key="ada")) == (1, [], [])
        own.write("ada", None)
        own.write("bob", "Bob")
        own.commit_elsewhere()
        await own.p.consumer.post("/consumers/start")
        await own.until_shown("ada", "ada", "bob")
        assert await own.shown(key="ada") == [("ada", None)] * 2
        await own.consumed(1)


async def test_after_a_start_what_was_compacted_away_meanwhile_is_not_shown_again() -> None:
    async with hotel() as own:
        own.write("ada", MARK)
        own.write("bob", "Bob")
        await own.consumed(2)
        await own.p.consumer.post("/consumers/stop")
        own.compact_away(0)
        own.commit_elsewhere()
        await own.p.consumer.post("/consumers/start")
        await own.until_shown("bob", "compacted")


async def test_the_last_error_quotes_no_value_once_a_deletion_was_consumed_or_may_be_elsewhere() -> None:
    async def last_error() -> str:
        status = (await own.p.consumer.get("/consumers/status")).json()
        return str(status["last_error"])

    async with hotel() as own:
        own.write("ada", f"rude {MARK}")
        await own.p.until(GUESTS, dead_lettered_count=1, lag=0)
        assert MARK in await last_error()
        own.write("bob", "Bob")
        await own.consumed(1)
        assert MARK in await last_error()
        own.write("ada", None)
        await own.consumed(2)
        assert MARK not in (quoted := await last_error())
        assert "guests-0 offset 0: Reject" in quoted
        own.write("eve", f"rude {MARK}", partition=1)
        await own.p.until(GUESTS, dead_lettered_count=2, lag=0)
        assert MARK in await last_error()
        await own.p.consumer.post("/consumers/stop")
        assert MARK not in await last_error()


async def test_the_window_keeps_nobody_whose_deletion_the_handler_has_not_carried_out() -> None:
    async with hotel() as own:
        own.write("debtor", MARK)
        own.write("bob", "Bob")
        await own.consumed(2)
        own.write("debtor", None)
        own.write("debtor", "a new one")
        await own.p.until(GUESTS, dead_lettered_count=1, lag=0)
        shown = [(key, value and value["name"]) for key, value in await own.shown()]
    assert shown == [("debtor", None), ("bob", "Bob"), ("debtor", None), ("debtor", "a new one")]


async def test_the_last_error_quotes_no_value_once_a_deletion_was_dead_lettered() -> None:
    async with hotel() as own:
        own.write("debtor", None)
        own.write("ada", f"rude {MARK}", partition=1)
        status = await own.p.until(GUESTS, dead_lettered_count=2, lag=0)
    assert MARK not in str(status)


async def test_a_halted_instance_quotes_a_record_until_another_one_has_consumed_it() -> None:
    async with hotel() as own:
        for number in range(150):
            own.write(f"guest-{number}", f"rude {MARK}")
        halted = await own.p.until(GUESTS, state="halted")
        assert MARK in halted["last_error"]
        await own.p.consumer.post("/consumers/stop")
        own.write("bob", None, partition=1)
        own.commit_elsewhere(partition=1)
        assert MARK in str(await own.p.until(GUESTS, state="halted"))
        own.commit_elsewhere()
        status = await own.p.until(GUESTS, state="halted", lag=0)
    assert MARK not in str(status)
    assert "100 consecutive records were refused" in status["last_error"]
    assert status["last_error"].endswith("guests-0 offset 99: Reject")


async def test_a_purge_in_part_is_answered_with_what_was_purged(monkeypatch: pytest.MonkeyPatch) -> None:
    async def purge_some(*_: object) -> Purged:
        raise PurgedInPart("dead letter 0/2 is too large", Purged(3, 2, {0: 7}))

    monkeypatch.setattr(Purger, "purge", purge_some)
    async with hotel() as own:
        answer = await own.p.consumer.post("/consumers/dead-letters/purge", params={"key": "ada"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "dead letter 0/2 is too large")
    assert {"purged": 3, "written_again": 2, "next": "0-7"}.items() <= answer.json().items()


async def test_a_deletion_that_the_handler_has_not_carried_out_is_kept_by_the_purge_of_its_key() -> None:
    async with hotel() as own:
        own.write("debtor", f"rude {MARK}")
        own.write("debtor", None)
        await own.p.until(GUESTS, dead_lettered_count=2, lag=0)
        query = {"key": "debtor", "dry_run": "true"}
        purge = await own.p.consumer.post("/consumers/dead-letters/purge", params=query)
    assert (purge.json()["would_purge"], purge.json()["kept_deletions"]) == (1, 1), purge.text


async def test_a_purge_does_not_give_up_the_deletions_of_a_group_that_has_consumers() -> None:
    async with hotel() as own:
        query = {"key": "ada", "retired_group": "guests-consumer"}
        refused = await own.p.consumer.post("/consumers/dead-letters/purge", params=query | {"dry_run": "true"})
        assert refused.status_code == 409, refused.text
        assert "the group guests-consumer is not retired (Stable)" in refused.json()["detail"]
        refused = await own.p.consumer.post("/consumers/dead-letters/purge", params=query | {"retired_group": ""})
        assert refused.status_code == 400, refused.text


async def test_any_key_is_deleted_by_a_query_and_none_that_is_not_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    deleted = []

    async def delete(_: object, key: str) -> Answer:
        deleted.append(key)
        return Answer(1, [Receipt(key, 0, 7)])

    monkeypatch.setattr(routes, "send_deletion", delete)
    path = "/producers/guests"
    async with hotel() as own:
        answers = [await own.p.producer.delete(path, params={"key": key}) for key in ODD_KEYS]
        assert [answer.status_code for answer in answers] == [201] * len(ODD_KEYS)
        refused = [await own.p.producer.delete(f"{path}{query}") for query in NO_KEYS]
        assert [answer.status_code for answer in refused] == [400] * len(NO_KEYS)
    assert deleted == [*ODD_KEYS]
