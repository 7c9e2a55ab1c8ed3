from collections.abc import Sequence
from dataclasses import replace

import pytest
from samples import Stored, redriven_headers, stored_event
from streams import Consumer

from apps.consumer.consuming.redrive_addressing import divide
from contracts.dead_letter import REDRIVEN_FOR, Header

pytestmark = pytest.mark.anyio

GROUP = "events-consumer"
MINE, ANOTHERS = redriven_headers(GROUP), redriven_headers("another")
PAIR, NAMED = ANOTHERS[:2], ANOTHERS[2]


def redriven(offset: int, headers: Sequence[Header], value: bytes | None = None) -> Stored:
    record = replace(stored_event(offset), headers=headers)
    return record if value is None else replace(record, value=value)


def test_records_without_headers_are_all_for_the_group_and_are_handed_on_as_they_are() -> None:
    records = [stored_event(0), stored_event(1)]
    own, others = divide(records, GROUP)
    assert own is records
    assert not others


@pytest.mark.parametrize(
    "headers",
    [ANOTHERS, [*ANOTHERS, ("added", b"behind")], [("own", None), *MINE, *ANOTHERS]],
    ids=["alone", "with others behind", "behind an older one"],
)
def test_a_record_that_was_sent_back_for_another_group_is_passed_over(headers: Sequence[Header]) -> None:
    own, others = divide([stored_event(0), redriven(1, headers), redriven(2, MINE)], GROUP)
    assert [record.offset for record in own] == [0, 2]
    assert [record.offset for record in others] == [1]


@pytest.mark.parametrize(
    "headers",
    [
        MINE,
        redriven_headers(None),
        PAIR,
        redriven_headers("another", topic="elsewhere"),
        [NAMED],
        [NAMED, *PAIR],
        [*PAIR, ("between", b"1"), NAMED],
        *([*PAIR, (REDRIVEN_FOR, content)] for content in (None, b"", b"another", b"[]", b"5", b"\xff")),
        [*PAIR, (REDRIVEN_FOR, b'{"group": "another"}')],
        [*PAIR, (REDRIVEN_FOR, b'{"group": "", "topic": "events"}')],
        [*PAIR, (REDRIVEN_FOR, b'{"group": ["another"], "topic": "events"}')],
        [*PAIR, (REDRIVEN_FOR, b'{"group": "another", "topic": "events", "unknown": ' + b"[" * 50_000)],
        [*PAIR, (REDRIVEN_FOR, b'{"group": "' + b"x" * 100_000 + b'", "topic": "events"}')],
        [(PAIR[0][0], b"no number"), PAIR[1], NAMED],
    ],
)
def test_what_does_not_clearly_name_another_group_is_for_all_groups(headers: Sequence[Header]) -> None:
    records = [redriven(0, headers)]
    assert divide(records, GROUP) == (records, ())


async def test_what_is_for_another_group_is_neither_handled_nor_dead_lettered_nor_shown_but_counted() -> None:
    consumer = Consumer(group=GROUP)
    await consumer.consume(
        stored_event(0), redriven(1, ANOTHERS), redriven(2, ANOTHERS, b"not json"), redriven(3, MINE, b"not json")
    )
    assert (len(consumer.handled), [letter.record.offset for letter in consumer.letters]) == (1, [3])
    assert consumer.shown == [0]
    counted = consumer.consumption
    assert (counted.consumed, counted.dead_lettered, counted.passed_over) == (1, 1, 2)


async def test_what_stands_behind_an_unfinished_record_is_passed_over_once_that_is_finished() -> None:
    consumer = Consumer(group=GROUP)
    consumer.writer_error = TimeoutError()
    records = redriven(0, ANOTHERS), redriven(1, (), b"not json"), redriven(2, ANOTHERS)
    await consumer.broken_off(consumer.consume(*records), lambda: consumer.consumption.retrying)
    assert consumer.consumption.passed_over == 1
    consumer.writer_error = None
    consumer.consumption.resume(accept=False)
    await consumer.consume(*records[1:])
    assert consumer.consumption.passed_over == 2


async def test_a_batch_of_nothing_but_records_for_another_group_ends_no_halt() -> None:
    consumer = Consumer(group=GROUP)
    await consumer.until_halted(consumer.consume(*(redriven(n, (), b"not json") for n in range(100))))
    consumer.consumption.resume(accept=False)
    await consumer.consume(redriven(100, ANOTHERS))
    assert (consumer.consumption.passed_over, consumer.consumption.busy_since) == (1, None)
    assert "refused again after a halt" in await consumer.until_halted(consumer.consume(redriven(101, (), b"not json")))
