import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Annotated, Any, cast
from unittest.mock import AsyncMock, Mock

import msgspec
import pytest
from aiokafka.errors import (
    IllegalOperation,
    InvalidTransactionTimeout,
    KafkaConnectionError,
    KafkaError,
    ProducerFenced,
    UnknownError,
)
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from samples import LONG, Stored

from apps.chassis.http.problems import to_problem
from apps.chassis.internals.kafka_client import Throttled
from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.settings import Settings
from apps.consumer.browsing.record_view import View
from apps.consumer.browsing.topic_search import Filter
from apps.consumer.redriving import fences
from apps.consumer.redriving.actions import Action
from apps.consumer.redriving.fences import RedriveLimits
from apps.consumer.redriving.letter_view import FirstPlace, Origin, show_letter
from apps.consumer.redriving.letters import Wanted, oldest, size_sent_back
from apps.consumer.redriving.marks import Marks
from apps.consumer.redriving.marks_topic import MarksTopic
from apps.consumer.redriving.redrive import LetterPlace, Redriver
from apps.consumer.redriving.refusals import DeletedMeanwhile, DoneBefore, RedriveNotNow, TooLarge
from apps.consumer.redriving.routes import of_one_stream
from apps.consumer.redriving.transactions import SentTo, Transactions
from contracts.dead_letter import OMITTED_BYTES, DeadLetter, Target, redrive_headers, redriven_for
from contracts.record import size_of
from contracts.sensitive import Sensitive
from contracts.stream import Stream
from tests.event import EVENTS
from tests.fakes import A_WHILE, Ranges, StoredTopic

pytestmark = pytest.mark.anyio

TOPIC, DEAD = "events", "events-dlt"
NO_HURRY = RedriveLimits()
VIEW = View(EVENTS.decode)


def a_letter(
    value: bytes | None = b"bad", headers: tuple[tuple[str, bytes | None], ...] = (), group: str = "group"
) -> DeadLetter:
    return DeadLetter(b"key", value, headers, TOPIC, 0, 7, 1_700_000_000_000, group, "ValueError", "wrong", 3)


def stored_letter(
    offset: int, partition: int = 0, timestamp: int = 0, value: bytes = b"bad", group: str = "group"
) -> Stored:
    headers = a_letter(value, group=group).all_headers()
    return Stored(partition, offset, timestamp, b"key", value, headers, DEAD)


class Bench:
    """A redriver of dead letters whose transactions only note what they send back."""

    def __init__(
        self, *partitions: Sequence[Stored], monkeypatch: pytest.MonkeyPatch, limits: RedriveLimits = NO_HURRY
    ) -> None:
        options = client_options(Settings(), "consumer")
        self.cluster = Cluster(options, [])
        self.cluster.partitions |= {TOPIC: 1, DEAD: len(partitions)}
        dead = cast(LogReader, StoredTopic(dict(enumerate(partitions)), topic=DEAD))

        def reader(*_: object, **__: object) -> LogReader:
            return dead

        names = f"{DEAD}-redriven", TOPIC, "group"
        self.redriver = Redriver(options, self.cluster, dead, *names, reader, limits=limits)
        self.transactions: list[list[tuple[int, int]]] = []
        self.known = Marks()
        self.seen = 0
        self.fails_from = 1_000
        monkeypatch.setattr(self.redriver._marks_topic, "check", self._check_marks_topic)
        monkeypatch.setattr(self.redriver._marks_topic, "until_visible", self._until_visible)
        monkeypatch.setattr(self.redriver._fences, "fenced", self._fenced)
        monkeypatch.setattr(self.redriver._transactions, "commit", self._commit)
        monkeypatch.setattr(self.redriver, "marks", self._marks)

    async def _check_marks_topic(self) -> None:
        pass

    async def _until_visible(self, _: float) -> None:
        self.seen = len(self.transactions)

    async def _marks(self) -> Marks:
        return deepcopy(self.known)  # what was written is known only to who reads the topic again

    @asynccontextmanager
    async def _fenced(self, _: str | None) -> AsyncIterator[tuple[Any, Marks]]:
        yield None, await self._marks()

    async def _commit(
        self, action: Action, _: object, owner: str | None, chosen: Sequence[Stored], marks: Marks
    ) -> list[None]:
        if len(self.transactions) >= self.fails_from:
            raise KafkaConnectionError("gone")
        self.transactions.append([(record.partition, record.offset) for record in chosen])
        for record in chosen:
            marks.apply(action, owner, record.partition, [(record.offset, record.offset + 1)])
        return [None] * len(chosen)


async def test_a_redrive_that_a_quota_keeps_from_ending_in_time_blames_no_silent_kafka(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench([stored_letter(0)], monkeypatch=monkeypatch, limits=RedriveLimits(work_s=0.01))

    async def waits(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(bench.redriver._transactions, "commit", waits)
    with pytest.raises(TimeoutError):
        await bench.redriver.perform(Action.REDRIVE, 10)
    bench.redriver._journal.throttled(1, LONG)
    with pytest.raises(RedriveNotNow, match=r"Kafka throttles this client by its quota, for .* with fewer letters"):
        await bench.redriver.perform(Action.REDRIVE, 10)

    async def is_throttled(*_: object) -> None:
        raise Throttled("a quota lets no more records pass for 29.9 s")

    monkeypatch.setattr(bench.redriver._transactions, "commit", is_throttled)
    with pytest.raises(RedriveNotNow, match="Kafka throttles this client by its quota"):
        await bench.redriver.perform(Action.REDRIVE, 10)


def places(columns: Sequence[tuple[Sequence[Stored], bool]], limit: int) -> tuple[list[tuple[int, int]], bool]:
    records, more = oldest(columns, limit)
    return [(record.partition, record.offset) for record in records], more


def column(partition: int, *times: int) -> list[Stored]:
    return [stored_letter(offset, partition, time) for offset, time in enumerate(times)]


def test_the_oldest_of_all_partitions_come_first() -> None:
    columns = [(column(0, 10, 30, 50), False), (column(1, 20, 40), False)]
    assert places(columns, 4) == ([(0, 0), (1, 0), (0, 1), (1, 1)], True)
    assert places(columns, 5) == ([(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)], False)


def test_within_a_partition_the_order_is_kept_whatever_the_times_say() -> None:
    assert places([(column(0, 10, 5, 30), False), (column(1, 7), False)], 9)[0] == [(1, 0), (0, 0), (0, 1), (0, 2)]


def test_what_may_be_older_in_a_partition_that_was_not_read_to_its_end_is_not_passed() -> None:
    columns = [(column(0, 10, 30), True), (column(1, 20, 40), False)]
    assert places(columns, 9) == ([(0, 0), (1, 0), (0, 1)], True)
    assert places([(column(0, 10, 5), True)], 9) == ([(0, 0), (0, 1)], True)


@pytest.mark.parametrize("size", [0, 50, 100, 9_000, 1_000_000])
def test_the_size_of_what_is_sent_back_is_known_to_the_byte(size: int) -> None:
    letter = a_letter(b"x" * size, (("h", None), ("long", b"y" * size)))
    batch = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=1,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=16_384,
    )
    assert batch.append(0, 1_700_000_000_000, letter.key, letter.value, redrive_headers(letter))
    assert size_sent_back(letter) == len(batch.build())


async def test_what_the_topic_would_not_take_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench([stored_letter(0, value=b"x" * 1_000), stored_letter(1)], monkeypatch=monkeypatch)
    size = size_sent_back(a_letter(b"x" * 1_000))
    bench.cluster.configs[TOPIC] = {"max.message.bytes": str(size)}
    assert not bench.redriver.letters.is_held(a_letter(b"x" * 1_000))
    bench.cluster.configs[TOPIC] = {"max.message.bytes": str(size - 1)}
    assert bench.redriver.letters.is_held(a_letter(b"x" * 1_000))
    assert await bench.redriver.perform(Action.REDRIVE, 10) == ([LetterPlace(0, 1)], False, 0)


async def test_a_redrive_goes_by_what_the_topics_take_now(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench([stored_letter(0, value=b"x" * 1_000)], monkeypatch=monkeypatch)
    marks = bench.redriver._marks_topic

    async def check_settings() -> None:
        bench.cluster.configs[TOPIC], bench.cluster.deletions[marks.name] = {"max.message.bytes": "2000"}, []

    monkeypatch.setattr(marks, "check", partial(MarksTopic.check, marks))
    monkeypatch.setattr(bench.cluster, "check_settings", check_settings)
    bench.cluster.configs[TOPIC] = {"max.message.bytes": "900"}
    assert (await bench.redriver.perform(Action.REDRIVE, 10)).letters == [LetterPlace(0, 0)]


async def test_a_dead_letter_without_its_value_is_held_and_refused_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    omitted = a_letter(None, ((OMITTED_BYTES, b"20971520"),))
    stored = Stored(0, 0, 0, b"key", None, omitted.all_headers(), DEAD)
    bench = Bench([stored, stored_letter(1)], monkeypatch=monkeypatch)
    assert await bench.redriver.perform(Action.REDRIVE, 10) == ([LetterPlace(0, 1)], False, 0)
    with pytest.raises(TooLarge, match="it stays on events, partition 0, offset 7"):
        await bench.redriver.perform_one(Action.REDRIVE, 0, 0)
    assert list(chain.from_iterable(bench.transactions)) == [(0, 1)]


class OfOneKey:
    """Knows that one key was deleted after all of its letters."""

    def __init__(self) -> None:
        self.read: list[DeadLetter] = []

    async def read_for(self, letters: Sequence[DeadLetter], _: float) -> None:
        self.read += letters

    async def is_deleted(self, letter: DeadLetter) -> bool:
        assert letter in self.read
        return letter.key == b"deleted"


async def test_letters_of_deleted_keys_are_not_sent_back_and_counted_as_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deleted = [replace(stored_letter(offset), key=b"deleted") for offset in (0, 2, 4)]
    bench = Bench([deleted[0], stored_letter(1), deleted[1], stored_letter(3), deleted[2]], monkeypatch=monkeypatch)
    monkeypatch.setattr(bench.redriver.letters, "_deletions", OfOneKey())
    assert await bench.redriver.count(Action.REDRIVE, 10) == ([LetterPlace(0, 1), LetterPlace(0, 3)], False, 3)
    assert await bench.redriver.perform(Action.REDRIVE, 1) == ([LetterPlace(0, 1)], True, 1)
    bench.known.apply(Action.REDRIVE, "group", 0, [(1, 2)])
    assert await bench.redriver.perform(Action.REDRIVE, 10) == ([LetterPlace(0, 3)], False, 3)
    with pytest.raises(DoneBefore, match="dead letter 0/2 is not sent back: it is older than a deletion of its key"):
        await bench.redriver.perform_one(Action.REDRIVE, 0, 2)
    assert (await bench.redriver.perform_one(Action.DISCARD, 0, 2)).letters == [LetterPlace(0, 2)]
    assert len((await bench.redriver.count(Action.DISCARD, 10)).letters) == 4


def a_producer() -> AsyncMock:
    """Return a producer whose records are acknowledged at once."""
    acknowledged: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    acknowledged.set_result(Mock(partition=0, offset=7))
    sending = AsyncMock(return_value=acknowledged)
    manager = Mock(is_fatal_error=Mock(return_value=False))
    return AsyncMock(_txn_manager=manager, create_batch=Mock(), send=sending, send_batch=sending)


@pytest.mark.parametrize("looks", [(True,), (False, True), (False, False)], ids=["before", "meanwhile", "none"])
async def test_a_deletion_that_comes_before_what_a_redrive_writes_is_not_undone(
    looks: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, letter = Bench(monkeypatch=monkeypatch), stored_letter(0)
    found = Mock(read_again=AsyncMock(), has_tombstone=AsyncMock(side_effect=looks))
    monkeypatch.setattr(bench.redriver.letters, "_deletions", found)
    producer, marks = a_producer(), Marks()
    commit = partial(Transactions.commit, bench.redriver._transactions, Action.REDRIVE, producer, "group", [letter])
    if any(looks):
        with pytest.raises(DeletedMeanwhile, match="was deleted meanwhile: try again"):
            await commit(marks)
    else:
        assert await commit(marks) == [SentTo(0, 7)]
    assert marks.contains("group", 0, 0) is not any(looks)
    assert found.read_again.await_count == len(looks)
    begun, aborted = len(looks) == 2, any(looks[1:])
    assert producer.send_batch.called is begun, "a copy of an aborted transaction would stay behind the deletion"
    assert (producer.commit_transaction.await_count, producer.abort_transaction.await_count) == (
        begun and not aborted,
        aborted,
    )


class WithDeleter(Bench):
    """A redriver next to somebody who deletes a key of theirs in each transaction that sends back one."""

    def __init__(self, letters: Sequence[Stored], theirs: set[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        self.theirs, self.deleted, self.tries, self.first_sent = theirs, set[bytes | None](), 0, 0
        super().__init__(letters, monkeypatch=monkeypatch)
        deletions = Mock(read_for=AsyncMock(), is_deleted=self._is_deleted)
        monkeypatch.setattr(self.redriver.letters, "_deletions", deletions)

    async def _is_deleted(self, letter: DeadLetter) -> bool:
        return letter.key in self.deleted

    async def _commit(
        self, action: Action, _: object, owner: str | None, chosen: Sequence[Stored], marks: Marks
    ) -> list[None]:
        self.tries += 1
        if key := next((record.key for record in chosen if record.key in self.theirs - self.deleted), None):
            self.deleted.add(key)
            raise DeletedMeanwhile("deleted", {key})
        self.first_sent = self.first_sent or self.tries
        return await super()._commit(action, _, owner, chosen, marks)


async def test_somebody_who_deletes_keys_all_the_time_keeps_no_other_letters_from_being_sent_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = [b"%d" % number for number in range(20)]
    letters = [replace(stored_letter(n), key=theirs[n] if n < 20 else b"other-%d" % (n % 10)) for n in range(40)]
    others = [(0, offset) for offset in range(20, 40)]
    bench = WithDeleter(letters, {*theirs}, monkeypatch)
    done, more, refused = await bench.redriver.perform(Action.REDRIVE, 100)
    assert (sorted((one.partition, one.offset) for one in done), more, refused) == (others, False, 20)
    sent = [offset for _, offset in chain.from_iterable(bench.transactions)]
    assert all(sent.index(offset) < sent.index(offset + 10) for offset in range(20, 30)), "keys keep their order"

    bench = WithDeleter(letters, {*theirs}, monkeypatch)
    few = await bench.redriver.perform(Action.REDRIVE, 30)
    assert (len(few.letters), few.more) == (20, False), "the letters of deleted keys do not count"

    bench = WithDeleter(letters, {*theirs[:10]}, monkeypatch)
    assert await bench.redriver.redrive_found(AsyncMock(return_value=letters)) == 30
    assert bench.first_sent == 2, "what nobody deletes is soon apart from what somebody does"


@pytest.mark.parametrize(
    ("only", "places"),
    [
        (Filter(), [(0, 0), (1, 0), (0, 1), (1, 1)]),
        (Filter(partition=1), [(1, 0), (1, 1)]),
        (Filter(since=20), [(0, 1), (1, 1)]),
        (Filter(until=20), [(0, 0), (1, 0)]),
        (Filter(key=b"key", also=lambda record: record.value == b"odd"), [(1, 1)]),
        (Filter(key=b"another"), []),
    ],
)
async def test_a_redrive_with_a_filter_sends_back_what_it_selects_alone(
    only: Filter, places: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(
        [stored_letter(0, 0, 10), stored_letter(1, 0, 20)],
        [stored_letter(0, 1, 11), stored_letter(1, 1, 21, b"odd")],
        monkeypatch=monkeypatch,
    )
    counted = await bench.redriver.count(Action.REDRIVE, 10, only)
    assert (sorted((one.partition, one.offset) for one in counted.letters), counted.more) == (sorted(places), False)
    assert bench.transactions == []
    done, *_ = await bench.redriver.perform(Action.REDRIVE, 10, only)
    assert [(one.partition, one.offset) for one in done] == places


async def test_a_count_is_limited_as_a_redrive_is(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = [stored_letter(0), stored_letter(1), stored_letter(2, group="")]
    bench = Bench(letters, monkeypatch=monkeypatch, limits=RedriveLimits(transaction_bytes=1))
    for limit in (1, 2, 3, 4):
        counted = await bench.redriver.count(Action.REDRIVE, limit)
        assert (len(counted.letters), counted.more) == (min(limit, 3), limit < 3)


async def test_many_large_dead_letters_are_sent_back_in_several_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    large = b"x" * 100
    bench = Bench(
        [stored_letter(n, 0, n, large) for n in range(5)],
        [stored_letter(n, 1, n, large) for n in range(3)],
        monkeypatch=monkeypatch,
        limits=RedriveLimits(transaction_bytes=2 * 2 * size_of(stored_letter(0, 0, 0, large))),
    )
    done, more, _ = await bench.redriver.perform(Action.REDRIVE, 7)
    assert len(bench.transactions) == 2
    assert all(len(transaction) <= 4 for transaction in bench.transactions)
    sent = list(chain.from_iterable(bench.transactions))
    assert [(one.partition, one.offset) for one in done] == sent
    assert len(set(sent)) == 7
    assert more


async def test_a_redrive_that_fails_in_the_middle_reports_what_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(
        [stored_letter(n) for n in range(3)], monkeypatch=monkeypatch, limits=RedriveLimits(transaction_bytes=1)
    )
    bench.fails_from = 2
    assert await bench.redriver.perform(Action.REDRIVE, 3) == ([LetterPlace(0, 0), LetterPlace(0, 1)], True, 0)
    bench = Bench([stored_letter(0)], monkeypatch=monkeypatch)
    bench.fails_from = 0
    with pytest.raises(KafkaConnectionError):
        await bench.redriver.perform(Action.REDRIVE, 3)


async def test_letters_of_other_groups_are_read_once_and_passed_over_then(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [stored_letter(n, group="another") for n in range(5)]
    bench = Bench([*others, stored_letter(5), stored_letter(6, group="")], monkeypatch=monkeypatch)
    assert await bench.redriver.perform(Action.REDRIVE, 10) == ([LetterPlace(0, 5), LetterPlace(0, 6)], False, 0)
    assert bench.redriver.letters.passed[None, "group", 0] == [(0, 5), (6, 7)]
    assert bench.redriver.letters.passed[None, None, 0] == [(0, 6)]


async def test_a_redrive_that_only_met_letters_of_others_until_it_was_late_says_that_there_may_be_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench([stored_letter(0)], monkeypatch=monkeypatch, limits=RedriveLimits(begin_within_s=0.0))
    assert await bench.redriver.perform(Action.REDRIVE, 10) == ([], True, 0)


async def test_a_redrive_waits_for_its_turn_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench([stored_letter(0)], monkeypatch=monkeypatch, limits=RedriveLimits(turn_s=0.01))
    async with bench.redriver._fences._lock:
        with pytest.raises(RedriveNotNow, match="under way"):
            await bench.redriver.perform(Action.REDRIVE, 10)
    assert (await bench.redriver.perform(Action.REDRIVE, 10)).letters == [LetterPlace(0, 0)]


async def test_a_redrive_is_answered_in_time_even_when_what_it_began_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench([stored_letter(0)], monkeypatch=monkeypatch, limits=RedriveLimits(call_s=0.05, work_s=0.01))
    ended = asyncio.Event()

    @asynccontextmanager
    async def never_closing(_: str | None) -> AsyncIterator[tuple[Any, Marks]]:
        try:
            await asyncio.Event().wait()
            yield None, Marks()
        finally:
            await ended.wait()

    monkeypatch.setattr(bench.redriver._fences, "fenced", never_closing)
    with pytest.raises(TimeoutError):
        await bench.redriver.perform(Action.REDRIVE, 10)
    assert bench.redriver._fences._lock.locked()  # no other one begins before this one has closed what is its own
    ended.set()
    async with asyncio.timeout(LONG), bench.redriver._fences._lock:
        pass


async def test_marks_that_their_topic_would_not_take_are_refused_with_what_to_do() -> None:
    options = client_options(Settings(), "consumer")
    cluster = Cluster(options, [])
    cluster.configs[f"{DEAD}-redriven"] = {"max.message.bytes": "1000"}
    dead = cast(LogReader, StoredTopic({}))
    redriver = Redriver(options, cluster, dead, f"{DEAD}-redriven", TOPIC, "group", Mock(return_value=dead))
    marks = Marks()
    marks.apply(Action.REDRIVE, "group", 0, [(2 * n, 2 * n + 1) for n in range(200)])
    with pytest.raises(TooLarge, match=r"too scattered .* takes 1000 \(max.message.bytes\)"):
        await redriver._transactions.commit(Action.REDRIVE, cast(Any, None), "group", [stored_letter(999)], marks)


@pytest.mark.parametrize(
    ("key", "origin", "expected"),
    [(b"key", 5, 5), (b"key", 6, 1), (b"key", None, 1), (None, 7, 1), (None, None, 2)],
)
def test_a_letter_goes_back_to_its_partition_or_where_its_key_belongs(
    key: bytes | None, origin: int | None, expected: int
) -> None:
    options = client_options(Settings(), "consumer")
    cluster = Cluster(options, [])
    cluster.partitions[TOPIC] = 6
    redriver = Redriver(options, cluster, cast(LogReader, StoredTopic({})), f"{DEAD}-redriven", TOPIC, "group")
    letter = msgspec.structs.replace(a_letter(), key=key, partition=origin)
    assert redriver._transactions._partition_for(letter, stored_letter(0, partition=8)) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"cleanup.policy": "delete"}, Target("group", TOPIC)),
        ({"cleanup.policy": "compact,delete"}, None),
        ({}, None),
    ],
    ids=["deleted", "compacted", "unknown"],
)
def test_a_letter_names_its_group_only_where_the_original_is_kept_for_the_other_groups(
    settings: dict[str, str], expected: Target | None
) -> None:
    options = client_options(Settings(), "consumer")
    cluster = Cluster(options, [])
    cluster.configs[TOPIC] = settings
    redriver = Redriver(options, cluster, cast(LogReader, StoredTopic({})), f"{DEAD}-redriven", TOPIC, "group")
    assert redriven_for(redriver._transactions._headers_of(a_letter())) == expected


def test_a_partition_that_was_not_read_in_time_does_not_keep_the_others_back() -> None:
    assert places([([], True), (column(1, 20, 40), False)], 9) == ([(1, 0), (1, 1)], True)


class SlowTopic(StoredTopic):
    """A topic of which each read takes a second."""

    now = 0.0

    def time(self) -> float:
        return self.now

    async def some(self, ranges: Ranges, max_bytes: int) -> tuple[list[Stored], dict[int, int]]:
        self.now += 1
        return await super().some(ranges, max_bytes)


def of_many_partitions(monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, SlowTopic]:
    """Return a redriver of a slow topic with a letter in each of 100 partitions, the newest in the first."""
    bench = Bench(*([stored_letter(0, number, 100 - number)] for number in range(100)), monkeypatch=monkeypatch)
    topic = SlowTopic(bench.redriver.letters._reader.records, topic=DEAD)  # type: ignore[attr-defined]
    monkeypatch.setattr(bench.redriver.letters, "_reader", topic)
    monkeypatch.setattr("apps.consumer.redriving.letters.asyncio", Mock(get_running_loop=Mock(return_value=topic)))
    return bench, topic


def wanted(late: float, limit: int = 10) -> Wanted:
    return Wanted("group", Marks(), limit, 1_000_000, late, set())


async def test_letters_of_many_partitions_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, topic = of_many_partitions(monkeypatch)
    found, more = await bench.redriver.letters.oldest(wanted(late=LONG))
    assert ([record.partition for record in found], more) == ([*range(99, 89, -1)], True)
    assert topic.now < 10


async def test_a_redrive_that_cannot_read_all_partitions_in_time_sends_the_oldest_of_those_that_it_has_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, topic = of_many_partitions(monkeypatch)
    found, more = await bench.redriver.letters.oldest(wanted(late=2, limit=100))
    read = len(found)
    assert (topic.now, 0 < read < 100, more) == (2, True, True)
    assert [record.partition for record in found] == [*reversed(range(read))]


async def test_a_search_ends_in_time_where_it_takes_long_to_learn_which_letters_are_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, topic = of_many_partitions(monkeypatch)

    async def is_deleted(_: DeadLetter) -> bool:
        topic.now += 1
        return False

    monkeypatch.setattr(bench.redriver.letters, "is_deleted", is_deleted)
    found, more = await bench.redriver.letters.oldest(wanted(late=5, limit=100))
    assert (len(found), more) == (4, True)


async def test_a_search_leaves_time_to_send_what_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Bench(monkeypatch=monkeypatch).redriver._search(Action.REDRIVE, 10, Filter())
    assert search.wanted("group", Marks(), 0).late < search.late


async def test_an_error_of_one_stream_says_how_many_letters_of_others_were_sent_back() -> None:
    """A 503 says that nothing was done: a caller would ask again, and for more than it meant."""
    error = of_one_stream(Action.REDRIVE, "orders", KafkaConnectionError("no broker"), 7)
    assert isinstance(error, RedriveNotNow)
    assert str(error).startswith("orders: ")
    assert str(error).endswith("; of other streams 7 dead letters were sent back")
    nothing_sent = KafkaConnectionError("no broker")
    assert of_one_stream(Action.REDRIVE, "orders", nothing_sent, 0) is nothing_sent


async def test_a_listed_letter_names_the_first_place_of_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench([], monkeypatch=monkeypatch)
    once = show_letter(VIEW, stored_letter(0), Marks(), bench.redriver)
    assert once.first_place == FirstPlace(TOPIC, 0, 7)
    again = msgspec.structs.replace(a_letter(headers=tuple(redrive_headers(a_letter()))), offset=99)
    shown = show_letter(VIEW, Stored(0, 1, 0, b"key", b"bad", again.all_headers(), DEAD), Marks(), bench.redriver)
    assert (shown.origin, shown.first_place) == (Origin(TOPIC, 0, 99, 1_700_000_000_000), FirstPlace(TOPIC, 0, 7))
    assert show_letter(VIEW, Stored(0, 2, 0, b"key", b"bad", (), DEAD), Marks(), bench.redriver).first_place is None


async def test_a_letter_that_was_sent_back_is_not_listed_as_redrivable(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, marks = Bench([], monkeypatch=monkeypatch), Marks()
    marks.apply(Action.REDRIVE, "group", 0, [(0, 1)])
    listed = [show_letter(VIEW, stored_letter(offset), marks, bench.redriver) for offset in (0, 1)]
    assert [(letter.redriven, letter.redrivable) for letter in listed] == [(True, False), (False, True)]


async def test_a_discard_takes_held_letters_too_and_those_without_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    omitted = Stored(0, 0, 0, b"key", None, a_letter(None, ((OMITTED_BYTES, b"20971520"),)).all_headers(), DEAD)
    back = [stored_letter(0, value=b"x" * 1_000), stored_letter(1)]
    bench = Bench([omitted], [replace(one, partition=1) for one in back], monkeypatch=monkeypatch)
    bench.cluster.configs[TOPIC] = {"max.message.bytes": "900"}
    assert len((await bench.redriver.count(Action.REDRIVE, 10)).letters) == 1
    assert len((await bench.redriver.count(Action.DISCARD, 10)).letters) == 3
    assert (await bench.redriver.perform_one(Action.DISCARD, 0, 0)).letters == [LetterPlace(0, 0)]
    done, more, _ = await bench.redriver.perform(Action.DISCARD, 10, Filter(partition=1))
    assert ([(one.partition, one.offset) for one in done], more) == ([(1, 0), (1, 1)], False)


async def test_each_action_takes_the_letters_that_it_can_be_applied_to(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = [stored_letter(offset) for offset in range(4)]
    bench = Bench([*letters, stored_letter(4, group="another"), stored_letter(5, group="")], monkeypatch=monkeypatch)
    bench.known.apply(Action.REDRIVE, "group", 0, [(0, 1)])
    bench.known.apply(Action.DISCARD, "group", 0, [(1, 3)])
    bench.known.apply(Action.DISCARD, "another", 0, [(4, 5)])
    for action, expected in ((Action.REDRIVE, [3, 5]), (Action.DISCARD, [3, 5]), (Action.RESTORE, [1, 2])):
        counted = await bench.redriver.count(action, 10)
        assert ([letter.offset for letter in counted.letters], counted.more) == (expected, False)
        done, more, _ = await bench.redriver.perform(action, 10)
        assert ([letter.offset for letter in done], more) == (expected, False)
    assert (await bench.redriver.count(Action.RESTORE, 1)).more


@pytest.mark.parametrize(
    ("action", "offset", "message"),
    [
        (Action.REDRIVE, 0, "was sent back before"),
        (Action.REDRIVE, 1, "was discarded: restore it"),
        (Action.DISCARD, 0, "was sent back before"),
        (Action.DISCARD, 1, "was discarded before"),
        (Action.RESTORE, 0, "is not discarded"),
        (Action.RESTORE, 2, "is not discarded"),
    ],
)
async def test_an_action_that_has_nothing_to_do_with_a_letter_is_refused(
    action: Action, offset: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench([stored_letter(offset) for offset in range(3)], monkeypatch=monkeypatch)
    bench.known.apply(Action.REDRIVE, "group", 0, [(0, 1)])
    bench.known.apply(Action.DISCARD, "group", 0, [(1, 2)])
    with pytest.raises(DoneBefore, match=f"dead letter 0/{offset} {message}"):
        await bench.redriver.perform_one(action, 0, offset)
    assert bench.transactions == []


async def test_a_discarded_letter_is_listed_as_such_and_not_as_sent_back(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, marks = Bench([], monkeypatch=monkeypatch), Marks()
    marks.apply(Action.DISCARD, "group", 0, [(0, 1)])
    marks.apply(Action.DISCARD, "another", 0, [(1, 2)])
    groups = ("group", "another", "group")
    listed = [show_letter(VIEW, stored_letter(n, group=group), marks, bench.redriver) for n, group in enumerate(groups)]
    assert [letter.discarded for letter in listed] == [True, True, False]
    assert [letter.redriven for letter in listed] == [False, False, False]
    assert [letter.redrivable for letter in listed] == [False, False, True]


async def test_an_action_is_answered_once_its_marks_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench([stored_letter(offset) for offset in range(3)], monkeypatch=monkeypatch)
    await bench.redriver.perform(Action.DISCARD, 2)
    assert bench.seen == len(bench.transactions) == 1
    await bench.redriver.perform_one(Action.DISCARD, 0, 2)
    assert bench.seen == len(bench.transactions) == 2


class LateReader:
    """Reads a marks topic that has one record, whose transaction ends after some looks."""

    def __init__(self, looks: float, *, committed_only: bool) -> None:
        self._looks = looks if committed_only else 0

    async def offsets(self, _: int) -> tuple[dict[int, int], dict[int, int]]:
        self._looks -= 1
        return {0: 0}, {0: 0 if self._looks >= 0 else 1}


def late_marks_topic(looks: float) -> tuple[MarksTopic, LateReader]:
    """Return a marks topic, and the reader of what is committed."""
    options, committed = client_options(Settings(), "consumer"), LateReader(looks, committed_only=True)

    def reader(_: object, __: str, *, committed_only: bool = True) -> LateReader:
        return committed if committed_only else LateReader(looks, committed_only=False)

    dead = cast(LogReader, StoredTopic({}, topic=DEAD))
    return MarksTopic(options, Cluster(options, []), f"{DEAD}-redriven", dead, cast(Any, reader)), committed


@pytest.mark.parametrize("looks", [0, 3])
async def test_marks_are_waited_for_until_their_transaction_has_ended(looks: int) -> None:
    topic, committed = late_marks_topic(looks)
    await topic.until_visible(asyncio.get_running_loop().time() + LONG)
    assert (await committed.offsets(1))[1] == {0: 1}


async def test_marks_that_stay_hidden_are_not_waited_for_for_ever() -> None:
    topic, committed = late_marks_topic(math.inf)
    await topic.until_visible(asyncio.get_running_loop().time() + A_WHILE)
    assert (await committed.offsets(1))[1] == {0: 0}


class FencedProducer:
    """A producer that another one with its id fenced: what aiokafka raises depends on when it learns of it."""

    error: type[Exception] = ProducerFenced

    def __init__(self, **_: object) -> None:
        pass

    async def start(self) -> None:
        raise self.error

    async def stop(self) -> None:
        pass


UNEXPECTED = KafkaError("Unexpected error during batch delivery")
UNEXPECTED.__cause__ = UnknownError()


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ProducerFenced, "another redrive or discard has begun"),
        (IllegalOperation, "another redrive or discard has begun"),
        (UNEXPECTED, "ended the transaction with an unexpected error"),
    ],
    ids=["fenced", "illegal", "unexpected"],
)
async def test_an_action_that_another_one_fenced_is_refused_for_now(
    error: type[Exception] | Exception, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = client_options(Settings(), "consumer")
    dead = cast(LogReader, StoredTopic({0: [stored_letter(0)]}, topic=DEAD))
    redriver = Redriver(options, Cluster(options, []), dead, f"{DEAD}-redriven", TOPIC, "group")
    monkeypatch.setattr(fences, "AIOKafkaProducer", FencedProducer)
    monkeypatch.setattr(FencedProducer, "error", error)
    with pytest.raises(RedriveNotNow, match=why):
        async with redriver._fences.fenced("group"):
            pass


async def test_a_redrive_whose_transactions_kafka_finds_too_long_names_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = client_options(Settings(), "consumer")
    dead = cast(LogReader, StoredTopic({0: [stored_letter(0)]}, topic=DEAD))
    redriver = Redriver(options, Cluster(options, []), dead, f"{DEAD}-redriven", TOPIC, "group")
    monkeypatch.setattr(fences, "AIOKafkaProducer", FencedProducer)
    monkeypatch.setattr(FencedProducer, "error", InvalidTransactionTimeout)
    with pytest.raises(InvalidTransactionTimeout) as refused:
        async with redriver._fences.fenced("group"):
            pass
    assert to_problem(refused.value).detail == (
        "Kafka answers with an error: InvalidTransactionTimeout: the brokers' transaction.max.timeout.ms is below the "
        "10 s that a redrive or discard takes: raise it"
    )


FRAMES = 'Traceback (most recent call last):\n  File "/app/handlers.py", line 7, in handle\n'


@pytest.mark.parametrize(
    ("stack", "masked"),
    [
        (f"{FRAMES}    raise ValueError(person)\nValueError: Ada\nof London\n{FRAMES}KeyError: 'Ada'\n", FRAMES),
        (f'{FRAMES}ValueError: cannot store\n  File "Ada of London", line 7, in ada\n', FRAMES),
        (f"ValueError: cannot store\n{FRAMES.replace('/app/handlers.py', 'Ada of London')}", "…"),
    ],
)
def test_a_masked_stack_keeps_its_first_frames_and_no_message_even_one_that_looks_like_frames(
    stack: str, masked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    letter = msgspec.structs.replace(a_letter(), error="Ada", error_type="builtins.KeyError", stack=stack)
    record, bench = Stored(0, 1, 0, b"key", b"Ada", letter.all_headers(), DEAD), Bench([], monkeypatch=monkeypatch)
    kind = msgspec.defstruct("Kind", [("id", str), ("name", Annotated[str, Sensitive()])])
    stream = Stream[Any]("events", kind, key=lambda one: one.id)
    assert show_letter(VIEW, record, Marks(), bench.redriver).stack == stack
    shown = show_letter(View(stream.decode, stream.masking), record, Marks(), bench.redriver)
    assert (shown.stack, shown.error, shown.error_type) == (masked.rstrip(), "…", "builtins.KeyError")
