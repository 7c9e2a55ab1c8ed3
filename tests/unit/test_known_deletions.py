import math
import time
from collections.abc import Sequence
from typing import cast
from uuid import UUID

import msgspec
import pytest
from aiokafka.errors import KafkaConnectionError
from samples import Stored

from apps.chassis.internals.fetched_batches import OversizedRecord
from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.open_transactions import OpenTransactions
from apps.chassis.settings import Settings
from apps.consumer.browsing.forgetting import deletions_in
from apps.consumer.redriving.deletions import MAX_TOMBSTONES, Deletions
from apps.consumer.redriving.refusals import DeletedMeanwhile, RedriveNotNow
from contracts.dead_letter import DeadLetter, redrive_headers
from contracts.partitioning import partitions_of
from tests.fakes import A_WHILE, Ranges, StoredTopic

pytestmark = pytest.mark.anyio

TOPIC = "events"
NOW = int(time.time() * 1_000)
HOUR = 3_600_000
COMPACTED, DELETED = {"cleanup.policy": "compact"}, {"cleanup.policy": "delete"}


class Topic(StoredTopic):
    """A topic whose reads are counted."""

    reads, fails_after = 0, math.inf

    async def some(self, ranges: Ranges, max_bytes: int) -> tuple[list[Stored], dict[int, int]]:
        if self.reads >= self.fails_after:
            raise KafkaConnectionError
        self.reads += 1
        return await super().some(ranges, max_bytes)

    async def record(self, partition: int, offset: int) -> Stored | None:
        assert partition in self.records, "Kafka never answers for a partition that there is not"
        return next(iter(self._between(partition, offset, self.end(partition))), None)


class Bench(Cluster):
    """A cluster with one topic of one partition, and its deletions."""

    id = UUID(int=1)

    def __init__(
        self, records: Sequence[Stored], configs: dict[str, str] = DELETED, max_tombstones: int = MAX_TOMBSTONES
    ) -> None:
        super().__init__(client_options(Settings(), "consumer"), [])
        self.partitions[TOPIC], self.configs[TOPIC] = 1, configs
        self.topic = Topic({0: records})
        self.every = Topic({0: records})
        transactions = OpenTransactions(cast(LogReader, self.topic), cast(LogReader, self.every))
        self.found = Deletions(transactions, self, "group", max_tombstones, just_come_s=A_WHILE)

    async def topic_id(self, _: str) -> UUID | None:
        return self.id

    async def deleted(self, *letters: DeadLetter, late: float = math.inf) -> list[bool]:
        await self.found.read_for(letters, late)
        return [await self.found.is_deleted(letter) for letter in letters]


def time_of(offset: int) -> int:
    return NOW - 2 * HOUR + offset * HOUR // 10


def records(*keys: str) -> list[Stored]:
    """Return a record of each key, a tombstone where a - is in front."""
    return [
        Stored(0, offset, time_of(offset), key.lstrip("-").encode(), None if key.startswith("-") else b"value")
        for offset, key in enumerate(keys)
    ]


def letter(key: str | None, offset: int | None, partition: int | None = 0, timestamp: int | None = None) -> DeadLetter:
    own = None if key is None else key.encode()
    timestamp = time_of(offset or 0) if timestamp is None else timestamp
    return DeadLetter(own, b"bad", (), TOPIC, partition, offset, timestamp, "group", "ValueError", "wrong", 1)


async def test_a_letter_is_older_than_a_deletion_of_its_key_that_stands_behind_its_record() -> None:
    bench = Bench(records("ada", "bob", "-ada", "ada"))
    assert await bench.deleted(letter("ada", 0), letter("bob", 1), letter("ada", 3)) == [True, False, False]
    assert await bench.deleted(letter("ada", 2)) == [False], "the deletion itself failed, and is sent back"


async def test_a_record_that_is_too_large_to_be_read_deletes_nothing() -> None:
    oversized = OversizedRecord(TOPIC, 0, 1, time_of(1), b"ada", None, (), "too large")
    bench = Bench([*records("ada"), cast(Stored, oversized)])
    assert await bench.deleted(letter("ada", 0)) == [False]
    assert not deletions_in([oversized])


async def test_a_letter_without_a_key_is_not_refused() -> None:
    bench = Bench(records("ada", "-ada"))
    assert await bench.deleted(letter(None, 0)) == [False]
    assert bench.topic.reads == 0


@pytest.mark.parametrize(("partition", "offset"), [(None, None), (None, 0), (0, None)])
@pytest.mark.parametrize("configs", [DELETED, COMPACTED])
async def test_a_letter_that_does_not_name_its_whole_place_is_compared_with_deletions_by_its_time(
    partition: int | None, offset: int | None, configs: dict[str, str]
) -> None:
    bench = grown(configs=configs)
    ada, bob, newer = (
        letter(key, offset, partition, time)
        for key, time in (("ada", NOW - 2 * HOUR), ("bob", NOW - 2 * HOUR), ("ada", NOW))
    )
    assert await bench.deleted(ada, bob, newer) == [True, False, False]
    undated = msgspec.structs.replace(newer, timestamp=None)
    assert await bench.deleted(undated) == [True], "it cannot be told"
    assert await Bench(records("bob", "-bob")).deleted(bob) == [True], "where the key has its partition"


@pytest.mark.parametrize(("partition", "offset"), [(None, None), (None, 0), (0, None)])
async def test_a_letter_without_its_whole_place_counts_as_deleted_once_kafka_may_have_forgotten_the_deletion(
    partition: int | None, offset: int | None
) -> None:
    for hours, deleted in ((23, False), (25, True)):
        bench = Bench(records("bob"), COMPACTED)
        assert await bench.deleted(letter("ada", offset, partition, NOW - hours * HOUR)) == [deleted]


async def test_a_deletion_that_failed_is_sent_back_also_when_its_letter_does_not_name_its_place() -> None:
    bench = Bench(records("ada", "-ada"))
    deletion = msgspec.structs.replace(letter("ada", None), value=None)
    assert await bench.deleted(deletion) == [False]
    bench.every.records[0] = [*records("ada", "-ada"), Stored(0, 2, NOW, b"ada", None, redrive_headers(deletion))]
    bench.topic._end = 2
    await bench.found.read_again([deletion, letter("ada", 1)])


def sent_back(at: int, deletion: DeadLetter, time: int = NOW) -> Stored:
    """Return what a redrive makes of the letter of a deletion, at an offset."""
    return Stored(0, at, time, deletion.key, None, redrive_headers(deletion))


def deletion(key: str, offset: int | None, partition: int = 0, group: str = "group") -> DeadLetter:
    return msgspec.structs.replace(letter(key, offset, partition), value=None, group=group)


@pytest.mark.parametrize("configs", [DELETED, COMPACTED])
async def test_a_deletion_that_was_sent_back_refuses_what_was_older_than_it_and_nothing_newer(
    configs: dict[str, str],
) -> None:
    bench = Bench([*records("ada", "-ada", "ada"), sent_back(3, deletion("ada", 1))], configs)
    older, own, newer = letter("ada", 0), deletion("ada", 1), letter("ada", 2)
    assert await bench.deleted(newer) == [False]
    assert await bench.deleted(older, own, newer) == [True, False, False]
    again = msgspec.structs.replace(deletion("ada", 3), timestamp=NOW, headers=(*redrive_headers(own),))
    bench.topic.records[0].append(sent_back(4, again))
    assert await bench.deleted(older, own, newer, again) == [True, False, False, False], "it was sent back twice"
    bench.topic.records[0].append(Stored(0, 5, NOW, b"ada", None))
    assert await bench.deleted(newer, again) == [True, True]


@pytest.mark.parametrize("offset", [1, None])
async def test_a_deletion_that_was_sent_back_for_another_group_refuses_nothing(offset: int | None) -> None:
    for_another = sent_back(3, deletion("ada", offset, group="another"))
    bench = Bench([*records("ada", "-ada", "ada"), for_another])
    assert await bench.deleted(letter("ada", 0), letter("ada", 2)) == [True, False]
    bench = Bench(records("ada", "-ada", "ada"))
    bench.every.records[0] = [*records("ada", "-ada", "ada"), for_another]
    bench.topic._end = 3
    assert await bench.deleted(letter("ada", 2)) == [False], "not while its transaction is open either"


async def test_a_deletion_without_its_place_that_was_sent_back_counts_where_it_is_now() -> None:
    bench = Bench([*records("ada", "bob", "ada"), sent_back(3, deletion("ada", None))])
    assert await bench.deleted(letter("ada", 2)) == [True], "it cannot be told"


async def test_what_was_older_than_a_deletion_is_refused_also_when_only_the_one_sent_back_is_left() -> None:
    left = [sent_back(5, deletion("ada", 3))]
    older, newer = letter("ada", 2), letter("ada", 4)
    assert await Bench(left).deleted(older, newer) == [True, False]
    assert await Bench(left, COMPACTED).deleted(older, newer) == [True, True], "a newer one may have been there"
    left = [sent_back(5, deletion("ada", 3), NOW - HOUR)]
    placeless = letter("ada", None, None, NOW - HOUR), letter("ada", None, None, NOW)
    assert await Bench(left, COMPACTED).deleted(*placeless) == [True, False]


async def test_a_deletion_of_before_its_topic_was_recreated_refuses_nothing_that_is_newer() -> None:
    bench = Bench([*records("ada", "bob"), sent_back(2, deletion("ada", 80))])
    own, older, newer = letter("ada", 0), letter("ada", 79), letter("ada", 81)
    assert await bench.deleted(own, older, newer) == [False, True, False]
    bench = Bench([*records("ada", "bob"), sent_back(2, deletion("ada", 80, 7))])
    older, newer = letter("ada", 79, 7), letter("ada", 81, 7)
    assert await bench.deleted(older, newer, own) == [True, False, True], "across partitions it cannot be told"


async def test_a_deletion_that_was_sent_back_after_partitions_were_added_counts_by_its_first_time() -> None:
    bench = grown(age=0)
    bench.topic.records[1] = [Stored(1, 0, NOW - HOUR, b"ada", b"value")]
    bench.topic.records[0] = [*records("ada", "-ada"), sent_back(2, deletion("ada", 1))]
    older, newer = letter("ada", 0), letter("ada", 0, 1, NOW - HOUR)
    assert await bench.deleted(older, newer) == [True, False]
    placeless = letter("ada", None, None, NOW - HOUR)
    assert await bench.deleted(placeless) == [False]
    bench.topic.records[0][1].value = b"of a recreated topic"
    assert await bench.deleted(placeless) == [True], "its first time is not known any more"
    del bench.topic.records[0][:2]
    assert await bench.deleted(placeless) == [True]


async def test_a_deletion_that_an_open_transaction_hides_is_waited_for_because_it_may_be_aborted() -> None:
    bench = Bench(records("ada", "bob", "-ada"))
    bench.topic._end = 2
    with pytest.raises(RedriveNotNow, match="for the end of another client's transaction: try again then"):
        await bench.deleted(letter("ada", 0))
    assert await bench.deleted(letter("bob", 1)) == [False]
    bench.topic._end = None
    assert await bench.deleted(letter("ada", 0)) == [True]


async def test_a_redrive_waits_for_what_others_hide_before_it_commits_and_not_for_what_it_has_written_itself() -> None:
    bench = Bench(records("ada", "bob"))
    await bench.deleted(letter("ada", 0))
    hidden = records("ada", "bob", "-ada")
    bench.every.records[0] = hidden
    bench.topic._end = 2
    with pytest.raises(RedriveNotNow, match="a deletion of the key of a dead letter"):
        await bench.found.read_again([letter("ada", 0)])
    hidden[2].headers = redrive_headers(letter("ada", 0))
    await bench.found.read_again([letter("ada", 0)])


class Ending(Topic):
    """A topic whose open transaction ends once its end was looked for, or to which a record comes then."""

    async def offsets(self, partitions: int) -> tuple[dict[int, int], dict[int, int]]:
        found = await super().offsets(partitions)
        self._end = 3
        return found


def with_a_deletion_that_comes() -> Bench:
    bench = Bench(records("ada", "bob", "-ada"))
    bench.found._log = cast(LogReader, Ending(bench.topic.records, end=2))
    bench.found._transactions.stable = bench.found._log
    return bench


async def test_a_deletion_whose_transaction_ends_between_two_looks_is_found() -> None:
    with pytest.raises(DeletedMeanwhile, match="a deletion of the key of a dead letter") as raised:
        await with_a_deletion_that_comes().found.read_again([letter("ada", 0), letter("bob", 1)])
    assert raised.value.keys == {b"ada"}


async def test_a_deletion_that_comes_while_deletions_are_looked_for_refuses_the_letter_of_its_key_alone() -> None:
    assert await with_a_deletion_that_comes().deleted(letter("ada", 0), letter("bob", 1)) == [True, False]


async def test_what_was_read_is_not_read_again_and_a_new_deletion_is_found() -> None:
    bench = Bench(records("ada", "bob", "eve"))
    assert await bench.deleted(letter("ada", 0)) == [False]
    bench.topic.reads = 0
    assert await bench.deleted(letter("ada", 0), letter("bob", 1)) == [False, False]
    assert bench.topic.reads == 0
    bench.topic.records[0].append(Stored(0, 3, NOW, b"ada", None))
    assert await bench.deleted(letter("ada", 0), letter("bob", 1)) == [True, False]
    assert bench.topic.reads == 1


async def test_an_older_letter_has_the_topic_read_from_its_record_on() -> None:
    bench = Bench(records("ada", "-ada", "bob", "eve"))
    assert await bench.deleted(letter("bob", 2)) == [False]
    assert await bench.deleted(letter("ada", 0)) == [True]


async def test_a_search_that_is_late_refuses_for_now() -> None:
    bench = Bench(records("ada", "bob", "-ada"))
    with pytest.raises(RedriveNotNow, match="looked for on events, 3 records are left: try again"):
        await bench.deleted(letter("ada", 0), late=-math.inf)


async def test_a_search_that_ended_early_goes_on_where_it_was() -> None:
    bench = Bench(records("ada", "bob", "bob", "bob", "-ada"))
    bench.topic.fails_after = 4
    with pytest.raises(KafkaConnectionError):
        await bench.deleted(letter("ada", 0))
    bench.topic.reads, bench.topic.fails_after = 0, math.inf
    assert await bench.deleted(letter("ada", 0)) == [True]
    assert bench.topic.reads == 1


async def test_a_recreated_topic_has_deletions_of_its_own() -> None:
    bench = Bench(records("bob", "bob", "-ada"))
    assert await bench.deleted(letter("ada", 0)) == [True]
    bench.id = UUID(int=2)
    bench.topic.records[0] = records("ada", "bob", "eve")
    assert await bench.deleted(letter("ada", 0)) == [False]
    bench.topic.records[0].append(sent_back(4, deletion("ada", 80)))
    assert await bench.deleted(letter("ada", 79)) == [True]
    bench.id = UUID(int=3)
    bench.topic.records[0] = bench.every.records[0] = records("bob")
    assert await bench.deleted(letter("ada", 79)) == [False]


async def test_a_deletion_in_place_of_records_that_a_new_leader_lacks_is_found() -> None:
    bench = Bench(records("ada", "bob", "bob", "eve"))
    assert await bench.deleted(letter("ada", 0)) == [False]
    bench.topic.records[0] = records("ada", "-ada")
    assert await bench.deleted(letter("ada", 0)) == [True]


@pytest.mark.parametrize("length", [3, 4, 9])
async def test_a_deletion_in_place_of_lost_records_is_found_however_long_the_topic_is_again(length: int) -> None:
    bench = Bench(records("ada", "bob", "bob", "eve"))
    assert await bench.deleted(letter("ada", 0)) == [False]
    bench.topic.records[0][1:] = [Stored(0, offset, NOW, b"bob") for offset in range(1, length)]
    bench.topic.records[0][2] = Stored(0, 2, NOW, b"ada", None)
    assert await bench.deleted(letter("ada", 0)) == [True]


async def test_a_deletion_in_place_of_the_lost_end_of_a_transaction_is_found() -> None:
    bench = Bench(records("ada", "bob"))
    bench.topic._end = 3
    assert await bench.deleted(letter("ada", 0)) == [False]
    bench.topic.records[0].append(Stored(0, 2, NOW, b"ada", None))
    assert await bench.deleted(letter("ada", 0)) == [True]


async def test_a_deletion_is_known_after_kafka_has_deleted_or_compacted_what_was_read_last() -> None:
    for left in ([], [Stored(0, 5, NOW, b"eve", b"value")]):
        bench = Bench(records("ada", "-ada", "bob", "eve"))
        assert await bench.deleted(letter("ada", 0)) == [True]
        bench.topic.records[0][:], bench.topic._end = left, 6
        assert await bench.deleted(letter("ada", 0)) == [True]


@pytest.mark.parametrize("configs", [DELETED, COMPACTED])
@pytest.mark.parametrize("length", [1, 81, 200])
@pytest.mark.parametrize("partition", [0, 7])
async def test_a_letter_of_before_its_topic_was_recreated_is_not_sent_back_once_its_key_is_deleted_there(
    configs: dict[str, str], length: int, partition: int
) -> None:
    bench = Bench([Stored(0, 0, NOW, b"ada", None)], configs)
    bench.topic.records[0] += [Stored(0, offset, NOW, b"ada", b"new") for offset in range(1, length)]
    assert await bench.deleted(letter("ada", 80, partition, NOW - HOUR)) == [True]
    if configs is DELETED:
        assert await bench.deleted(letter("bob", 80, partition, NOW - HOUR)) == [False]
    if length > 80:
        assert await bench.deleted(letter("ada", 80, 0, NOW)) == [False], "it failed after the deletion"


async def test_a_letter_whose_record_was_compacted_away_counts_as_deleted_where_records_are() -> None:
    left = records("ada", "bob", "eve")[1:]
    assert await Bench(left, COMPACTED).deleted(letter("ada", 0), letter("bob", 1)) == [True, False]
    assert await Bench(left, DELETED).deleted(letter("ada", 0), letter("bob", 1)) == [False, False]


def grown(age: int = HOUR, configs: dict[str, str] = DELETED) -> Bench:
    """Return a topic whose keys ada and bob were in partition 0; then ada got partition 1, and was deleted there."""
    bench = Bench(records("ada", "bob"), configs)
    bench.partitions[TOPIC] = 2
    assert partitions_of([b"ada", b"bob"], 2) == [1, 0]
    bench.topic.records[1] = [Stored(1, 0, NOW - age, b"ada", None)]
    return bench


@pytest.mark.parametrize("configs", [DELETED, COMPACTED])
async def test_a_deletion_is_found_in_the_partition_that_its_key_got_when_some_were_added(
    configs: dict[str, str],
) -> None:
    bench = grown(configs=configs)
    assert await bench.deleted(letter("ada", 0, 0, NOW - 2 * HOUR)) == [True]
    assert await bench.deleted(letter("bob", 1)) == [False]


async def test_a_deletion_in_another_partition_that_is_older_than_the_record_does_not_count() -> None:
    bench = grown(age=2 * HOUR)
    assert await bench.deleted(letter("ada", 0, 0, NOW - HOUR)) == [False]
    for wrong in (-1, NOW + HOUR):
        assert await bench.deleted(letter("ada", 0, 0, wrong)) == [True], "it cannot be told"


async def test_a_letter_whose_key_still_has_its_partition_has_no_other_one_read() -> None:
    bench = grown()
    assert await bench.deleted(letter("bob", 1)) == [False]
    assert bench.topic.reads == 1


async def test_the_partitions_of_a_topic_are_read_together() -> None:
    bench = Bench([])
    bench.partitions[TOPIC] = 64
    (last,) = partitions_of([b"ada"], 64)
    bench.topic.records = {number: [Stored(number, 0, NOW, b"bob", b"value")] for number in range(64)}
    bench.topic.records[last] = [Stored(last, 0, NOW, b"ada", None)]
    assert await bench.deleted(letter("ada", None, None, NOW)) == [True]
    assert bench.topic.reads < 10
    bench.every.records = {number: [Stored(number, one, NOW, b"bob") for one in (0, 1)] for number in range(64)}
    await bench.found.read_again([letter("ada", None, None, NOW)])
    assert 0 < bench.every.reads < 10, "also what a redrive has written itself"


async def test_a_letter_whose_deletion_kafka_may_have_forgotten_counts_as_deleted_once_its_key_has_moved() -> None:
    for hours, deleted in ((23, False), (25, True)):
        bench = grown(configs=COMPACTED)
        bench.topic.records = {0: [Stored(0, 0, NOW - hours * HOUR, b"ada", b"value")], 1: []}
        assert await bench.deleted(letter("ada", 0, 0, NOW - hours * HOUR)) == [deleted]


async def test_too_many_deletions_are_not_kept_in_memory() -> None:
    bench = Bench([*records("ada", "-bob", "-eve"), sent_back(3, deletion("joe", 1))], max_tombstones=2)
    with pytest.raises(RedriveNotNow, match="more than 2 keys were deleted on events"):
        await bench.deleted(letter("ada", 0))
    assert await bench.deleted(letter("ada", 2)) == [False]
