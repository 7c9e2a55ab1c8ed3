"""Another client's open transaction on the topic of the dead letters, or on others that a service reads to an end."""

from typing import Any

import pytest
from aiokafka import TopicPartition
from memory import Memory
from pair import pair

from apps.consumer.consuming.batch import Batch
from apps.consumer.redriving.redrive import Redriver
from apps.consumer.redriving.refusals import RedriveNotNow
from tests.event import EVENTS

pytestmark = pytest.mark.anyio

DEAD, MARKS = f"{EVENTS.topic}-dlt", f"{EVENTS.topic}-dlt-redriven"
LETTERS = "/consumers/dead-letters"
SAID = f"{DEAD}: 2 records wait behind another client's open transaction, unseen until that ends"


async def handle(_: Batch[Any]) -> None: ...


async def test_dead_letters_behind_an_open_transaction_are_counted_and_named_wherever_they_are_missed() -> None:
    memory = Memory()
    async with pair({EVENTS: handle}, memory) as p:
        await p.broker.publish_batch(*[b"bad"] * 3, topic=EVENTS.topic, partition=0)
        await p.until(EVENTS, dead_lettered_count=3, lag=0, dead_letters_waiting_for_transaction=0)
        memory.hidden_from[TopicPartition(DEAD, 0)] = 1
        for path in (LETTERS, f"{LETTERS}/reasons", f"{LETTERS}?partition=0"):
            assert (await p.consumer.get(path)).json()["waiting_for_transaction"] == 2, path
        listed = (await p.consumer.get(LETTERS)).json()
        assert (len(listed["dead_letters"]), listed["notes"]) == (1, [SAID])
        other = (await p.consumer.get(f"{LETTERS}?partition=1")).json()
        assert (other["waiting_for_transaction"], other["notes"]) == (0, [])
        for action in ("redrive", "discard", "restore"):
            answer = await p.consumer.post(f"{LETTERS}/{action}?dry_run=true", json={"limit": 9})
            assert answer.json()["waiting_for_transaction"] == 2, action
        purge = await p.consumer.post(f"{LETTERS}/purge?dry_run=true&before=2020-01-01T00:00:00Z")
        assert purge.json()["waiting_for_transaction"] == 2
        status = await p.until(EVENTS, dead_letters_waiting_for_transaction=2)
        assert SAID in status["notes"]
        name = "consumer_dead_letters_waiting_for_transaction_records"
        assert f'{name}{{stream="{EVENTS.name}"}} 2.0' in (await p.consumer.get("/metrics")).text
        del memory.hidden_from[TopicPartition(DEAD, 0)]
        listed = (await p.consumer.get(LETTERS)).json()
        assert (len(listed["dead_letters"]), listed["waiting_for_transaction"], listed["notes"]) == (3, 0, [])


async def test_a_dead_letter_behind_an_open_transaction_is_not_said_to_be_missing() -> None:
    memory = Memory()
    async with pair({EVENTS: handle}, memory) as p:
        await p.broker.publish_batch(*[b"bad"] * 2, topic=EVENTS.topic, partition=0)
        await p.until(EVENTS, dead_lettered_count=2, lag=0)
        memory.hidden_from[TopicPartition(DEAD, 0)] = 1
        (one,) = p.app.state["parts"].values()
        assert isinstance(one.redriver, Redriver)
        assert await one.redriver.letters.at(0, 1) is None
        with pytest.raises(RedriveNotNow, match="waits for the end of a transaction that began at offset 1"):
            await one.redriver.letters.check_visible(0, 1)
        await one.redriver.letters.check_visible(0, 2)


async def test_a_list_says_that_what_was_sent_back_may_be_hidden_by_an_open_transaction() -> None:
    memory = Memory()
    async with pair({EVENTS: handle}, memory) as p:
        memory.append(MARKS, 0, 0, (b"0", b"[[0,1]]", ()))
        memory.hidden_from[TopicPartition(MARKS, 0)] = 0
        (note,) = (await p.consumer.get(LETTERS)).json()["notes"]
        assert (
            note
            == f"{MARKS}: a transaction has not ended, and hides which dead letters were sent back or discarded last"
        )


async def test_a_search_of_the_topic_counts_what_an_open_transaction_hides_from_it() -> None:
    memory = Memory()
    async with pair({EVENTS: handle}, memory) as p:
        await p.broker.publish_batch(*[b"bad"] * 3, topic=EVENTS.topic, partition=0)
        await p.until(EVENTS, dead_lettered_count=3, lag=0)
        memory.hidden_from[TopicPartition(EVENTS.topic, 0)] = 1
        found = (await p.consumer.get("/consumers/messages?scope=topic")).json()
        assert (len(found["messages"]), found["waiting_for_transaction"]) == (1, 2)
