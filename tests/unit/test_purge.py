import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError
from aiokafka.structs import RecordMetadata
from samples import Stored

from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.consumer_groups import Member
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.sent_batches import SentBatches
from apps.chassis.settings import Settings
from apps.consumer.redriving.actions import Action
from apps.consumer.redriving.deletions import Deletions
from apps.consumer.redriving.fences import RedriveLimits
from apps.consumer.redriving.marks import Marks
from apps.consumer.redriving.purge import Doomed, Purged, PurgedInPart
from apps.consumer.redriving.redrive import Redriver
from apps.consumer.redriving.refusals import RedriveNotNow
from apps.consumer.redriving.transactions import MarkRecord, Transactions
from contracts.dead_letter import OMITTED_BYTES, DeadLetter, written_again
from tests.fakes import StoredTopic

pytestmark = pytest.mark.anyio

TOPIC, DEAD = "events", "events-dlt"
NO_HURRY = RedriveLimits()
GONE = Doomed(b"gone")


def letter(offset: int, key: str, age_s: float = 0, partition: int = 0, group: str = "group") -> Stored:
    """Return a letter that was first written so many seconds ago, and again now."""
    headers = DeadLetter(b"", b"", (), TOPIC, 0, 7, 0, group, "ValueError", "wrong", 1).all_headers()
    now = int(time.time() * 1_000)
    headers = written_again(headers, now - int(age_s * 1_000))
    return Stored(partition, offset, now, key.encode(), b"bad", headers, DEAD)


class Bench:
    """A purger whose transactions and deletions are only noted, each letter by its offset."""

    def __init__(
        self,
        *partitions: Sequence[Stored],
        monkeypatch: pytest.MonkeyPatch,
        limits: RedriveLimits = NO_HURRY,
        kept_s: int | None = None,
        aborted: Sequence[Stored] = (),
        deletes: bool = True,
    ) -> None:
        options = client_options(Settings(), "consumer")
        cluster = Cluster(options, [])
        cluster.partitions |= {TOPIC: 1, DEAD: len(partitions)}
        cluster.configs[DEAD] = {"cleanup.policy": "delete"}
        self.configs = cluster.configs
        written = dict(enumerate(partitions))
        every = StoredTopic({**written, 0: sorted([*written[0], *aborted], key=lambda one: one.offset)}, topic=DEAD)
        ends = max(map(every.end, written)) if aborted else None
        dead = cast(LogReader, StoredTopic(written, ends, topic=DEAD))

        def reader(*_: object, **__: object) -> LogReader:
            return cast(LogReader, every)

        names = f"{DEAD}-redriven", TOPIC, "group"
        deletions = cast(Deletions, object()) if deletes else None
        redriver = Redriver(options, cluster, dead, *names, reader, limits=limits, kept_s=kept_s, deletions=deletions)
        self.purger = redriver.purger
        self.marks: dict[str | None, Marks] = {}
        self.moved: list[tuple[str | None, int, int]] = []
        self.deleted: dict[int, int] = {}
        self.states = {"group": "Empty"}
        self.kafka_ms: int | None = int(time.time() * 1_000)

        async def nothing(*_: object) -> None:
            pass

        monkeypatch.setattr(cluster, "members", self._members)
        monkeypatch.setattr(redriver._marks_topic, "check", nothing)
        monkeypatch.setattr(redriver._marks_topic, "until_visible", nothing)
        monkeypatch.setattr(redriver._fences, "fenced", self._fenced)
        monkeypatch.setattr(redriver._transactions, "move", self._move)
        monkeypatch.setattr(redriver.purger, "_delete_before", self._delete_before)

    async def read_marks(self) -> Marks:
        return self.marks["group"]

    @asynccontextmanager
    async def _fenced(self, owner: str | None, _: str) -> AsyncIterator[tuple[Any, Marks]]:
        yield None, self.marks.setdefault(owner, Marks())

    async def _move(
        self, _: object, owner: str | None, partition: int, before: int, staying: Sequence[Stored], marks: Marks
    ) -> int | None:
        self.moved += [(owner, partition, record.offset) for record in staying]
        marks.purge(owner, partition, before, {})
        return self.kafka_ms

    async def _members(self, group: str, _: str) -> tuple[str, list[Member]]:
        return self.states.get(group, "Dead"), []

    async def _delete_before(self, offsets: Mapping[int, int]) -> None:
        self.deleted |= offsets


async def test_letters_that_stay_before_the_last_one_of_a_key_are_written_again_and_those_behind_it_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = [letter(0, "gone"), letter(1, "kept"), letter(2, "kept", group=""), letter(3, "gone"), letter(4, "kept")]
    bench = Bench(first, [letter(0, "kept", partition=1)], monkeypatch=monkeypatch)
    assert await bench.purger.purge(GONE, {}) == Purged(2, 2, None)
    assert bench.moved == [("group", 0, 1), (None, 0, 2)]
    assert bench.deleted == {0: 4}


async def test_a_letter_that_was_kept_long_enough_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = [letter(0, "kept", age_s=50), letter(1, "kept", age_s=150), letter(2, "gone", age_s=150)]
    bench = Bench(letters, monkeypatch=monkeypatch, kept_s=100)
    assert await bench.purger.purge(GONE, {}) == Purged(1, 1, None)
    assert bench.moved == [("group", 0, 0)]


@pytest.mark.parametrize("wrong_by_s", [-1_000, 1_000])
async def test_how_long_a_letter_was_kept_goes_by_the_clock_of_kafka_which_deletes_it(
    wrong_by_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = [letter(0, "kept", age_s=50), letter(1, "kept", age_s=150), letter(2, "gone")]
    bench, now = Bench(letters, monkeypatch=monkeypatch, kept_s=100), time.time()
    monkeypatch.setattr(time, "time", lambda: now + wrong_by_s)
    assert await bench.purger.purge(GONE, {}) == Purged(1, 1, None)
    assert bench.moved == [("group", 0, 0)]


async def test_where_the_marks_do_not_tell_the_time_of_kafka_all_letters_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    letters = [letter(0, "kept", age_s=50), letter(1, "kept", age_s=150), letter(2, "gone")]
    bench = Bench(letters, monkeypatch=monkeypatch, kept_s=100)
    bench.kafka_ms = None
    assert await bench.purger.purge(GONE, {}) == Purged(1, 2, None)
    assert bench.moved == [("group", 0, 0), ("group", 0, 1)]


@pytest.mark.parametrize(("timestamp_type", "time_of_kafka"), [(0, None), (1, 17)])
async def test_the_time_of_a_mark_is_that_of_kafka_only_where_kafka_set_it(
    timestamp_type: int, time_of_kafka: int | None
) -> None:
    async def send(*_: object, **__: object) -> asyncio.Future[RecordMetadata]:
        sent: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        sent.set_result(RecordMetadata("marks", 0, TopicPartition("marks", 0), 0, 17, timestamp_type, 0))
        return sent

    transactions: Any = SimpleNamespace(_marks_topic=SimpleNamespace(name="marks"))
    producer: Any = SimpleNamespace(send=send)
    written = Transactions._write_marks(transactions, producer, [MarkRecord(b"", b"", ())], SentBatches())
    assert await written == time_of_kafka


async def test_a_purge_by_time_goes_by_when_a_letter_was_first_written(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Doomed(before=int((time.time() - 100) * 1_000))
    bench = Bench([letter(0, "a", age_s=50), letter(1, "b", age_s=150), letter(2, "c")], monkeypatch=monkeypatch)
    assert await bench.purger.purge(before, {}) == Purged(1, 1, None)
    assert (bench.moved, bench.deleted) == ([("group", 0, 0)], {0: 2})


async def test_what_died_before_the_deletion_is_deleted_later_and_moved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench([letter(0, "kept"), letter(1, "gone"), letter(2, "kept")], monkeypatch=monkeypatch)
    bench.marks["group"] = marks = Marks()
    marks.purge("group", 0, 2, {})
    assert await bench.purger.purge(GONE, {}) == Purged(0, 0, None)
    assert (bench.moved, bench.deleted) == ([], {0: 2})


@pytest.mark.parametrize("aborted_at", [1, 3])
async def test_copies_of_a_purge_that_died_are_deleted_with_the_letters_of_their_key(
    aborted_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters, copy = [letter(0, "kept"), letter(2, "kept")], letter(aborted_at, "gone")
    bench = Bench(letters, monkeypatch=monkeypatch, aborted=[copy])
    staying = [one.offset for one in letters if one.offset < aborted_at]
    assert await bench.purger.purge(GONE, {}) == Purged(0, len(staying), None)
    assert (bench.moved, bench.deleted) == ([("group", 0, at) for at in staying], {0: aborted_at + 1})


async def test_a_search_that_ends_early_says_where_it_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = [letter(0, "gone"), letter(1, "kept"), letter(2, "gone")]
    bench = Bench(letters, monkeypatch=monkeypatch, limits=RedriveLimits(search_s=0))
    first = await bench.purger.purge(GONE, {})
    assert (first, bench.deleted) == (Purged(1, 0, {0: 1}), {0: 1})
    assert (await bench.purger.purge(GONE, {0: 1})).cursor == {0: 2}


async def test_a_purge_that_is_late_deletes_no_letter_that_it_has_not_written_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    letters = [letter(0, "kept"), letter(1, "gone")]
    bench = Bench(letters, monkeypatch=monkeypatch, limits=RedriveLimits(begin_within_s=0))
    assert await bench.purger.purge(GONE, {}) == Purged(0, 0, {0: 0})
    assert (bench.moved, bench.deleted) == ([], {})


async def test_letters_that_another_group_has_moved_meanwhile_are_searched_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench([letter(0, "gone", group="other")], monkeypatch=monkeypatch)
    bench.marks["other"] = moved = Marks()
    moved.purge("other", 0, 1, {})
    assert await bench.purger.purge(GONE, {}) == Purged(0, 0, {0: 0})


async def test_a_compacted_dead_letter_topic_is_not_purged(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench([letter(0, "gone")], monkeypatch=monkeypatch)
    bench.configs[DEAD] = {"cleanup.policy": "compact"}
    with pytest.raises(RedriveNotNow, match="may be compacted"):
        await bench.purger.purge(GONE, {})


async def test_a_dead_letter_topic_whose_settings_are_not_known_yet_is_not_called_compacted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench([letter(0, "gone")], monkeypatch=monkeypatch)
    del bench.configs[DEAD]
    with pytest.raises(KafkaConnectionError, match="the settings of topic events-dlt are not known yet"):
        await bench.purger.purge(GONE, {})


def too_large(one: Stored) -> Stored:
    """Return a letter that Kafka would not take again, since `max.message.bytes` was lowered."""
    return replace(one, value=Random(1).randbytes(5_000))


async def test_a_letter_that_cannot_be_written_again_keeps_those_behind_it_in_its_partition_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stuck = [letter(0, "kept"), letter(1, "gone"), too_large(letter(2, "kept")), letter(3, "gone")]
    others = [letter(0, "gone", partition=1), letter(1, "kept", partition=1), letter(2, "gone", partition=1)]
    bench = Bench(stuck, others, monkeypatch=monkeypatch)
    bench.configs[DEAD] |= {"max.message.bytes": "3000"}
    with pytest.raises(PurgedInPart, match=r"letter 0/2 is before one to purge, .* takes 3000 .*Raise that") as refused:
        await bench.purger.purge(GONE, {})
    assert refused.value.purged == Purged(3, 2, None)
    assert bench.moved == [("group", 0, 0), ("group", 1, 1)]
    assert bench.deleted == {0: 2, 1: 3}
    bench.configs[DEAD] |= {"max.message.bytes": "9000"}
    assert await bench.purger.purge(GONE, {}) == Purged(1, 1, None)


async def test_letters_to_purge_or_purged_before_are_not_too_large_for_a_purge(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = [
        too_large(letter(0, "kept")),
        too_large(letter(1, "gone")),
        letter(2, "gone"),
        too_large(letter(3, "kept")),
    ]
    bench = Bench(letters, monkeypatch=monkeypatch)
    bench.configs[DEAD] |= {"max.message.bytes": "3000"}
    bench.marks["group"] = marks = Marks()
    marks.purge("group", 0, 1, {})
    assert await bench.purger.purge(GONE, {}) == Purged(2, 0, None)


def deletion(offset: int, key: str = "gone", age_s: float = 0, group: str = "group") -> Stored:
    """Return the letter of a deletion that the handler could not carry out."""
    return replace(letter(offset, key, age_s, group=group), value=None)


@pytest.mark.parametrize("doomed", [GONE, Doomed(before=2**42)])  # in the year 2109
@pytest.mark.parametrize("action", [Action.REDRIVE, Action.DISCARD])
@pytest.mark.parametrize("group", ["group", "another"])
async def test_a_deletion_that_was_not_carried_out_stays_until_it_is_sent_back_or_discarded(
    group: str, action: Action, doomed: Doomed, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = [deletion(0, group=group), letter(1, "gone", group=group), deletion(2, group=group)]
    bench = Bench(letters, monkeypatch=monkeypatch)
    bench.marks |= dict.fromkeys(["group", "another"], marks := Marks())
    monkeypatch.setattr(bench.purger._marks_topic, "read", bench.read_marks)
    assert await bench.purger.count(doomed, {}) == Purged(1, 0, None, 2)
    assert await bench.purger.purge(doomed, {}) == Purged(1, 1, None, 2)
    assert (bench.moved, bench.deleted) == ([(group, 0, 0)], {0: 2})
    marks.apply(action, group, 0, [(2, 3)])
    assert await bench.purger.purge(doomed, {}) == Purged(1, 0, None, 0)
    assert bench.deleted == {0: 3}


@pytest.mark.parametrize("before", [None, 2**42])  # in the year 2109
async def test_a_deletion_that_only_a_retired_group_has_not_carried_out_is_purged_when_that_is_named(
    before: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = "group", "retired", "other"
    letters = [deletion(0, "kept", group=of[1]), deletion(1), deletion(2, group=of[1]), deletion(3, group=of[2])]
    bench = Bench(letters, monkeypatch=monkeypatch, kept_s=0)
    bench.marks |= {one: Marks() for one in of}
    monkeypatch.setattr(bench.purger._marks_topic, "read", bench.read_marks)
    doomed = Doomed(b"gone" if before is None else None, before, "retired")
    staying = [("retired", 0, 0), ("group", 0, 1)] if before is None else [("group", 0, 1)]
    going = 3 - len(staying)
    assert await bench.purger.count(doomed, {}) == Purged(going, 0, None, 2)
    assert await bench.purger.purge(doomed, {}) == Purged(going, len(staying), None, 2)
    assert (bench.moved, bench.deleted) == (staying, {0: 3})


@pytest.mark.parametrize(("group", "state"), [("group", "Empty"), ("other", "Stable"), ("other", "PreparingRebalance")])
async def test_the_deletions_of_a_group_that_can_redrive_them_itself_are_not_given_up(
    group: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench([deletion(0, group=group)], monkeypatch=monkeypatch)
    bench.states[group] = state
    for act in (bench.purger.count, bench.purger.purge):
        with pytest.raises(RedriveNotNow, match=rf"group {group} is not retired \({state}\): redrive or discard"):
            await act(Doomed(b"gone", None, group), {})
    assert (bench.moved, bench.deleted) == ([], {})


async def test_a_deletion_that_was_not_carried_out_is_written_again_however_long_it_was_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench([deletion(0, "kept", age_s=150), letter(1, "gone")], monkeypatch=monkeypatch, kept_s=100)
    assert await bench.purger.purge(GONE, {}) == Purged(1, 1, None)


async def test_only_a_letter_without_a_value_that_can_be_sent_back_as_a_deletion_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = TOPIC, 0, 7, 0, "group", "ValueError", "wrong", 1
    omitted = DeadLetter(b"", None, ((OMITTED_BYTES, b"9"),), *place)
    elsewhere = DeadLetter(b"", None, (), "elsewhere", *place[1:])
    letters = [replace(deletion(at), headers=one.all_headers()) for at, one in enumerate((omitted, elsewhere))]
    by_age = Doomed(before=int(time.time() * 1_000) + 60_000)
    bench = Bench([*letters, replace(deletion(2), key=None)], monkeypatch=monkeypatch)
    assert await bench.purger.purge(by_age, {}) == Purged(3, 0, None)
    bench = Bench([deletion(0)], monkeypatch=monkeypatch, deletes=False)
    assert await bench.purger.purge(GONE, {}) == Purged(1, 0, None)
