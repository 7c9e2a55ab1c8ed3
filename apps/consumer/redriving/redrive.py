"""Sends dead letters back to the topic that they came from, each once; discards and restores them.

The records and the marks of the dead letters are written in one transaction. The transactional id is the group's: a
redrive fences an older one of another instance, also one that died in the middle
(https://cwiki.apache.org/confluence/display/KAFKA/KIP-98+-+Exactly+Once+Delivery+and+Transactional+Messaging).
A discard and a restore write only marks, under the same fence: a letter is either sent back or discarded, never both.

Groups may share a dead-letter topic: each sends back and discards its own letters. A record that is sent back names the
group, so that other groups skip it (`redrive_addressing`). On a compacted topic it names none: there it replaces the
original, which other groups may not have consumed yet. A letter that names no group may be sent back or discarded by
all of them; for such letters they share a transactional id and marks.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import msgspec
from aiokafka import AIOKafkaProducer

from apps.chassis.deadline import within
from apps.chassis.internals.kafka_client import Throttled
from apps.chassis.kafka.clients import ClientOptions
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.errors import KAFKA_ERRORS
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.open_transactions import OpenTransactions
from apps.chassis.observability.logs import one_line
from apps.consumer.browsing.topic_search import Filter
from apps.consumer.redriving.actions import Action
from apps.consumer.redriving.deletions import Deletions
from apps.consumer.redriving.fences import Fences, RedriveLimits
from apps.consumer.redriving.letters import MAX_ROUNDS, Letters, Wanted, halves, letter_of, offsets_of, owner_of
from apps.consumer.redriving.marks import Marks
from apps.consumer.redriving.marks_topic import MarksTopic
from apps.consumer.redriving.purge import Purger
from apps.consumer.redriving.refusals import (
    DeletedMeanwhile,
    DoneBefore,
    NoSuchLetter,
    RedriveNotNow,
    RedriveRefused,
    TooLarge,
)
from apps.consumer.redriving.transactions import SentTo, Transactions
from contracts.dead_letter import DeadLetter, is_omitted
from contracts.record import Record

log = logging.getLogger(__name__)

T = TypeVar("T")
Act = Callable[[Sequence[Record]], Awaitable[Sequence[SentTo | None]]]
"""Marks letters, and returns where they were sent back to."""

ALL = Filter()
WHY_DELETED = (
    "it is older than a deletion of its key, or its compacted topic may have replaced its record; purge it (one that "
    "is a deletion itself: delete the key again, and discard it)"
)


class LetterPlace(msgspec.Struct):
    """The place of a dead letter among those of its stream; `sent_to` is where its record was sent back to."""

    partition: int
    offset: int
    stream: str = ""
    sent_to: SentTo | None = None


class Done(NamedTuple):
    """The dead letters to which an action was applied, and whether there may be more to which it was not.

    `deleted` is how many were not sent back because they are older than a deletion of their key.
    """

    letters: list[LetterPlace]
    more: bool
    deleted: int = 0


class Search(NamedTuple):
    """Which letters an action looks for: at most `limit` in all, `max_bytes` at a time, until it is `late`.

    A search takes `search_s` at most, so that there is time to send what it finds. `deleted` has the places of those
    that it found, and that are older than a deletion of their key.
    """

    action: Action
    limit: int
    only: Filter
    max_bytes: int
    late: float
    search_s: float
    deleted: set[tuple[int, int]]

    def wanted(self, owner: str | None, marks: Marks, found: int) -> Wanted:
        """Return the letters of an owner that are wanted when some were found before."""
        limit, late = self.limit - found, min(self.late, asyncio.get_running_loop().time() + self.search_s)
        return Wanted(owner, marks, limit, self.max_bytes, late, self.deleted, self.only, self.action)


class Redriver:
    """Sends back, discards and restores dead letters of one topic and group, one call at a time across all instances.

    A compacted topic next to the dead letters records which were sent back or discarded, with the id of the
    dead-letter topic: a recreated topic begins with none of either.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of a redrive
        self,
        options: ClientOptions,
        cluster: Cluster,
        dead: LogReader,
        marks_topic: str,
        topic: str,
        group: str,
        reader: Callable[..., LogReader] = LogReader,
        limits: RedriveLimits = RedriveLimits(),  # noqa: B008 - it is immutable
        max_rounds: int = MAX_ROUNDS,
        kept_s: int | None = None,
        deletions: Deletions | None = None,
    ) -> None:
        self._limits = limits
        every = reader(options, dead.topic, committed_only=False)
        self.letters = Letters(OpenTransactions(dead, every), cluster, topic, max_rounds, deletions)
        self._topic = topic
        self._group = group
        self._journal = options["client_id"].journal
        self._marks_topic = MarksTopic(options, cluster, marks_topic, every, reader)
        self._transactions = Transactions(cluster, self.letters, topic, dead.topic, self._marks_topic)
        self._fences = Fences(options, cluster, dead.topic, self._marks_topic, limits)
        acting = self._fences, self._transactions, self._marks_topic
        deleting_topic = None if deletions is None else topic
        self.purger = Purger(options, cluster, dead, every, group, *acting, kept_s, deleting_topic)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connections at the end."""
        async with self._marks_topic.open(), self.letters.open():
            yield

    async def marks(self) -> Marks:
        """Return which dead letters were sent back or discarded. Raises the errors of `LogReader`."""
        return await self._marks_topic.read()

    async def perform(self, action: Action, limit: int, only: Filter = ALL) -> Done:
        """Apply an action to the oldest `limit` dead letters that it is about; within 9 s.

        A redrive is about letters that were neither sent back nor discarded and are not held, a discard also about held
        ones, and a restore about discarded ones. `only` selects some of these. Memory is bounded, because some 16 MiB
        are handled at a time. After 5 s, or when something fails, it returns what was done, and `more`. If nothing was,
        it raises `RedriveRefused`, or `KafkaError`, `OSError` and `TimeoutError` when Kafka is out of reach. No
        transaction is committed then, except one whose commit Kafka did not confirm: its marks were committed with it.

        The group's own letters come first, then those that name no group.
        """
        return await self._in_time(self._perform(action, limit, only))

    async def count(self, action: Action, limit: int, only: Filter = ALL) -> Done:
        """Return what `perform` would do now, and change nothing. Raises the errors of `LogReader`."""
        return await within(self._limits.call_s, self._count(action, limit, only))

    async def perform_one(self, action: Action, partition: int, offset: int) -> Done:
        """Apply an action to one dead letter, even a held one; within 9 s. Raises the errors of `perform`."""
        return await self._in_time(self._perform_one(action, partition, offset))

    async def redrive_found(self, find: Callable[[Marks], Awaitable[Sequence[Record]]]) -> int:
        """Send back the group's letters that `find` returns for the final marks; return how many.

        Raises the errors of `perform`.
        """

        async def redrive() -> int:
            search, done = self._search(Action.REDRIVE, 0, ALL), list[LetterPlace]()
            async with self._fences.turn(), self._fences.fenced(self._group) as fence:
                act = self._committing(search.action, self._group, *fence)
                await self._in_parts(act, await find(fence[1]), done, search.late)
            return len(done)

        return await self._in_time(redrive())

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of `work` within 9 s. Raises `RedriveNotNow` when a quota has kept it from ending."""
        try:
            with self._journal.explaining():
                return await within(self._limits.call_s, work)
        except (TimeoutError, Throttled):
            if throttling := self._journal.throttling():
                raise RedriveNotNow(f"{throttling}: try again later, with fewer letters") from None
            raise

    def is_ours(self, letter: DeadLetter) -> bool:
        """Return whether this service may send back or discard a letter: of its topic, and of its group or of none."""
        return letter.topic == self._topic and owner_of(letter) in {self._group, None}

    async def _perform(self, action: Action, limit: int, only: Filter) -> Done:
        search, done = self._search(action, limit, only), list[LetterPlace]()
        visible_by = self._visible_by()
        try:
            async with self._fences.turn():
                more = await self._perform_of(self._group, search, done)
                if not more and len(done) < limit:
                    of_nobody = search._replace(limit=1).wanted(None, await self.marks(), 0)
                    waiting, more = await self.letters.oldest(of_nobody)
                    more = await self._perform_of(None, search, done) if waiting else more
        except (*KAFKA_ERRORS, RedriveRefused) as error:
            if not done:
                raise
            log.warning("a %s ended after %d dead letters: %s", action, len(done), one_line(error))
            more = True
        if done:
            await self._marks_topic.until_visible(visible_by)
        return self._ended(search, done, more=more)

    async def _perform_of(self, owner: str | None, search: Search, done: list[LetterPlace]) -> bool:
        """Apply an action to letters of one owner, add them to `done`, and return whether there may be more."""
        async with self._fences.fenced(owner) as (producer, marks):
            act = self._committing(search.action, owner, producer, marks)
            return await self._each(owner, marks, search, done, act)

    def _committing(self, action: Action, owner: str | None, producer: AIOKafkaProducer, marks: Marks) -> Act:
        async def commit(chosen: Sequence[Record]) -> Sequence[SentTo | None]:
            return await self._transactions.commit(action, producer, owner, chosen, marks)

        return commit

    async def _count(self, action: Action, limit: int, only: Filter) -> Done:
        search, done, more, marks = self._search(action, limit, only), list[LetterPlace](), False, await self.marks()
        for owner in (self._group, None):

            async def mark(chosen: Sequence[Record], owner: str | None = owner) -> Sequence[SentTo | None]:
                for partition, offsets in offsets_of(chosen).items():
                    marks.apply(action, owner, partition, offsets)
                return [None] * len(chosen)

            more = more or await self._each(owner, marks, search, done, mark)
        return self._ended(search, done, more=more)

    def _ended(self, search: Search, done: list[LetterPlace], *, more: bool) -> Done:
        if not more:
            self.letters.begin_again(search.action, search.only)
        return Done(done, more, len(search.deleted))

    async def _each(self, owner: str | None, marks: Marks, search: Search, done: list[LetterPlace], act: Act) -> bool:
        """Pass letters of one owner to `act`, and add them to `done`; return whether there may be more."""
        more = True
        while more and len(done) < search.limit and asyncio.get_running_loop().time() < search.late:
            before = len(done)
            chosen, more = await self.letters.oldest(search.wanted(owner, marks, before))
            await self._in_parts(act, chosen, done, search.late)
            more = more or len(done) < before + len(chosen)
        return more

    async def _in_parts(self, act: Act, chosen: Sequence[Record], done: list[LetterPlace], late: float) -> None:
        """Pass letters to `act` together; where keys of them are deleted meanwhile, without these, in halves.

        Somebody who deletes keys all the time would stop all others otherwise: one deletion fails a transaction. It
        ends when it is `late`.
        """
        parts = [chosen]
        while parts:
            part = parts.pop()
            try:
                places = await act(part)
                done += [_done(record, place) for record, place in zip(part, places, strict=True)]
            except DeletedMeanwhile as deleted:
                parts += halves([record for record in part if record.key not in deleted.keys])
            if asyncio.get_running_loop().time() >= late:
                return

    def _search(self, action: Action, limit: int, only: Filter) -> Search:
        late = asyncio.get_running_loop().time() + self._limits.begin_within_s
        return Search(action, limit, only, self._limits.transaction_bytes, late, self._limits.search_s, set())

    def _visible_by(self) -> float:
        return asyncio.get_running_loop().time() + self._limits.visible_s

    async def _perform_one(self, action: Action, partition: int, offset: int) -> Done:
        visible_by = self._visible_by()
        async with self._fences.turn():
            record = await self._requested(action, partition, offset)
            owner = owner_of(letter_of(record))
            async with self._fences.fenced(owner) as (producer, marks):
                check_not_done(action, record, marks)
                if action is Action.REDRIVE:
                    await self._check_not_deleted(record)
                (sent_to,) = await self._transactions.commit(action, producer, owner, [record], marks)
        await self._marks_topic.until_visible(visible_by)
        return Done([_done(record, sent_to)], more=False)

    async def _check_not_deleted(self, record: Record) -> None:
        letter, late = letter_of(record), asyncio.get_running_loop().time() + self._limits.search_s
        await self.letters.read_deletions([letter], late)
        if await self.letters.is_deleted(letter):
            raise DoneBefore(f"dead letter {record.partition}/{record.offset} is not sent back: {WHY_DELETED}")

    async def _requested(self, action: Action, partition: int, offset: int) -> Record:
        record = await self.letters.at(partition, offset)
        if record is None:
            await self.letters.check_visible(partition, offset)
            raise NoSuchLetter(f"there is no dead letter {partition}/{offset}")
        letter = letter_of(record)
        if letter.topic != self._topic:
            known = "does not say which topic it came from" if letter.topic is None else f"came from {letter.topic}"
            raise NoSuchLetter(
                f"dead letter {partition}/{offset} {known}: only those of {self._topic} are {action.done}"
            )
        if action is Action.REDRIVE and is_omitted(letter):
            raise TooLarge(
                f"its record was too large to be read, and is not in the dead letter: it stays on {letter.topic}, "
                f"partition {letter.partition}, offset {letter.offset}, until its retention ends"
            )
        if not self.is_ours(letter):
            raise RedriveNotNow(f"dead letter {partition}/{offset} is of the group {letter.group}: ask its consumer")
        return record


def _done(record: Record, sent_to: SentTo | None) -> LetterPlace:
    return LetterPlace(record.partition, record.offset, sent_to=sent_to)


def check_not_done(action: Action, record: Record, marks: Marks) -> None:
    """Raise `DoneBefore` or `NoSuchLetter` when an action has nothing to do with a dead letter, by its marks."""
    place = f"dead letter {record.partition}/{record.offset}"
    if record.offset < marks.purged(owner_of(letter_of(record)), record.partition):
        raise NoSuchLetter(f"there is no {place}: it was purged, or has been written again since")
    discarded = marks.is_discarded(record.partition, record.offset)
    match action, discarded:
        case Action.RESTORE, False:
            raise DoneBefore(f"{place} is not discarded: there is nothing to restore")
        case Action.REDRIVE, True:
            raise DoneBefore(f"{place} was discarded: restore it before it is sent back")
        case Action.DISCARD, True:
            raise DoneBefore(f"{place} was discarded before")
    if not discarded and marks.contains(owner_of(letter_of(record)), record.partition, record.offset):
        raise DoneBefore(f"{place} was sent back before")
