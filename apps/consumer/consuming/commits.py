"""Commit positions, and report every move of a position that neither consuming nor an operator made.

Kafka refuses commits (a member that was silent for too long), forgets them (an expired or deleted group), lets other
clients alter them while no member is there, and deletes records before they are consumed. Each of these is logged,
counted and kept for the status.

Each position belongs to a topic id, which its commit carries: offsets of a deleted topic mean nothing in a recreated
one of the same name.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Literal, get_args
from uuid import UUID

import msgspec
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

from apps.chassis.internals.partition_topic_ids import partition_topic_ids
from apps.chassis.observability.logs import one_line

log = logging.getLogger(__name__)

MARK = "consumer"
"""Begins the metadata of every commit of this service; the topic id follows where Kafka gives one.

Tools and other clients leave the metadata empty.
"""
COMMIT_TIMEOUT_S = 5.0
"""Seconds for one attempt to commit; the client itself would retry for ever."""
RETRY_PAUSE_S = 0.5
"""Seconds between two attempts to commit the same batch."""
READ_TIMEOUT_S = 2.0
"""Seconds to read the group's committed offsets."""
READS = 3
"""Attempts to read committed offsets after an assignment; each delays the next poll."""
GIVEN_AWAY = "the group revoked the partitions while the batch was in flight (CommitFailedError)"
KEPT_MOVES = 20
"""How many of the newest moves the status shows."""

Reason = Literal["deleted", "out_of_range", "forgotten", "altered", "recreated"]
"""Why a position moved.

`deleted`: records were deleted before they were consumed. `out_of_range`: the position was beyond the end of the
partition, which was truncated or recreated. `forgotten`: nothing is committed any more. `altered`: another client
committed. `recreated`: the topic was deleted and created again.
"""
REASONS: tuple[Reason, ...] = get_args(Reason)
WORDS: dict[Reason, str] = {
    "deleted": "its records were deleted before they were consumed",
    "out_of_range": "it was beyond the end of the partition, which was truncated or recreated",
    "forgotten": "the group has nothing committed there any more (expired, or deleted)",
    "altered": "another client committed offsets of the group",
    "recreated": "the topic was deleted and created again",
}

ReadCommits = Callable[[], Awaitable[Mapping[int, OffsetAndMetadata | None]]]
"""Reads the group's committed offset in each partition, as `Cluster.commits` does."""
ReadOffsets = Callable[[int], Awaitable[tuple[Mapping[int, int], Mapping[int, int]]]]
"""Reads the first offset and the end of so many partitions, as `LogReader.offsets` does."""

AskTopicIds = Callable[[AIOKafkaConsumer, Collection[TopicPartition]], Awaitable[Mapping[TopicPartition, UUID | None]]]
"""Asks the leaders of partitions for the id of their topic, as `partition_topic_ids` does."""


class Move(msgspec.Struct, frozen=True):
    """A position that moved without consuming or an operator; `skipped` records were not consumed.

    A move back skips none: its records are consumed again. Neither do offsets that hold no record yet, or that the
    group has committed before.
    """

    partition: int
    reason: Reason
    before: int
    after: int
    skipped: int
    at: str


class CommitRefused(Exception):
    """Kafka refused the commit of a batch: it will be redelivered, here or to another member."""


class Commits:
    """Commits the positions of a group's member, across its connections.

    `failures` counts failed commits by the type of the error. `error` is the last one, until a commit succeeds.
    `retrying_since` is when the commit of the in-flight batch first failed. `skipped` counts records by partition and
    reason, and `moved` counts moves likewise; `moves` are the newest. `topic_ids` has the id of the topic that the
    position of a partition belongs to, as far as it is known.
    """

    def __init__(
        self, read_commits: ReadCommits, read_offsets: ReadOffsets, ask_topic_ids: AskTopicIds = partition_topic_ids
    ) -> None:
        self.failures: Counter[str] = Counter({CommitFailedError.__name__: 0})
        self.error: str | None = None
        self.skipped: Counter[tuple[int, Reason]] = Counter()
        self.moved: Counter[tuple[int, Reason]] = Counter()
        self.moves: deque[Move] = deque(maxlen=KEPT_MOVES)
        self.retrying_since: float | None = None
        self.topic_ids: dict[int, UUID] = {}
        self._read_commits = read_commits
        self._read_offsets = read_offsets
        self._ask_topic_ids = ask_topic_ids
        self._committed: dict[int, int] = {}
        self._committed_of: dict[int, UUID] = {}  # the topic that the last known commit belongs to
        self._highest: dict[int, int] = {}  # known to be committed since the last move back by an operator or a reset
        self._pending: dict[int, list[Move]] = {}
        self._reads_left = 0

    def assigned(self) -> None:
        """Note that partitions were assigned: their positions are now the group's committed offsets."""
        for partition, moves in self._pending.items():
            self._committed[partition] = moves[0].before  # if the move is found again, it is from there
        self._pending.clear()
        self.topic_ids.clear()
        self._reads_left = READS

    async def read(self) -> dict[int, int | None]:
        """Return the group's committed offset in each partition; raises the errors of `read_commits`.

        Commits of members of this service are remembered. Commits of other clients are compared in `begin`.
        """
        commits = await self._read_commits()
        for partition, commit in commits.items():
            if commit is not None and is_own(commit):
                self._note(partition, commit)
        return {partition: commit.offset if commit else None for partition, commit in commits.items()}

    async def begin(self, consumer: AIOKafkaConsumer) -> None:
        """After an assignment, report commits of other clients since this service last knew."""
        if not self._reads_left:
            return
        self._reads_left -= 1
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                commits = await self._read_commits()
                altered = [p for p, commit in commits.items() if commit and self._is_altered(p, commit)]
                _, ends = await self._read_offsets(max(altered) + 1) if altered else ({}, {})
        except (KafkaError, OSError, TimeoutError):
            return  # retried before the next poll
        self._reads_left = 0
        for partition in sorted(tp.partition for tp in consumer.assignment()):
            commit = commits.get(partition)
            if commit is None:
                continue  # the client reports this: see `reset`
            if self._is_altered(partition, commit):
                skipped = self._skipped(
                    partition, self._committed[partition], min(commit.offset, ends.get(partition, commit.offset))
                )
                self._keep(_move(partition, "altered", self._committed[partition], commit.offset, skipped))
            self._note(partition, commit)
            if partition in self._committed_of:
                self.topic_ids.setdefault(partition, self._committed_of[partition])

    def _is_altered(self, partition: int, commit: OffsetAndMetadata) -> bool:
        offset: int = commit.offset
        return not is_own(commit) and self._committed.get(partition, offset) != offset

    def _note(self, partition: int, commit: OffsetAndMetadata) -> None:
        """Remember a commit. One of this service goes back only where records are to be consumed again."""
        topic_id = topic_id_in(commit)
        is_back = commit.offset < self._committed.get(partition, 0)
        if is_own(commit) and (is_back or self._is_recreated(partition, topic_id)):
            self._highest.pop(partition, None)
        if topic_id is None:
            self._committed_of.pop(partition, None)
        else:
            self._committed_of[partition] = topic_id
        self._committed[partition] = commit.offset
        self._highest[partition] = max(commit.offset, self._highest.get(partition, 0))

    def _skipped(self, partition: int, before: int, after: int) -> int:
        """Return how many records a move left out that the group has not committed before."""
        return max(0, after - max(before, self._highest.get(partition, 0)))

    async def reset(
        self, consumer: AIOKafkaConsumer, error: OffsetOutOfRangeError | NoOffsetForPartitionError
    ) -> set[TopicPartition]:
        """Continue at the first record of each partition whose position the client cannot use; return the partitions.

        The move is reported once the new position is committed. Raises `KafkaError`.
        """
        (cause,) = error.args
        lost: Mapping[TopicPartition, int | None] = cause if isinstance(error, OffsetOutOfRangeError) else {cause: None}
        await consumer.beginning_offsets(list(lost))  # returns once the partitions have leaders to ask
        topic_ids = await self.ask_topic_ids(consumer, lost)
        first = await consumer.beginning_offsets(list(lost))
        for tp, position in lost.items():
            if tp not in consumer.assignment():
                continue  # given to another member meanwhile
            consumer.seek(tp, first[tp])
            known = self._committed.pop(tp.partition, None)  # without the commit, the new position is due
            before = known if position is None else position
            is_recreated = self._is_recreated(tp.partition, topic_ids[tp])
            self._belongs(tp.partition, topic_ids[tp])
            if before is not None and before != first[tp]:
                reason: Reason = (
                    "forgotten" if position is None else "deleted" if position < first[tp] else "out_of_range"
                )
                skipped = self._skipped(tp.partition, before, first[tp])
                if is_recreated:
                    reason, skipped = "recreated", first[tp]
                self._pending.setdefault(tp.partition, []).append(
                    _move(tp.partition, reason, before, first[tp], skipped)
                )
            if position is None or position >= first[tp]:  # the offsets may be those of other records now
                self._highest.pop(tp.partition, None)
        return set(lost)

    async def ask_topic_ids(
        self, consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]
    ) -> Mapping[TopicPartition, UUID | None]:
        """Return the topic id of each partition, before positions in it are asked for.

        Raises `KafkaConnectionError` when it is not known of each.
        """
        topic_ids = await self._ask_topic_ids(consumer, partitions)
        if unknown := [tp for tp in partitions if tp not in topic_ids]:
            raise KafkaConnectionError(f"the leaders of {sorted(unknown)} do not tell which topic they have")
        return topic_ids

    async def recreated(self, consumer: AIOKafkaConsumer) -> list[TopicPartition]:
        """Return the assigned partitions whose positions belong to a deleted topic.

        A position of which no topic is known is taken as one of the present topic.
        """
        found: list[TopicPartition] = []
        is_read = not self._reads_left
        for tp, topic_id in (await self._ask_topic_ids(consumer, consumer.assignment())).items():
            if topic_id is None or tp not in consumer.assignment():
                continue
            if tp.partition in self.topic_ids:
                if self.topic_ids[tp.partition] != topic_id:
                    found.append(tp)
            elif is_read and not self._reads_left and consumer.last_poll_timestamp(tp) is not None:
                self.topic_ids[tp.partition] = topic_id
                self._committed_of.setdefault(tp.partition, topic_id)
        return found

    def is_of_another(self, tp: TopicPartition, topic_id: UUID | None) -> bool:
        """Return whether the position of a partition is not known to belong to a topic."""
        return self.topic_ids.get(tp.partition) != topic_id

    def _is_recreated(self, partition: int, topic_id: UUID | None) -> bool:
        known = self._committed_of.get(partition)
        return None not in {known, topic_id} and known != topic_id

    def _belongs(self, partition: int, topic_id: UUID | None) -> None:
        """Note which topic the position of a partition belongs to."""
        if topic_id is None:
            self.topic_ids.pop(partition, None)
        else:
            self.topic_ids[partition] = topic_id

    def sought(self, offsets: Mapping[TopicPartition, int], topic_ids: Mapping[TopicPartition, UUID | None]) -> None:
        """Note the positions that a seek committed, and the topic that they belong to."""
        for tp, offset in offsets.items():
            self._belongs(tp.partition, topic_ids[tp])
            self._note(tp.partition, OffsetAndMetadata(offset, metadata_of(topic_ids[tp])))
            self._highest[tp.partition] = offset
            self._pending.pop(tp.partition, None)

    async def commit(
        self, consumer: AIOKafkaConsumer, polled: Mapping[TopicPartition, int], leaving: asyncio.Event
    ) -> None:
        """Commit a batch and everything before its end; retry until Kafka accepts it.

        `polled` is the position after the batch in each of its partitions. Raises `CommitRefused` when its partitions
        were revoked, or are about to be (`leaving`).
        """
        try:
            while not await self._is_taken(consumer, polled, leaving):
                self.retrying_since = self.retrying_since or time.time()
                await asyncio.sleep(RETRY_PAUSE_S)
        finally:
            self.retrying_since = None

    async def _is_taken(
        self, consumer: AIOKafkaConsumer, polled: Mapping[TopicPartition, int], leaving: asyncio.Event
    ) -> bool:
        try:
            await self._commit(consumer, polled)
        except (CommitFailedError, IllegalStateError) as error:
            raise CommitRefused(self._failed(error)) from error
        except (KafkaError, OSError, TimeoutError) as error:
            reason = self._failed(error)
            if leaving.is_set():
                raise CommitRefused(reason) from error
            return False
        return True

    async def commit_idle(self, consumer: AIOKafkaConsumer) -> None:
        """Commit positions that moved without a record: after aborted transactions, or after a reset."""
        try:
            await self._commit(consumer, {})
        except (KafkaError, OSError, TimeoutError) as error:
            self._failed(error)

    async def _commit(self, consumer: AIOKafkaConsumer, polled: Mapping[TopicPartition, int]) -> None:
        positions = await positions_of(consumer)
        if any(positions.get(tp) != position for tp, position in polled.items()):
            raise CommitFailedError
        due = {
            tp: OffsetAndMetadata(position, metadata_of(self.topic_ids.get(tp.partition)))
            for tp, position in positions.items()
            if self._committed.get(tp.partition) != position
        }
        if due:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await consumer.commit(due)
        self.error = None
        for tp, commit in due.items():
            self._note(tp.partition, commit)
            for move in self._pending.pop(tp.partition, ()):
                self._keep(move)

    def _failed(self, error: BaseException) -> str:
        reason = one_line(error) if str(error) else f"no answer within {COMMIT_TIMEOUT_S:g} s"
        if isinstance(error, CommitFailedError):  # its own message is a paragraph, with advice for another client
            reason = GIVEN_AWAY
        if self.error != reason:
            log.error("a commit failed: %s", reason, extra={"error": type(error).__name__})
        self.failures[type(error).__name__] += 1
        self.error = reason
        return reason

    def report_recreated(self, partition: int, before: int, after: int) -> None:
        """Log, count and keep a move to the first record of a recreated topic; those before it were deleted."""
        self._keep(_move(partition, "recreated", before, after, after))

    def _keep(self, move: Move) -> None:
        self.skipped[move.partition, move.reason] += move.skipped
        self.moved[move.partition, move.reason] += 1
        self.moves.append(move)
        back = move.before - move.after
        log.warning(
            "the position of partition %d moved from %d to %d, %s: %s",
            move.partition,
            move.before,
            move.after,
            f"{back} offsets are consumed again" if back > 0 else f"{move.skipped} records were skipped",
            WORDS[move.reason],
            extra={"partition": move.partition, "offset": move.after, "records": move.skipped},
        )


def metadata_of(topic_id: UUID | None) -> str:
    """Return the metadata of a commit whose offset belongs to a topic; None where Kafka gives no ids."""
    return f"{MARK} {topic_id}" if topic_id else MARK


def is_own(commit: OffsetAndMetadata) -> bool:
    """Return whether an instance of this service made a commit."""
    return bool(commit.metadata.partition(" ")[0] == MARK)


def topic_id_in(commit: OffsetAndMetadata) -> UUID | None:
    """Return which topic the offset of a commit belongs to, where it tells."""
    mark, _, topic_id = commit.metadata.partition(" ")
    try:
        return UUID(topic_id) if mark == MARK else None
    except ValueError:
        return None


def _move(partition: int, reason: Reason, before: int, after: int, skipped: int) -> Move:
    return Move(partition, reason, before, after, skipped, datetime.now(UTC).isoformat(timespec="milliseconds"))


async def positions_of(consumer: AIOKafkaConsumer) -> dict[TopicPartition, int]:
    """Return the next offset of each assigned partition that was fetched from, without asking Kafka."""
    return {
        tp: await consumer.position(tp) for tp in consumer.assignment() if consumer.last_poll_timestamp(tp) is not None
    }
