import asyncio
import math
from collections.abc import Collection
from typing import Any, cast
from uuid import UUID

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    KafkaConnectionError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    UnknownError,
)
from aiokafka.structs import OffsetAndMetadata
from samples import everything_else_has_run

from apps.consumer.consuming.commit_metadata import MARK, metadata_of
from apps.consumer.consuming.commits import GIVEN_AWAY, CommitRefused, Commits
from tests.fakes import GroupMember

pytestmark = pytest.mark.anyio

P0 = TopicPartition("events", 0)
OLD, NEW, NEWEST = UUID(int=1), UUID(int=2), UUID(int=3)


class Group:
    """What a group has committed: `commits` of it, as one member reads and writes them through `client`."""

    def __init__(self, *, followers: bool = False, **positions: int) -> None:
        self.committed: dict[int, OffsetAndMetadata | None] = {}
        self.client = GroupMember({int(name[1:]): position for name, position in positions.items()})
        self.ends: dict[int, int] = {0: 10_000, 1: 10_000}
        self.topic_id: UUID | None = None
        self.commits = Commits(self.read, self.read_ends, self.topic_ids, retry_pause_s=0, followers=followers)
        self.is_leaving = False

    async def read(self) -> dict[int, OffsetAndMetadata | None]:
        return self.committed

    async def read_ends(self, partitions: int) -> dict[int, int]:
        return {partition: self.ends[partition] for partition in range(partitions)}

    async def topic_ids(self, _: object, partitions: Collection[TopicPartition]) -> dict[TopicPartition, UUID | None]:
        return dict.fromkeys(partitions, self.topic_id)

    async def recreated(self) -> list[TopicPartition]:
        return await self.commits.recreated(cast("Any", self.client))

    async def assign(self) -> None:
        self.commits.assigned()
        await self.commits.begin(cast("Any", self.client))

    async def commit(self, position: int) -> None:
        await self.commits.commit(cast("Any", self.client), {P0: position}, lambda: self.is_leaving)

    async def idle(self) -> None:
        await self.commits.commit_idle(cast("Any", self.client))

    async def reset(self, error: OffsetOutOfRangeError | NoOffsetForPartitionError) -> set[TopicPartition]:
        return await self.commits.reset(cast("Any", self.client), error)

    async def seek(self, offset: int, topic_id: UUID | None = None) -> None:
        await self.commits.seek(cast("Any", self.client), {P0: offset}, {P0: topic_id})

    @property
    def moves(self) -> list[tuple[str, int, int, int]]:
        return [(move.reason, move.before, move.after, move.skipped) for move in self.commits.moves.newest]


async def test_a_commit_covers_what_stands_before_it_and_is_marked() -> None:
    group = Group(p0=10, p1=7)
    await group.commit(10)
    assert group.client.commits == {0: (10, MARK), 1: (7, MARK)}


async def test_what_is_committed_already_is_not_committed_again() -> None:
    group = Group(p0=10)
    await group.commit(10)
    group.client.commits.clear()
    await group.idle()
    assert group.client.commits == {}


async def test_a_position_that_moved_without_a_record_is_committed() -> None:
    group = Group(p0=10)
    await group.commit(10)
    group.client.positions[0] = 211
    await group.idle()
    assert group.client.commits == {0: (211, MARK)}


async def test_a_batch_whose_partition_was_given_away_is_not_committed() -> None:
    group = Group(p0=0)  # where the new assignment begins
    with pytest.raises(CommitRefused):
        await group.commit(10)
    assert group.client.commits == {}
    assert group.commits.error == GIVEN_AWAY


async def test_a_commit_that_the_group_refuses_is_logged_counted_and_shown_until_one_succeeds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    group = Group(p0=10)
    group.client.errors = [CommitFailedError()]
    with pytest.raises(CommitRefused):
        await group.commit(10)
    assert group.commits.failures == {"CommitFailedError": 1}
    assert group.commits.error == GIVEN_AWAY
    assert [line.getMessage() for line in caplog.records] == [f"a commit failed: {GIVEN_AWAY}"]
    await group.commit(10)
    assert group.commits.error is None


@pytest.mark.parametrize("what", ["a batch", "an idle position", "a seek"])
async def test_a_consumer_that_is_no_member_commits_nothing(what: str) -> None:
    group = Group(p0=10)
    group.client.lose_session()
    match what:
        case "a batch":
            with pytest.raises(CommitRefused):
                await group.commit(10)
        case "an idle position":
            await group.idle()
        case _:
            with pytest.raises(CommitFailedError):
                await group.seek(5)
    assert group.client.commits == {}
    assert group.client.positions == {0: 10}


@pytest.mark.parametrize("error", [UnknownError(), TimeoutError(), CommitFailedError()])
async def test_a_seek_whose_commit_fails_moves_nothing_although_kafka_may_have_taken_it(error: Exception) -> None:
    group = Group(p0=10)
    await group.commit(10)
    group.client.errors = [error]
    with pytest.raises(type(error)):
        await group.seek(5)
    assert group.client.positions == {0: 10}
    group.client.commits = {0: (5, MARK)}  # Kafka took it, and its answer was lost
    await group.idle()
    assert group.client.commits == {0: (10, MARK)}


async def test_a_seek_waits_for_the_commit_of_an_idle_position_or_its_own_would_be_undone() -> None:
    group = Group(p0=10)
    may_end = asyncio.Event()
    commit = group.client.commit

    async def slow(offsets: Any) -> None:  # noqa: ANN401 - as the client has it
        await may_end.wait()
        await commit(offsets)

    group.client.commit = slow  # type: ignore[method-assign]
    idle = asyncio.create_task(group.idle())
    await everything_else_has_run()
    group.client.commit = commit  # type: ignore[method-assign]
    seek = asyncio.create_task(group.seek(5))
    await everything_else_has_run()
    may_end.set()
    await asyncio.gather(idle, seek)
    assert group.client.commits == {0: (5, MARK)}


async def test_a_commit_that_fails_for_another_reason_is_tried_until_it_is_taken() -> None:
    group = Group(p0=10)
    group.client.errors = [UnknownError(), TimeoutError()]
    await group.commit(10)
    assert group.client.commits == {0: (10, MARK)}
    assert group.commits.failures == {"CommitFailedError": 0, "UnknownError": 1, "TimeoutError": 1}
    assert group.commits.error is None


async def test_a_commit_that_fails_is_given_up_with_the_partitions() -> None:
    group = Group(p0=10)
    group.client.errors = [UnknownError()]
    group.is_leaving = True
    with pytest.raises(CommitRefused):
        await group.commit(10)


async def test_an_idle_member_whose_commit_fails_says_so_and_tries_again() -> None:
    group = Group(p0=10)
    group.client.errors = [UnknownError()]
    await group.idle()
    assert group.commits.error
    await group.idle()
    assert group.commits.error is None
    assert group.client.commits == {0: (10, MARK)}


async def test_records_that_were_deleted_before_they_were_consumed_count_as_skipped_once_that_is_committed() -> None:
    group = Group(p0=1_000)
    group.client.first = {0: 10_000}
    await group.reset(OffsetOutOfRangeError({P0: 1_000}))
    assert group.moves == []
    await group.idle()
    assert group.moves == [("deleted", 1_000, 10_000, 9_000)]
    assert group.commits.moves.skipped == {(0, "deleted"): 9_000}
    assert group.client.commits == {0: (10_000, MARK)}


async def test_a_move_that_was_not_committed_is_found_again_by_the_next_assignment_and_counts_once() -> None:
    group = Group(p0=1_000)
    group.client.first = {0: 10_000}
    await group.reset(OffsetOutOfRangeError({P0: 1_000}))
    await group.assign()
    await group.reset(OffsetOutOfRangeError({P0: 1_000}))
    await group.idle()
    assert group.commits.moves.skipped == {(0, "deleted"): 9_000}


async def test_a_partition_that_was_cut_off_is_consumed_from_its_beginning_and_said_to_be() -> None:
    group = Group(p0=500)
    await group.reset(OffsetOutOfRangeError({P0: 500}))
    await group.idle()
    assert group.moves == [("out_of_range", 500, 0, 0)]
    assert group.commits.moves.moved == {(0, "out_of_range"): 1}


async def test_a_position_that_the_group_has_forgotten_is_reported_as_such() -> None:
    group = Group(p0=300)
    await group.commit(300)
    await group.assign()
    await group.reset(NoOffsetForPartitionError(P0))
    await group.idle()
    assert group.moves == [("forgotten", 300, 0, 0)]


async def test_a_group_that_begins_moves_nothing() -> None:
    group = Group(p0=0)
    await group.assign()
    await group.reset(NoOffsetForPartitionError(P0))
    await group.idle()
    assert group.moves == []
    assert group.client.commits == {0: (0, MARK)}


@pytest.mark.parametrize(("after", "skipped"), [(900, 600), (100, 0)])
async def test_what_another_client_committed_in_the_name_of_the_group_is_reported(after: int, skipped: int) -> None:
    group = Group(p0=300)
    await group.commit(300)
    group.committed = {0: OffsetAndMetadata(after, "")}
    await group.assign()
    assert group.moves == [("altered", 300, after, skipped)]
    await group.assign()
    assert len(group.moves) == 1


async def test_a_commit_of_another_client_beyond_the_end_skips_nothing_because_the_client_begins_again() -> None:
    group = Group(p0=300)
    await group.commit(300)
    group.ends = {0: 310}
    group.committed = {0: OffsetAndMetadata(360, "")}
    await group.assign()
    assert group.moves == [("altered", 300, 360, 0)]
    await group.reset(OffsetOutOfRangeError({P0: 360}))
    await group.idle()
    assert group.moves[1:] == [("out_of_range", 360, 0, 0)]


async def test_deleted_records_that_were_consumed_before_another_client_committed_are_not_skipped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    group = Group(p0=1_155)
    await group.commit(1_155)
    group.committed = {0: OffsetAndMetadata(100, "")}
    await group.assign()
    group.client.first = {0: 500}
    await group.reset(OffsetOutOfRangeError({P0: 100}))
    await group.idle()
    assert group.moves == [("altered", 1_155, 100, 0), ("deleted", 100, 500, 0)]
    assert "moved from 100 to 500, 0 records were skipped" in caplog.text
    group.committed = {0: OffsetAndMetadata(500, MARK)}
    await group.commits.read()
    group.client.first = {0: 1_200}
    await group.reset(OffsetOutOfRangeError({P0: 500}))
    await group.idle()
    assert group.moves[-1] == ("deleted", 500, 1_200, 45)


async def test_what_another_client_puts_back_and_forth_is_not_skipped_where_it_was_consumed() -> None:
    group = Group(p0=1_000)
    await group.commit(1_000)
    for offset in (100, 1_010):
        group.committed = {0: OffsetAndMetadata(offset, "")}
        await group.assign()
    assert group.moves == [("altered", 1_000, 100, 0), ("altered", 100, 1_010, 10)]


@pytest.mark.parametrize("how", ["forgotten", "out_of_range", "sought", "sought by another instance"])
async def test_records_that_are_to_be_consumed_again_are_skipped_when_they_are_deleted(how: str) -> None:
    group = Group(p0=1_000)
    await group.commit(1_000)
    match how:
        case "forgotten":
            await group.reset(NoOffsetForPartitionError(P0))
        case "out_of_range":
            await group.reset(OffsetOutOfRangeError({P0: 1_000}))
        case "sought":
            await group.seek(0)
        case _:
            group.committed = {0: OffsetAndMetadata(0, MARK)}
            await group.commits.read()
    group.client.positions[0] = 10
    await group.commit(10)
    group.client.first = {0: 500}
    await group.reset(OffsetOutOfRangeError({P0: 10}))
    await group.idle()
    assert group.moves[-1] == ("deleted", 10, 500, 490)


async def test_what_another_instance_of_the_service_committed_is_its_progress() -> None:
    group = Group(p0=300)
    await group.commit(300)
    group.committed = {0: OffsetAndMetadata(900, MARK)}
    await group.assign()
    assert group.moves == []
    group.committed = {0: OffsetAndMetadata(950, MARK)}
    await group.commits.read()  # as every look at the status does
    group.committed = {0: OffsetAndMetadata(960, "")}
    await group.assign()
    assert group.moves == [("altered", 950, 960, 10)]


async def test_what_the_group_has_committed_is_read_again_when_kafka_did_not_answer() -> None:
    group = Group(p0=300)
    await group.commit(300)
    answered = False

    async def read() -> dict[int, OffsetAndMetadata | None]:
        if not answered:
            raise TimeoutError
        return {0: OffsetAndMetadata(900, "")}

    group.commits._read_commits = read
    await group.assign()
    answered = True
    await group.commits.begin(cast("Any", group.client))
    assert group.moves == [("altered", 300, 900, 600)]


async def test_where_an_operator_sought_to_nothing_has_moved_by_itself() -> None:
    group = Group(p0=300)
    await group.commit(300)
    group.client.first = {0: 200}
    await group.reset(OffsetOutOfRangeError({P0: 100}))
    await group.seek(250)
    group.client.positions[0] = 260
    await group.idle()
    assert group.moves == []


async def test_a_partition_that_was_given_away_in_between_is_not_sought() -> None:
    group = Group()
    await group.reset(OffsetOutOfRangeError({P0: 100}))
    assert group.client.positions == {}


async def consuming(position: int, *, followers: bool = False) -> Group:
    """Return a group whose position belongs to the old topic, which is recreated now."""
    group = Group(p0=position, followers=followers)
    group.topic_id = OLD
    group.committed = {0: OffsetAndMetadata(position, metadata_of(OLD))}
    await group.assign()
    assert await group.recreated() == []
    group.topic_id = NEW
    return group


@pytest.mark.parametrize("error", [NoOffsetForPartitionError(P0), OffsetOutOfRangeError({P0: 40})])
async def test_a_position_that_was_reset_in_a_recreated_topic_is_not_moved_again(error: Any) -> None:  # noqa: ANN401 - two types
    group = await consuming(40)
    await group.reset(error)
    assert await group.recreated() == []
    await group.idle()
    assert group.client.commits == {0: (0, metadata_of(NEW))}
    assert group.moves == [("recreated", 40, 0, 0)]


async def test_records_of_a_recreated_topic_that_were_deleted_before_they_were_consumed_are_skipped() -> None:
    group = await consuming(40)
    group.client.first = {0: 60}
    await group.reset(OffsetOutOfRangeError({P0: 40}))
    await group.idle()
    assert group.moves == [("recreated", 40, 60, 60)]


async def test_a_position_of_a_deleted_topic_is_found_although_no_reset_was_due() -> None:
    group = await consuming(40)
    assert await group.recreated() == [P0]
    assert group.commits.is_of_another(P0, NEW)
    await group.seek(0, NEW)
    assert await group.recreated() == []
    group.topic_id = NEWEST
    assert await group.recreated() == [P0]


async def test_a_commit_of_a_deleted_topic_is_found_by_an_instance_that_joined_after_the_recreation() -> None:
    group = Group(p0=40)
    group.topic_id = NEW
    group.committed = {0: OffsetAndMetadata(40, metadata_of(OLD))}  # written late, by a batch that was in flight
    await group.assign()
    assert await group.recreated() == [P0]


async def test_what_the_group_has_committed_in_the_new_topic_is_not_consumed_twice() -> None:
    group = await consuming(40)
    group.client.positions = {0: 7}
    group.committed = {0: OffsetAndMetadata(7, metadata_of(NEW))}
    await group.assign()
    assert await group.recreated() == []
    assert group.moves == []


async def test_a_topic_that_is_recreated_before_its_commits_are_read_is_not_taken_for_theirs() -> None:
    group = Group(p0=40)
    group.topic_id = NEW
    group.committed = {0: OffsetAndMetadata(40, metadata_of(OLD))}
    group.commits.assigned()
    assert await group.recreated() == []
    await group.commits.begin(cast("Any", group.client))
    assert await group.recreated() == [P0]


async def test_a_position_without_a_topic_is_taken_for_one_of_the_present_topic() -> None:
    group = Group(p0=40)
    group.topic_id = OLD
    group.committed = {0: OffsetAndMetadata(40, MARK)}
    await group.assign()
    assert await group.recreated() == []
    group.topic_id = NEW
    assert await group.recreated() == [P0]


async def test_a_reset_whose_topic_is_not_known_is_tried_again() -> None:
    group = await consuming(40)
    group.commits._ask_topic_ids = unanswered
    with pytest.raises(KafkaConnectionError):
        await group.reset(OffsetOutOfRangeError({P0: 40}))
    assert group.client.positions == {0: 40}


async def unanswered(*_: object) -> dict[TopicPartition, UUID | None]:
    return {}


@pytest.mark.parametrize("metadata", ["", "consumer no-id", f"another {OLD}"])
async def test_metadata_of_a_commit_that_names_no_topic_of_this_service_is_no_topic(metadata: str) -> None:
    group = Group(p0=40)
    group.topic_id = NEW
    group.committed = {0: OffsetAndMetadata(40, metadata)}
    await group.assign()
    assert await group.recreated() == []


async def test_a_move_in_a_recreated_topic_is_reported_although_a_rebalance_came_before_its_commit() -> None:
    group = await consuming(40)
    await group.reset(NoOffsetForPartitionError(P0))
    group.committed = {}
    await group.assign()
    await group.reset(NoOffsetForPartitionError(P0))
    await group.idle()
    assert group.moves == [("recreated", 40, 0, 0)]


@pytest.mark.parametrize(("first", "end"), [(0, 500), (500, 900)])
async def test_a_position_that_only_a_follower_does_not_have_is_kept_and_nothing_counts_as_skipped(
    first: int, end: int
) -> None:
    group = await consuming(500, followers=True)
    group.topic_id, group.client.first, group.client.end = OLD, {0: first}, {0: end}
    assert await group.reset(OffsetOutOfRangeError({P0: 500})) == set()
    await group.idle()
    assert (group.client.positions, group.moves) == ({0: 500}, [])


@pytest.mark.parametrize(
    ("first", "end", "topic_id", "move"),
    [
        (0, 499, OLD, ("out_of_range", 500, 0, 0)),
        (501, 900, OLD, ("deleted", 500, 501, 1)),
        (0, 900, NEW, ("recreated", 500, 0, 0)),
    ],
)
async def test_a_position_that_the_leader_does_not_have_either_is_moved_although_a_follower_was_asked(
    first: int, end: int, topic_id: UUID, move: tuple[str, int, int, int]
) -> None:
    group = await consuming(500, followers=True)
    group.topic_id, group.client.first, group.client.end = topic_id, {0: first}, {0: end}
    assert await group.reset(OffsetOutOfRangeError({P0: 500})) == {P0}
    await group.idle()
    assert (group.client.positions, group.moves) == ({0: first}, [move])


@pytest.mark.parametrize("how", ["sought", "reset"])
async def test_records_at_a_new_position_are_fetched_from_the_leader_first(how: str) -> None:
    group = await consuming(40)
    group.client._fetcher._preferred_read_replica[P0] = (2, math.inf)  # it may serve the deleted topic for a while
    await (group.seek(0, NEW) if how == "sought" else group.reset(NoOffsetForPartitionError(P0)))
    assert group.client._fetcher._preferred_read_replica == {}
