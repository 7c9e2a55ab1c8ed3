import asyncio
import gc
import logging
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, UnknownError
from faststream._internal.endpoint.subscriber.utils import MultiLock
from faststream.kafka import TestKafkaBroker
from faststream.kafka.subscriber.usecase import BatchSubscriber
from hypothesis import given
from hypothesis import strategies as st
from samples import EVENT, LONG, Stored, as_json, everything_else_has_run, stored_event, until
from streams import Consumer

from apps.chassis.internals.fetched_batches import OversizedRecord
from apps.chassis.internals.record_fetching import PassedOver
from apps.chassis.kafka.client_journal import ClientJournal
from apps.chassis.kafka.clients import client_options, new_broker
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.observability.logs import JsonFormatter
from apps.chassis.settings import Settings
from apps.consumer.browsing.record_view import View, show
from apps.consumer.browsing.window import Window
from apps.consumer.consuming.batch import Batch, Reject
from apps.consumer.consuming.commit_metadata import MARK
from apps.consumer.consuming.commits import Commits
from apps.consumer.consuming.consumption import MAX_REASONS, Consumption, Halted
from apps.consumer.consuming.decode import Tombstone, is_deletion, sort_out
from apps.consumer.consuming.stuck_loop import STALE_S, why_stuck
from apps.consumer.consuming.subscriber import ConsumeLoop, FetchedBatch, records_waiting, subscribe
from apps.consumer.operating.control import Control
from contracts.record import Record
from contracts.stream import DELETION, Stream, encode
from tests.event import EVENTS, Event
from tests.fakes import GroupMember

pytestmark = pytest.mark.anyio

TOPIC, GROUP = "events", "events-consumer"
BAD_VALUES = {
    "tombstone": None,
    "empty": b"",
    "no JSON": b"not json",
    "a number": b"5",
    "a list": b"[" + as_json() + b"]",
    "a missing field": b'{"id": "1"}',
    "a wrong type": as_json(number="36"),
    "out of range": as_json(number=151),
    "not UTF-8": as_json().replace(b"Ada", b"\xff"),
    "binary": bytes(range(256)),
    "nested deeply": b'{"id":' + b"[" * 100_000,
    "an unknown field nested deeply": b'{"unknown":' + b"[" * 100_000,
}


class Member(Consumer):
    """A consumer that is a member of a group, over a broker in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.client = GroupMember()
        self.commits = no_commits()
        self.broker = new_broker(client_options(Settings(), "consumer"))
        self.subscriber = subscribe(self.broker, TOPIC, GROUP, self.consumption, self.commits)

    @property
    def loop(self) -> ConsumeLoop:
        return cast("ConsumeLoop", self.subscriber._listener)

    async def process(self, *records: Stored) -> None:
        """Process a batch as FastStream hands it over."""
        await self.subscriber.process_message(records)


@pytest.fixture
async def consumer() -> AsyncIterator[Member]:
    member = Member()
    async with asyncio.timeout(LONG), TestKafkaBroker(member.broker):
        member.subscriber.consumer = cast("Any", member.client)
        yield member


@contextmanager
def said_by(formatter: logging.Formatter) -> Iterator[list[str]]:
    """Collect the lines of the log as a service writes them: at once."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(formatter.format(record))  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger().removeHandler(handler)


def no_commits() -> Commits:
    """Return the commits of a group that has committed nothing, on a topic without ends."""

    async def nothing(*_: object) -> dict[int, Any]:
        return {}

    return Commits(nothing, nothing)


def subscriber_of(consumption: Consumption, commits: Commits) -> BatchSubscriber:
    return subscribe(new_broker(client_options(Settings(), "consumer")), TOPIC, GROUP, consumption, commits)


def bad_record(offset: int, value: bytes | None = b"not json") -> Stored:
    return Stored(offset=offset, value=value)


@given(st.lists(st.builds(Stored, key=st.none() | st.binary(), value=st.none() | st.binary(), offset=st.integers())))
def test_no_record_whatever_it_holds_stops_its_neighbours(records: list[Stored]) -> None:
    ada = Stored(value=encode(EVENT))
    good, events, bad = sort_out(EVENTS.decode, [*records, ada])
    assert list(good) == [ada]
    assert events == [EVENT]
    assert [letter.record for letter in bad] == records
    assert all(letter.tries == 1 for letter in bad)


@pytest.mark.parametrize(
    ("value", "said"),
    [(b'{"id": "\\ud800"', "truncated"), (encode(EVENT)[:-2] + b'\\ud800"}', "half of a surrogate pair at the end")],
)
def test_a_letter_gives_the_true_reason_for_half_of_a_surrogate_pair(value: bytes, said: str) -> None:
    _, _, (bad,) = sort_out(EVENTS.decode, [Stored(value=value)])
    assert isinstance(bad.error, msgspec.DecodeError)
    assert said in str(bad.error)


@given(st.lists(st.booleans(), max_size=40))
def test_good_and_bad_records_are_each_kept_in_their_order(pattern: list[bool]) -> None:
    records = [stored_event(i) if is_good else bad_record(i) for i, is_good in enumerate(pattern)]
    good, events, bad = sort_out(EVENTS.decode, records)
    assert [record.offset for record in good] == [i for i, is_good in enumerate(pattern) if is_good]
    assert [event.id for event in events] == [f"event-{record.offset}" for record in good]
    assert [letter.record.offset for letter in bad] == [i for i, is_good in enumerate(pattern) if not is_good]


@pytest.mark.parametrize("value", BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_what_is_no_event_is_bad_and_says_why(value: bytes | None) -> None:
    record = bad_record(1, value)
    good, events, bad = sort_out(EVENTS.decode, [stored_event(0), record, stored_event(2)])
    assert [found.offset for found in good] == [0, 2]
    assert [event.id for event in events] == ["event-0", "event-2"]
    ((found, error, tries, *_),) = bad
    assert found is record
    assert str(error)
    assert tries == 1


def test_an_event_with_a_null_key_or_more_fields_is_good() -> None:
    records = [Stored(key=None, value=as_json()), Stored(offset=1, value=as_json(no_field_of_anyone="Countess"))]
    good, events, bad = sort_out(EVENTS.decode, records)
    assert (list(good), events, bad) == (records, [EVENT, EVENT], [])


async def test_of_a_batch_the_handler_gets_the_good_and_the_dead_letters_the_bad(consumer: Member) -> None:
    records = [stored_event(0), bad_record(1), stored_event(2), bad_record(3, None), stored_event(4)]
    await consumer.process(*records)
    assert [event.id for event in consumer.handled] == ["event-0", "event-2", "event-4"]
    assert [letter.record for letter in consumer.letters] == [records[1], records[3]]
    assert consumer.counters == (3, 2)
    assert consumer.shown == [0, 2, 4]
    assert consumer.consumption.last_error is not None
    assert "events-0 offset 3" in consumer.consumption.last_error


async def test_records_published_on_the_topic_arrive_at_the_handler(consumer: Member) -> None:
    values = [encode(EVENT), b"5", b"", as_json(number="36"), as_json(id="2")]
    await consumer.broker.publish_batch(*values, topic=TOPIC)
    await consumer.broker.publish(None, TOPIC, key=b"deleted")
    await consumer.broker.publish_batch(encode(EVENT), topic="another topic")
    assert [event.id for event in consumer.handled] == [EVENT.id, "2"]
    assert [letter.record.value for letter in consumer.letters] == [b"5", b"", as_json(number="36"), None]


async def test_a_consumed_batch_does_not_hold_itself_until_a_garbage_collection(consumer: Member) -> None:
    await consumer.process(stored_event(0), stored_event(1))
    batches = [one for one in gc.get_objects() if type(one) is FetchedBatch]  # the test broker keeps them
    assert batches
    for batch in batches:
        caches = [kept for kept in vars(batch).values() if isinstance(kept, dict)]
        assert batch not in [kept for cache in caches for kept in cache.values()]


@pytest.mark.parametrize(
    "headers",
    [
        (("trace", None),),
        (("trace", b"\x00\xff\xfe"),),
        (("content-type", b"\xff"), ("correlation_id", None), ("reply_to", b"\xff")),
        (("same", b"1"), ("same", None), ("", b"")),
    ],
    ids=["null", "binary", "of FastStream itself", "repeated"],
)
async def test_a_null_or_binary_header_stops_nobody(
    headers: tuple[tuple[str, bytes | None], ...], consumer: Member
) -> None:
    good, bad = stored_event(0), bad_record(1)
    good.headers = bad.headers = headers
    await consumer.process(good, bad, stored_event(2))
    assert [event.id for event in consumer.handled] == ["event-0", "event-2"]
    assert [letter.record.headers for letter in consumer.letters] == [headers]


async def test_the_handler_comes_before_the_dead_letters(consumer: Member) -> None:
    await consumer.process(bad_record(0), stored_event(1))
    assert consumer.events == ["handler", "dead letters"]


async def test_neither_the_handler_nor_the_dead_letters_are_bothered_with_nothing(consumer: Member) -> None:
    await consumer.process(stored_event(0))
    await consumer.process(bad_record(1))
    assert consumer.events == ["handler", "dead letters"]
    assert consumer.counters == (1, 1)


async def test_while_the_handler_fails_nothing_is_written_counted_or_shown(consumer: Member) -> None:
    consumer.handler_error = RuntimeError("the database is down")
    for _ in range(5):
        await consumer.process(stored_event(0), bad_record(1))
    assert set(consumer.events) == {"handler"}
    assert consumer.counters == (0, 0)
    assert consumer.shown == []
    consumer.handler_error = None
    await consumer.process(stored_event(0), bad_record(1))
    assert [event.id for event in consumer.handled] == ["event-0"]
    assert [letter.record.offset for letter in consumer.letters] == [1]
    assert consumer.counters == (1, 1)
    assert consumer.shown == [0]


async def test_a_failing_batch_that_is_given_up_is_not_committed_and_leaves_nothing_behind(consumer: Member) -> None:
    consumer.handler_error = RuntimeError("the database is down")
    await consumer.broken_off(consumer.process(stored_event(0), bad_record(1)), lambda: consumer.events)
    assert consumer.letters == []
    assert consumer.counters == (0, 0)
    assert consumer.shown == []


async def test_a_batch_whose_dead_letters_cannot_be_written_is_given_up_at_its_first_bad_record(
    consumer: Member,
) -> None:
    consumer.writer_error = TimeoutError()
    await consumer.broken_off(
        consumer.process(stored_event(0), bad_record(1)),
        lambda: "dead letters" in consumer.events,
    )
    assert consumer.counters == (1, 0), "the record before it is done"
    assert consumer.shown == [0]


def test_a_tombstone_is_a_deletion_only_where_the_stream_takes_deletions() -> None:
    deletable = Stream("events", Event, key=lambda event: event.id, deletes=True)
    records = [stored_event(0), Stored(offset=1, value=None), bad_record(2)]
    good, values, bad = sort_out(deletable.decode, records)
    assert (good, values[1:], [one.record for one in bad]) == (records[:2], [DELETION], records[2:])
    oversized = OversizedRecord("events", 0, 3, 0, b"key", None, (), "too large")
    no_deletions: list[Record] = [oversized, Stored(value=None, key=None), Stored(value=None, key=b"")]
    for one in no_deletions:
        assert sort_out(deletable.decode, [one])[0] == []
        assert not show(View(deletable.decode), one).deleted
        assert not is_deletion(deletable.decode, one)
    assert [is_deletion(deletable.decode, one) for one in records] == [False, True, False]
    assert not is_deletion(EVENTS.decode, records[1])
    _, _, refused = sort_out(EVENTS.decode, records[:2])
    assert [type(one.error) for one in refused] == [Tombstone]
    assert (show(View(deletable.decode), records[1]).deleted, show(View(EVENTS.decode), records[1]).deleted) == (
        True,
        False,
    )


async def test_who_is_rejected_by_the_handler_is_dead_lettered_among_the_bad_in_the_order_of_the_topic(
    consumer: Member,
) -> None:
    consumer.rejected = {"event-2"}
    records = [stored_event(0), bad_record(1), stored_event(2), bad_record(3), stored_event(4)]
    await consumer.process(*records)
    assert [event.id for event in consumer.handled] == ["event-0", "event-4"]
    assert [letter.record for letter in consumer.letters] == records[1:4]
    assert isinstance(consumer.letters[1].error, Reject)
    assert consumer.letters[1].tries > 1
    assert consumer.counters == (2, 3)
    assert consumer.shown == [0, 4]


async def test_too_many_bad_records_in_a_row_halt_the_consumer_and_none_of_the_batch_is_dead_lettered(
    consumer: Member,
) -> None:
    assert "100 consecutive records were refused" in await consumer.until_halted(
        consumer.process(*map(bad_record, range(100)))
    )
    assert consumer.letters == []
    assert consumer.counters == (0, 0)
    with pytest.raises(Halted):
        await consumer.process(stored_event(100))
    assert consumer.handled == []
    consumer.consumption.resume(accept=True)
    await consumer.process(*map(bad_record, range(100)))
    assert consumer.counters == (0, 100)


async def test_once_bad_records_were_accepted_a_batch_without_any_ends_that(consumer: Member) -> None:
    consumer.consumption.resume(accept=True)
    await consumer.process(*map(bad_record, range(150)))
    await consumer.process(stored_event(150))
    await consumer.until_halted(consumer.process(*map(bad_record, range(151, 251))))
    assert consumer.counters == (1, 150)


async def test_what_is_accepted_of_a_partition_holds_until_that_one_had_only_good_ones(consumer: Member) -> None:
    consumer.consumption.resume(accept=True)
    await consumer.process(*map(bad_record, range(150)))
    await consumer.process(Stored(partition=1, value=encode(EVENT)))
    await consumer.process(*map(bad_record, range(150, 300)))
    assert consumer.counters == (1, 300)


async def test_what_is_accepted_of_a_partition_ends_when_none_of_its_records_waits(consumer: Member) -> None:
    consumer.consumption.resume(accept=True)
    await consumer.process(*map(bad_record, range(150)))
    consumer.consumption.acceptance.note_recovered({0}, {0, 1})
    assert consumer.consumption.acceptance.is_on, "partition 1 may have records that wait"
    await consumer.until_halted(consumer.process(*map(bad_record, range(150, 250))))
    assert consumer.counters == (0, 150)
    consumer.consumption.acceptance.note_recovered({1}, {0, 1})
    assert not consumer.consumption.acceptance.is_on


async def test_records_wait_behind_the_position_of_a_partition_that_is_read() -> None:
    client = GroupMember({0: 5, 1: 5})
    assert await records_waiting(cast("Any", client)) == {}, "no fetch has returned"
    ends = {0: 5, 1: 6}
    client.last_stable_offset = lambda tp: ends[tp.partition]  # type: ignore[method-assign, assignment]  # what was fetched
    first, second = (TopicPartition(TOPIC, number) for number in (0, 1))
    assert await records_waiting(cast("Any", client)) == {first: False, second: True}
    client.paused = lambda: {second}  # type: ignore[method-assign]  # by an operator
    assert await records_waiting(cast("Any", client)) == {first: False}


async def test_a_batch_in_flight_for_longer_than_kafka_waits_is_stuck() -> None:
    async def never(_: Batch[Event]) -> None:
        await asyncio.Event().wait()

    consumption, commits = (
        Consumption(EVENTS.decode, Window(10).extend, never, Consumer().write),
        no_commits(),
    )
    broker = new_broker(client_options(Settings(), "consumer"))
    subscriber = subscribe(broker, TOPIC, GROUP, consumption, commits)
    async with asyncio.timeout(LONG), TestKafkaBroker(broker):
        subscriber.consumer, subscriber.lock = cast("Any", object()), MultiLock()
        handling = asyncio.create_task(subscriber.process_message((stored_event(0),)))
        await until(lambda: consumption.busy_since)
        assert why_stuck(subscriber, consumption, commits) is None
        assert "the in-flight batch" in str(why_stuck(subscriber, consumption, commits, max_poll_interval_s=0))
        handling.cancel()


async def test_a_clock_that_is_set_forward_makes_no_batch_old(
    consumer: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, now = asyncio.Event(), time.time

    async def commit(_: object) -> None:
        await may_end.wait()

    consumer.client.positions, consumer.subscriber.lock = {0: 1}, MultiLock()
    consumer.client.commit = commit  # type: ignore[assignment, method-assign]  # Kafka does not answer yet
    consuming = asyncio.create_task(consumer.process(stored_event(0)))
    await until(lambda: consumer.handled)
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: now() + 3 * 60 * 60)
        assert consumer.consumption.batch_age < LONG
        assert why_stuck(consumer.subscriber, consumer.consumption, consumer.commits) is None
    may_end.set()
    await consuming


async def test_a_commit_that_fails_for_long_is_an_ailment_until_it_is_taken(consumer: Member) -> None:
    consumer.client.positions, consumer.client.errors = {0: 1}, [UnknownError()]
    consumer.subscriber.lock = MultiLock()
    consuming = asyncio.create_task(consumer.process(stored_event(0)))
    await until(lambda: consumer.commits.retrying_since)
    assert "UnknownError" in str(why_stuck(consumer.subscriber, consumer.consumption, consumer.commits, stale_s=0))
    await consuming
    assert consumer.commits.retrying_since is None


async def test_a_commit_that_kafka_does_not_answer_says_so(consumer: Member) -> None:
    consumer.client.positions, consumer.client.errors = {0: 1}, [TimeoutError()]
    consuming = asyncio.create_task(consumer.process(stored_event(0)))
    await until(lambda: consumer.commits.error)
    assert consumer.commits.error == "Kafka did not answer a commit within 5 s"
    await consuming


def idle(client: Any) -> tuple[BatchSubscriber, Consumption, Commits]:  # noqa: ANN401 - a group member
    """Return what a watch looks at of a client that has been idle for ever."""
    consumption, commits = Consumer().consumption, no_commits()
    consumption.idle_since = -math.inf
    subscriber = subscriber_of(consumption, commits)
    subscriber.consumer, subscriber.lock = client, MultiLock()
    with pytest.MonkeyPatch.context() as clock:
        clock.setattr(time, "monotonic", lambda: -math.inf)
        consumption.answers.ages(client, client.assignment())
    return subscriber, consumption, commits


async def test_a_client_that_a_quota_throttles_is_not_taken_for_wedged() -> None:
    looked_at = idle(GroupMember({0: 0}))
    assert "has not polled" in str(why_stuck(*looked_at))
    assert why_stuck(*looked_at, since_excused=-5.0) is None
    assert why_stuck(*looked_at, since_excused=STALE_S - 1) is None
    assert "has not polled" in str(why_stuck(*looked_at, since_excused=STALE_S + 1))


async def test_a_client_is_not_taken_for_wedged_while_kafka_cannot_be_used_nor_before_it_could_poll_again() -> None:
    subscriber, consumption, commits = idle(GroupMember({0: 0}))
    cluster = Cluster(client_options(Settings(), "admin"), [])
    connection = SimpleNamespace(current=object(), since=0.0, journal=ClientJournal())
    seen: Any = (connection, cluster, consumption, commits, *[None] * 5)

    class Watching(Control):
        @property
        def subscriber(self) -> BatchSubscriber:
            return subscriber

    control = Watching(*seen)
    assert "has not polled" in str(control.trouble())
    for seconds_ago, stuck in ((0.0, False), (STALE_S - 1, False), (STALE_S + 1, True)):
        cluster.trouble_at = time.monotonic() - seconds_ago
        assert (control.trouble() is not None) == stuck


async def test_a_commit_that_fails_while_kafka_cannot_be_used_is_no_reason_to_reconnect(consumer: Member) -> None:
    consumer.client.positions, consumer.client.errors = {0: 1}, [UnknownError()]
    consumer.subscriber.lock = MultiLock()
    consuming = asyncio.create_task(consumer.process(stored_event(0)))
    await until(lambda: consumer.commits.retrying_since)
    looked_at = consumer.subscriber, consumer.consumption, consumer.commits
    assert why_stuck(*looked_at, since_trouble=0.0, stale_s=0) is None
    assert "UnknownError" in str(why_stuck(*looked_at, since_trouble=1.0, stale_s=0))
    await consuming


async def test_why_a_client_is_stuck_reads_the_same_as_long_as_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at, now, elapsed = idle(GroupMember({0: 0})), 1_800_000_000.5, 1_000.0
    looked_at[1].idle_since = elapsed - 30
    found = set()
    for later in (0, 1, 60):
        with monkeypatch.context() as clock:
            clock.setattr(time, "monotonic", lambda later=later: elapsed + later)
            clock.setattr(time, "time", lambda later=later: now + later)
            found.add(why_stuck(*looked_at))
    assert found == {"the consume loop has not polled since 07:59:30 UTC"}


@pytest.mark.parametrize("step_s", [3 * 60 * 60, -3 * 60 * 60])
async def test_a_clock_that_is_set_neither_hides_a_stuck_consume_loop_nor_makes_one_that_polls_look_stuck(
    step_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, elapsed, set_by = GroupMember({0: 0}), 1_000.0, 0

    def polls() -> None:
        now = int(time.time() * 1_000)
        monkeypatch.setattr(client, "last_poll_timestamp", lambda _: now)

    monkeypatch.setattr(time, "monotonic", lambda: elapsed)
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000 + elapsed + set_by)
    polls()
    looked_at = idle(client)
    for _ in range(3):
        elapsed += STALE_S - 1
        polls()
        assert why_stuck(*looked_at) is None
    set_by = step_s
    assert why_stuck(*looked_at) is None, "it has just polled"
    elapsed += STALE_S + 1
    assert "has not polled" in str(why_stuck(*looked_at))


async def test_a_client_that_looks_for_its_offset_in_a_compressed_batch_is_not_taken_for_wedged() -> None:
    client: Any = GroupMember({0: 0})
    for seconds_ago, stuck in ((0.0, False), (STALE_S + 1, True)):
        passed = PassedOver(TopicPartition(TOPIC, 0), 7, time.monotonic() - seconds_ago)
        client._fetcher = SimpleNamespace(passes_over=passed)
        assert (why_stuck(*idle(client)) is not None) == stuck


async def test_partitions_are_given_up_only_once_the_in_flight_batch_is_done() -> None:
    consumer = Member()
    may_end = asyncio.Event()

    async def slow(_: Batch[Event]) -> None:
        consumer.events.append("handler begins")
        await may_end.wait()
        consumer.events.append("handler ends")

    consumption = Consumption(EVENTS.decode, consumer.window.extend, slow, consumer.write)
    broker = new_broker(client_options(Settings(), "consumer"))
    subscriber = subscribe(broker, TOPIC, GROUP, consumption, no_commits())
    loop = ConsumeLoop(consumption, no_commits())
    loop.subscriber = subscriber
    async with asyncio.timeout(LONG), TestKafkaBroker(broker):
        subscriber.lock = MultiLock()  # what a started one has
        consuming = asyncio.create_task(subscriber.process_message((stored_event(0),)))
        await until(lambda: consumer.events)

        async def give_up() -> None:
            await loop.on_partitions_revoked({TopicPartition(TOPIC, 0)})
            consumer.events.append("given up")

        giving_up = asyncio.create_task(give_up())
        await everything_else_has_run()
        assert consumer.events == ["handler begins"]
        may_end.set()
        await asyncio.gather(consuming, giving_up)
    assert consumer.events == ["handler begins", "handler ends", "given up"]


async def test_dead_letters_are_counted_by_the_type_of_their_error(consumer: Member) -> None:
    consumer.rejected = {"event-4"}
    bad = bad_record(0), bad_record(1, None), bad_record(2, b"7"), bad_record(3, b"8"), stored_event(4)
    await consumer.process(*bad)
    counted = {reason: number for reason, number in consumer.consumption.dead_letters.items() if number}
    assert counted == {"DecodeError": 1, "Tombstone": 1, "ValidationError": 2, "Reject": 1}


async def test_a_handler_that_raises_ever_new_types_of_errors_makes_no_more_than_some_reasons(consumer: Member) -> None:
    for number in range(2 * MAX_REASONS):
        kind = type(f"Error{number}", (Reject,), {})
        consumer.handler_error = kind()
        await consumer.process(stored_event(number))
        consumer.handler_error = None
        consumer.consumption.resume(accept=False)
        await consumer.process(stored_event(number))
    assert consumer.consumption.dead_lettered == 2 * MAX_REASONS
    assert len(consumer.consumption.dead_letters) == MAX_REASONS + 1
    assert consumer.consumption.dead_letters["other"] > MAX_REASONS


async def test_a_batch_whose_commit_is_refused_counts_nowhere_and_is_redelivered(consumer: Member) -> None:
    consumer.client.positions = {0: 2}
    consumer.client.errors = [CommitFailedError()]
    batch = (stored_event(0), bad_record(1))
    consumer.loop.polled = {TopicPartition(TOPIC, 0): 2}
    await consumer.process(*batch)
    assert [event.id for event in consumer.handled] == ["event-0"]
    assert (consumer.counters, consumer.shown) == ((0, 0), [])
    assert consumer.client.positions == {0: 0}, "it goes on at the first record of the batch"
    consumer.client.positions = {0: 2}
    await consumer.process(*batch)
    assert consumer.client.commits == {0: (2, MARK)}
    assert consumer.counters == (1, 1)
    assert consumer.shown == [0]


async def test_a_batch_that_fails_after_its_partitions_were_given_away_moves_no_position(consumer: Member) -> None:
    consumer.client.positions = {0: 7}  # where another member had come to meanwhile
    consumer.handler_error = RuntimeError("the database is down")
    consumer.loop.polled = {TopicPartition(TOPIC, 0): 2}
    await consumer.broken_off(consumer.process(stored_event(0)), lambda: consumer.events)
    assert consumer.client.positions == {0: 7}
    assert consumer.client.commits == {}


async def test_an_in_flight_batch_has_an_age_until_it_is_committed(consumer: Member) -> None:
    may_end = asyncio.Event()

    async def commit(_: object) -> None:
        await may_end.wait()

    consumer.client.positions = {0: 1}
    consumer.client.commit = commit  # type: ignore[assignment, method-assign]  # Kafka does not answer yet
    consuming = asyncio.create_task(consumer.process(stored_event(0)))
    await until(lambda: consumer.handled)
    await everything_else_has_run()
    assert consumer.consumption.batch_age > 0
    may_end.set()
    await consuming
    assert consumer.consumption.batch_age == 0


async def test_every_assignment_of_partitions_is_counted() -> None:
    consumption = Consumer().consumption
    loop = ConsumeLoop(consumption, no_commits())
    await loop.on_partitions_assigned({TopicPartition(TOPIC, 0)})
    await loop.on_partitions_assigned(set())
    assert consumption.rebalances == 2


async def test_an_assigned_partition_is_fetched_from_its_leader_first(consumer: Member) -> None:
    kept, assigned = (TopicPartition(TOPIC, number) for number in (0, 1))
    consumer.client._fetcher._preferred_read_replica = {kept: (2, math.inf), assigned: (2, math.inf)}
    await consumer.loop.on_partitions_assigned({assigned})
    assert consumer.client._fetcher._preferred_read_replica == {kept: (2, math.inf)}


async def test_a_batch_of_dead_letters_is_one_line_that_says_how_many_and_where_and_never_what(
    caplog: pytest.LogCaptureFixture, consumer: Member
) -> None:
    await consumer.process(stored_event(5), bad_record(6, as_json(number="36")), bad_record(7, b"Ada"))
    (line,) = caplog.records
    assert line.getMessage() == "2 records were dead-lettered, the first of them events-0 offset 6: ValidationError"
    fields = {name: vars(line)[name] for name in ("topic", "partition", "offset", "records", "error")}
    assert fields == {"topic": "events", "partition": 0, "offset": 6, "records": 2, "error": "ValidationError"}
    await consumer.process(bad_record(8, b"Ada"))
    assert caplog.messages[1:] == ["1 record was dead-lettered: events-0 offset 8: DecodeError"]


async def test_a_failing_batch_reports_once_where_the_handler_failed_and_never_what_it_says_of_an_event(
    caplog: pytest.LogCaptureFixture, consumer: Member
) -> None:
    consumer.handler_error = RuntimeError("cannot greet Ada Lovelace")
    with said_by(JsonFormatter()) as said:
        await consumer.process(stored_event(3))
        await consumer.process(stored_event(3))
    (line,) = [record for record in caplog.records if record.name == "apps.consumer.consuming.attempts"]
    assert (vars(line)["offset"], vars(line)["error"]) == (3, "RuntimeError")
    assert "in handle" in said[0]
    assert not [line for line in said if "Ada" in line]


async def test_a_halt_is_logged_without_what_the_handler_says_of_an_event(
    caplog: pytest.LogCaptureFixture, consumer: Member
) -> None:
    consumer.handler_error = Reject("cannot greet Ada Lovelace")
    await consumer.until_halted(consumer.process(*map(stored_event, range(100))))
    assert str(consumer.consumption.handler_error()).endswith("-0 offset 99: Reject: cannot greet Ada Lovelace")
    assert caplog.records[-1].getMessage() == (
        f"halted: 100 consecutive records were refused of the stream: {TOPIC}-0 offset 99: Reject"
    )


async def test_what_is_unfinished_of_a_batch_is_read_again_and_what_stands_before_it_is_committed(
    consumer: Member,
) -> None:
    consumer.client.positions = {0: 3}
    consumer.loop.polled = {TopicPartition(TOPIC, 0): 3}
    consumer.writer_error = TimeoutError()
    await consumer.broken_off(
        consumer.process(stored_event(0), bad_record(1), stored_event(2)),
        lambda: "dead letters" in consumer.events,
    )
    assert consumer.client.commits == {0: (1, MARK)}
    assert consumer.client.positions == {0: 1}
    assert consumer.counters == (1, 0)
