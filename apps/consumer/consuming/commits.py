"""Commit positions, and find those that neither consuming nor an operator moved.

Kafka refuses commits (a member that was silent for too long), forgets them (an expired or deleted group), lets other
clients alter them while no member is there, and deletes records before they are consumed.

Each position belongs to a topic id, which its commit carries: offsets of a deleted topic mean nothing in a recreated
one of the same name.
"""

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from aiokafka.structs import OffsetAndMetadata

from apps.chassis.internals.member_commits import commit_as_member
from apps.chassis.internals.nearest_replica import ask_leaders
from apps.chassis.internals.partition_topic_ids import partition_topic_ids
from apps.chassis.kafka.client_journal import ClientJournal
from apps.chassis.observability.logs import one_line
from apps.consumer.consuming.commit_metadata import is_own, metadata_of, topic_id_in
from apps.consumer.consuming.unplanned_moves import Move, Moves, Reason

log = logging.getLogger(__name__)

COMMIT_TIMEOUT_S = 5.0
"""Seconds for one attempt to commit; the client itself would retry for ever."""
RETRY_PAUSE_S = 0.5
"""Seconds between two attempts to commit the same batch."""
READ_TIMEOUT_S = 2.0
"""Seconds to read the group's committed offsets."""
READS = 3
"""Attempts to read committed offsets after an assignment; each delays the records of a poll."""
GIVEN_AWAY = "the group revoked the partitions while the batch was in flight (CommitFailedError)"

ReadCommits = Callable[[], Awaitable[Mapping[int, OffsetAndMetadata | None]]]
"""Reads the group's committed offset in each partition, as `Cluster.commits` does."""
ReadEnds = Callable[[int], Awaitable[Mapping[int, int]]]
"""Reads the ends of the first partitions, as `LogReader.ends` does."""
AskTopicIds = Callable[[AIOKafkaConsumer, Collection[TopicPartition]], Awaitable[Mapping[TopicPartition, UUID | None]]]
"""Asks the leaders of partitions for the id of their topic, as `partition_topic_ids` does."""


class CommitRefused(Exception):
    """Kafka refused the commit of a batch: it will be redelivered, here or to another member."""


@dataclass(slots=True)
class PartitionCommits:
    """What is known of a partition: its last commit, and the topics that this and the position belong to.

    `highest` is known to be committed since the last move back by an operator or a reset. `pending` moves are reported
    once the new position is committed.
    """

    committed: int | None = None
    committed_topic: UUID | None = None
    topic: UUID | None = None
    highest: int = 0
    pending: list[Move] = field(default_factory=list)

    def note(self, commit: OffsetAndMetadata) -> None:
        """Remember a commit. One of this service goes back only where records are to be consumed again."""
        topic_id = topic_id_in(commit)
        if is_own(commit) and (commit.offset < (self.committed or 0) or self.is_recreated(topic_id)):
            self.highest = 0
        self.committed, self.committed_topic = commit.offset, topic_id
        self.highest = max(commit.offset, self.highest)

    def is_altered(self, commit: OffsetAndMetadata) -> bool:
        """Return whether another client made a commit at another offset than this service."""
        return not is_own(commit) and self.committed not in {None, commit.offset}

    def is_recreated(self, topic_id: UUID | None) -> bool:
        """Return whether the last commit belongs to another topic than this one."""
        return None not in {self.committed_topic, topic_id} and self.committed_topic != topic_id

    def skipped(self, before: int, after: int) -> int:
        """Return how many records a move left out that the group has not committed before."""
        return max(0, after - max(before, self.highest))


class Commits:
    """Commits the positions of a group's member, across its connections.

    `failures` counts failed commits by the type of the error. `error` is the last one, until a commit succeeds.
    `retrying_since` is when the commit of the in-flight batch first failed (`time.monotonic`). `moves` are those of
    positions. With `followers`, the consumer may fetch from them too; `journal` is the one of its client.
    """

    def __init__(  # noqa: PLR0913 - what it reads, asks and records
        self,
        read_commits: ReadCommits,
        read_ends: ReadEnds,
        ask_topic_ids: AskTopicIds = partition_topic_ids,
        retry_pause_s: float = RETRY_PAUSE_S,
        *,
        followers: bool = False,
        journal: ClientJournal | None = None,
    ) -> None:
        self.failures: Counter[str] = Counter({CommitFailedError.__name__: 0})
        self.error: str | None = None
        self.retrying_since: float | None = None
        self.moves = Moves()
        self._read_commits = read_commits
        self._read_ends = read_ends
        self._ask_topic_ids = ask_topic_ids
        self._retry_pause_s = retry_pause_s
        self._followers = followers
        self._journal = journal or ClientJournal()
        self._partitions: defaultdict[int, PartitionCommits] = defaultdict(PartitionCommits)
        self._reads_left = 0
        self._committing = asyncio.Lock()

    def assigned(self) -> None:
        """Note that partitions were assigned: their positions are now the group's committed offsets."""
        for one in self._partitions.values():
            if one.pending:
                one.committed = one.pending[0].before  # if the move is found again, it is from there
            one.pending, one.topic = [], None
        self._reads_left = READS

    async def read(self) -> dict[int, int | None]:
        """Return the group's committed offset in each partition; raises the errors of `read_commits`.

        Commits of members of this service are remembered. Commits of other clients are compared in `begin`.
        """
        commits = await self._read_commits()
        for partition, commit in commits.items():
            if commit is not None and is_own(commit):
                self._partitions[partition].note(commit)
        return {partition: commit.offset if commit else None for partition, commit in commits.items()}

    async def begin(self, consumer: AIOKafkaConsumer) -> None:
        """After an assignment, report commits of other clients since this service last knew.

        Call it after a poll and before its records are handled: partitions may have been assigned during the poll.
        """
        if not self._reads_left:
            return
        self._reads_left -= 1
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                commits = {number: commit for number, commit in (await self._read_commits()).items() if commit}
                altered = [number for number, commit in commits.items() if self._partitions[number].is_altered(commit)]
                ends = await self._read_ends(max(altered) + 1) if altered else {}
        except (KafkaError, OSError, TimeoutError):
            return  # retried after the next poll
        self._reads_left = 0
        for number in sorted(tp.partition for tp in consumer.assignment() if tp.partition in commits):
            known, commit = self._partitions[number], commits[number]  # the client reports one without: see `reset`
            if known.is_altered(commit) and known.committed is not None:
                is_beyond = commit.offset > ends.get(number, commit.offset)  # the client begins again: see `reset`
                skipped = 0 if is_beyond else known.skipped(known.committed, commit.offset)
                self.moves.report(Move(number, "altered", known.committed, commit.offset, skipped))
            known.note(commit)
            known.topic = known.topic or known.committed_topic

    async def reset(
        self, consumer: AIOKafkaConsumer, error: OffsetOutOfRangeError | NoOffsetForPartitionError
    ) -> set[TopicPartition]:
        """Continue at the first record of each partition whose position the client cannot use; return the partitions.

        A position that only a follower does not have is kept: the client asks the leader next. The move is reported
        once the new position is committed. Raises `KafkaError`.
        """
        (cause,) = error.args
        lost: Mapping[TopicPartition, int | None] = cause if isinstance(error, OffsetOutOfRangeError) else {cause: None}
        await consumer.beginning_offsets(list(lost))  # returns once the partitions have leaders to ask
        topic_ids = await self.ask_topic_ids(consumer, lost)
        first = await consumer.beginning_offsets(list(lost))
        ends = await consumer.end_offsets(list(lost)) if self._followers else {}
        moved: set[TopicPartition] = set()
        for tp, position in lost.items():
            is_there = position is not None and first[tp] <= position <= ends.get(tp, -1)
            if is_there and not self.is_of_another(tp, topic_ids[tp]):
                continue
            moved.add(tp)
            if tp in consumer.assignment():  # not given to another member since
                consumer.seek(tp, first[tp])
                ask_leaders(consumer, [tp])
                self._reset(tp.partition, position, first[tp], topic_ids[tp])
        return moved

    def _reset(self, number: int, position: int | None, first: int, topic_id: UUID | None) -> None:
        """Plan the report of a move to the first record of a partition, from a position that cannot be used."""
        known = self._partitions[number]
        before = known.committed if position is None else position
        known.committed, known.topic = None, topic_id  # without the commit, the new position is due
        if before is not None and before != first:
            reason: Reason = "forgotten" if position is None else "deleted" if position < first else "out_of_range"
            skipped = known.skipped(before, first)
            if known.is_recreated(topic_id):
                reason, skipped = "recreated", first
            known.pending.append(Move(number, reason, before, first, skipped))
        if position is None or position >= first:  # the offsets may be those of other records now
            known.highest = 0

    async def ask_topic_ids(
        self, consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]
    ) -> Mapping[TopicPartition, UUID | None]:
        """Return the topic id of each partition, before positions in it are asked for.

        Raises `KafkaConnectionError` when it is not known of each.
        """
        topic_ids = await self._ask_topic_ids(consumer, partitions)
        if unknown := [tp for tp in partitions if tp not in topic_ids]:
            first = min(unknown)
            raise KafkaConnectionError(f"the leader of {first.topic}-{first.partition} does not report its topic's id")
        return topic_ids

    async def recreated(self, consumer: AIOKafkaConsumer) -> list[TopicPartition]:
        """Return the assigned partitions whose positions belong to a deleted topic.

        A position of which no topic is known is taken as one of the present topic.
        """
        found: list[TopicPartition] = []
        is_read = not self._reads_left
        for tp, topic_id in (await self._ask_topic_ids(consumer, consumer.assignment())).items():
            known = self._partitions[tp.partition]
            if topic_id is None or tp not in consumer.assignment():
                continue
            if known.topic is not None:
                if known.topic != topic_id:
                    found.append(tp)
            elif is_read and not self._reads_left and consumer.last_poll_timestamp(tp) is not None:
                known.topic = topic_id
                known.committed_topic = known.committed_topic or topic_id
        return found

    def is_of_another(self, tp: TopicPartition, topic_id: UUID | None) -> bool:
        """Return whether the position of a partition is not known to belong to a topic."""
        return self._partitions[tp.partition].topic != topic_id

    async def seek(
        self,
        consumer: AIOKafkaConsumer,
        offsets: Mapping[TopicPartition, int],
        topic_ids: Mapping[TopicPartition, UUID | None],
    ) -> None:
        """Commit other positions and continue there; continue where the consumer is when the commit fails.

        Kafka may have taken a commit that failed: the present positions are then committed again. `topic_ids` are the
        topics that the offsets belong to. Raises the errors of `commit_as_member`.
        """
        async with self._committing:
            commits = {tp: OffsetAndMetadata(offset, metadata_of(topic_ids[tp])) for tp, offset in offsets.items()}
            try:
                if commits:
                    await commit_as_member(consumer, commits)
            except BaseException:
                for tp in commits:
                    self._partitions[tp.partition].committed = None
                raise
            for tp, commit in commits.items():
                consumer.seek(tp, commit.offset)
                ask_leaders(consumer, [tp])
                known = self._partitions[tp.partition]
                known.note(commit)
                known.topic, known.highest, known.pending = topic_ids[tp], commit.offset, []

    async def commit(
        self, consumer: AIOKafkaConsumer, polled: Mapping[TopicPartition, int], is_leaving: Callable[[], bool]
    ) -> None:
        """Commit a batch and everything before its end; retry until Kafka accepts it.

        `polled` is the position after the batch in each of its partitions. Raises `CommitRefused` when its partitions
        were revoked, or are about to be (`is_leaving`).
        """
        try:
            while True:
                try:
                    return await self._commit(consumer, polled)
                except (KafkaError, OSError, TimeoutError) as error:
                    reason = self._failed(error)
                    if isinstance(error, CommitFailedError | IllegalStateError) or is_leaving():
                        raise CommitRefused(reason) from error
                self.retrying_since = self.retrying_since or time.monotonic()
                await asyncio.sleep(self._retry_pause_s)
        finally:
            self.retrying_since = None

    async def commit_idle(self, consumer: AIOKafkaConsumer) -> None:
        """Commit positions that moved without a record: after aborted transactions, or after a reset."""
        try:
            await self._commit(consumer, {})
        except (KafkaError, OSError, TimeoutError) as error:
            self._failed(error)

    async def _commit(self, consumer: AIOKafkaConsumer, polled: Mapping[TopicPartition, int]) -> None:
        async with self._committing:
            positions = await positions_of(consumer)
            if any(positions.get(tp) != position for tp, position in polled.items()):
                raise CommitFailedError
            due = {
                tp: OffsetAndMetadata(position, metadata_of(self._partitions[tp.partition].topic))
                for tp, position in positions.items()
                if self._partitions[tp.partition].committed != position
            }
            if due:
                async with self._journal.answers_within(COMMIT_TIMEOUT_S):
                    await commit_as_member(consumer, due)
            self.error = None
            for tp, commit in due.items():
                known = self._partitions[tp.partition]
                known.note(commit)
                moves, known.pending = known.pending, []
                for move in moves:
                    self.moves.report(move)

    def _failed(self, error: BaseException) -> str:
        reason = one_line(error)
        if isinstance(error, CommitFailedError):  # its own message is a paragraph, with advice for another client
            reason = GIVEN_AWAY
        elif isinstance(error, TimeoutError):
            late = f"Kafka did not answer a commit within {COMMIT_TIMEOUT_S:g} s"
            reason = f"{late}: {error}" if str(error) else late
        if self.error != reason:
            log.error("a commit failed: %s", reason, extra={"error": type(error).__name__})
        self.failures[type(error).__name__] += 1
        self.error = reason
        return reason


async def positions_of(consumer: AIOKafkaConsumer) -> dict[TopicPartition, int]:
    """Return the next offset of each assigned partition that was fetched from, without asking Kafka."""
    return {
        tp: await consumer.position(tp) for tp in consumer.assignment() if consumer.last_poll_timestamp(tp) is not None
    }
