"""Readers search with all the connections that they may have: what others find out from Kafka meanwhile."""

import asyncio
from typing import Any

import msgspec
import pytest
from memory import Memory
from pair import PATIENCE_S, pair

from apps.chassis.kafka.log_reader import MAX_CONNECTIONS, LogReader
from apps.consumer.consuming.batch import Batch
from contracts.stream import Stream

pytestmark = pytest.mark.anyio

LETTERS = "/consumers/dead-letters"
SEARCHES = {"notes": "/consumers/messages?scope=topic&q=zzz", "notes-dlt": f"{LETTERS}?reason=zzz"}


class Note(msgspec.Struct):
    id: str


NOTES: Stream[Note] = Stream("notes", Note, key=lambda note: note.id, deletes=True)


async def handle(_: Batch[Any]) -> None: ...


@pytest.mark.parametrize("topic", SEARCHES)
async def test_operators_are_answered_while_readers_search_with_all_their_connections(
    topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searching = asyncio.Semaphore(0)

    async def search_on(*_: object) -> None:
        searching.release()
        await asyncio.Event().wait()

    monkeypatch.setattr(LogReader, "_read_pieces", search_on)
    memory = Memory()
    async with pair({NOTES: handle}, memory) as p:
        for _ in range(2):
            memory.append(NOTES.topic, 0, 0, (b"ada", b"bad", ()))
        await p.until(NOTES, dead_lettered_count=2, lag=0)
        searches = [asyncio.create_task(p.consumer.get(SEARCHES[topic])) for _ in range(MAX_CONNECTIONS)]
        try:
            async with asyncio.timeout(PATIENCE_S):
                for _ in searches:
                    await searching.acquire()
            for path, body in {
                f"{LETTERS}/redrive?dry_run=true": {"limit": 9},
                f"{LETTERS}/discard?dry_run=true": {"limit": 9},
                f"{LETTERS}/purge?dry_run=true&key=ada": None,
                "/consumers/seek?dry_run=true": {"to": "end"},
            }.items():
                answer = await p.consumer.post(path, json=body)
                assert answer.status_code == 200, (path, answer.text)
            status = (await p.consumer.get("/consumers/status")).json()
            assert (status["lag"], status["dead_letters_waiting_for_transaction"]) == (0, 0)
            refused = (await p.consumer.get(SEARCHES[topic])).json()
            assert refused["type"] == "/problems/busy"
            assert f"{MAX_CONNECTIONS} other calls read {topic} " in refused["detail"]
        finally:
            for search in searches:
                search.cancel()
            await asyncio.gather(*searches, return_exceptions=True)
