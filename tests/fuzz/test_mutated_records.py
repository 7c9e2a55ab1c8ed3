import asyncio
import itertools
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, cast

import msgspec
from faststream.kafka import TestKafkaBroker
from fuzzing import Fuzzing
from mutations import mutated
from services import Pipeline, Raw, event, value_of
from services import Record as Written

from apps.chassis.internals.fetched_batches import FetchedRecord
from apps.chassis.kafka.clients import client_options, new_broker
from apps.chassis.settings import Settings
from apps.consumer.browsing.record_view import View, show
from apps.consumer.consuming.commits import Commits
from apps.consumer.consuming.consumption import Consumption
from apps.consumer.consuming.dead_letters import BadRecord
from apps.consumer.consuming.decode import sort_out
from apps.consumer.consuming.outcome import Outcome
from apps.consumer.consuming.policy import DEFAULT
from apps.consumer.consuming.subscriber import subscribe
from contracts.dead_letter import DeadLetter, describe, history, read, redrive_headers
from contracts.record import Record
from contracts.stream import encode
from tests.event import EVENTS

MAX_REAL = 3_000
"""Mutated records that go over a real Kafka at most."""


class Sorting:
    """Takes the place of a consumption: sorts the records of each batch out, and looks at what came of it."""

    def __init__(self) -> None:
        self.good = self.bad = 0
        self.policy, self.batch_records = DEFAULT, DEFAULT.batching.records
        self.settle = str

    async def consume(self, records: Sequence[Record], _: object) -> Outcome:
        """Count the good and the bad; together they are all that came, each in its order and once."""
        good, events, bad = sort_out(EVENTS.decode, records)
        wrong = iter(bad)
        right = zip(good, events, strict=True)
        for record in records:
            if show(View(EVENTS.decode), record).error is None:
                found, one = next(right)
                assert found is record
                assert EVENTS.decode(encode(one)) == one
            else:
                letter = next(wrong)
                assert letter.record is record
                assert_kept(letter)
        assert (list(right), list(wrong)) == ([], [])
        self.good += len(good)
        self.bad += len(bad)
        return Outcome(good, good)


def assert_kept(bad: BadRecord) -> None:
    """A dead letter has every byte of the record, and can be shown."""
    record, (error_type, error) = bad.record, describe(bad.error)
    _, tries, _ = history(record.headers)
    letter = DeadLetter(
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        group="group",
        error_type=error_type,
        error=error,
        tries=tries + bad.tries,
    )
    assert read(letter.key, letter.value, letter.all_headers()) == letter
    assert redrive_headers(letter)
    assert msgspec.json.encode(show(View(EVENTS.decode), record))


def batches(records: Iterator[Raw], random: Random) -> Iterator[tuple[FetchedRecord, ...]]:
    """Yield records as a client hands them over, few and many at a time."""
    offsets = itertools.count()
    while batch := tuple(
        _fetched(next(offsets), raw) for raw in itertools.islice(records, random.choice((1, 2, 10, 500)))
    ):
        yield batch


def test_no_mutated_record_is_lost_or_stops_the_parser_the_decoder_or_its_neighbours(fuzzing: Fuzzing) -> None:
    sorting = Sorting()
    broker = new_broker(client_options(Settings(), "consumer"))
    subscriber = subscribe(broker, "events", "events-consumer", cast("Consumption", sorting), cast("Commits", None))

    async def take_all() -> None:
        async with TestKafkaBroker(broker):
            for batch in batches(mutated(fuzzing.seed, fuzzing.records), Random(fuzzing.seed)):
                await subscriber.process_message(batch)

    asyncio.run(take_all())
    assert sorting.good + sorting.bad == fuzzing.records
    assert min(sorting.good, sorting.bad) > fuzzing.records / 10


def test_every_mutated_record_on_a_real_kafka_is_consumed_or_dead_lettered_byte_for_byte(
    pipeline: Pipeline, fuzzing: Fuzzing
) -> None:
    good = Raw(value_of(event("a good one")))  # one for each mutated, or the consumer would halt: that is its duty
    raws = [raw for one in mutated(fuzzing.seed + 1, min(MAX_REAL, fuzzing.records // 100)) for raw in (one, good)]
    with pipeline.consumer() as consumer:
        consumer.until_healthy()
        written = {record.offset: record for record in pipeline.write(raws)}
        status = consumer.until_consumed(len(raws))
        letters = [read(r.key, r.value, r.headers) for r in pipeline.records(pipeline.dead_letter_topic)]
        dead = {letter.offset: letter for letter in letters if letter.offset is not None}
        assert len(letters) == len(dead) == status["dead_lettered_count"]
        assert len(letters) + status["messages_consumed_count"] == len(raws)
        for offset, letter in dead.items():
            record = written[offset]
            assert (letter.key, letter.value, letter.headers) == (record.key, record.value, record.headers)
        assert dead.keys() == {
            o for o, r in written.items() if show(View(EVENTS.decode), cast("Any", _fetched(o, r))).error is not None
        }
        assert consumer.answers("/health-check", 200)
        assert consumer.get("/consumers/messages", scope="topic", limit=1_000)["messages"]
        assert consumer.letters(limit=1_000)


def _fetched(offset: int, raw: Raw | Written) -> FetchedRecord:
    return FetchedRecord("events", 0, offset, 0, raw.key, raw.value, raw.headers)
