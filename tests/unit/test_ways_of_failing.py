"""In every way of reporting failures, good records are handled once, and the others dead-lettered once."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import Stream, numbered, policy

from apps.consumer.consuming.batch import Batch, Handle, NotTried, Received, Reject
from apps.consumer.consuming.each import each
from apps.consumer.consuming.handler_thread import as_async
from tests.event import EVENTS, Event

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_stacks")]

WAYS = ("raise", "raise and reject", "name", "name the rest of a key", "each", "thread")


class Refusing:
    """Handles events that are `good`, in one of several ways; fails for `poison` and refuses what is `rejected`."""

    def __init__(self, kinds: dict[str, str]) -> None:
        self.kinds = kinds
        self.done: list[str] = []
        self.tries: Counter[str] = Counter()

    def as_handler(self, way: str) -> Handle:
        ways: dict[str, Handle] = {
            "raise": self.raising,
            "raise and reject": self.raising_and_rejecting,
            "name": self.naming,
            "name the rest of a key": self.naming_the_rest,
            "each": each(concurrency=3)(self.one),
            "thread": as_async(self.in_thread),
        }
        return ways[way]

    def take(self, event: Event) -> None:
        self.tries[event.id] += 1
        kind = self.kinds.get(event.id, "good")
        if kind == "poison":
            raise ConnectionError(f"no database takes {event.id}")
        if kind == "rejected":
            raise Reject(f"nobody wants {event.id}")
        self.done.append(event.id)

    async def raising(self, batch: Batch[Event]) -> None:
        self.tries.update(event.id for event in batch.values)
        kinds = {self.kinds.get(event.id, "good") for event in batch.values}
        if "poison" in kinds:
            raise ConnectionError
        if "rejected" in kinds:
            raise Reject("nobody wants one of them")
        self.done += [event.id for event in batch.values]

    async def raising_and_rejecting(self, batch: Batch[Event]) -> None:
        self.tries.update(event.id for event in batch.values)
        kinds = [self.kinds.get(event.id, "good") for event in batch.values]
        for record, kind in zip(batch, kinds, strict=True):
            if kind == "rejected":
                batch.reject(record, "nobody wants it")
            elif kind == "poison":
                batch.fail(record, "it does not count: it raises too")
        if "poison" in kinds:
            raise ConnectionError
        self.done += [event.id for event, kind in zip(batch.values, kinds, strict=True) if kind == "good"]

    async def naming(self, batch: Batch[Event]) -> None:
        self.in_thread(batch)

    def in_thread(self, batch: Batch[Event]) -> None:
        for record in batch:
            try:
                self.take(record.value)
            except Exception as error:  # noqa: BLE001 - it is named
                batch.fail(record, error)

    async def naming_the_rest(self, batch: Batch[Event]) -> None:
        failed: set[object] = set()
        for record in batch:
            if (record.partition, record.key) in failed:
                batch.fail(record, NotTried())
                continue
            try:
                self.take(record.value)
            except Exception as error:  # noqa: BLE001 - it is named
                batch.fail(record, error)
                if record.key is not None and not isinstance(error, Reject):
                    failed.add((record.partition, record.key))

    async def one(self, event: Event, _: Received[Event]) -> None:
        self.take(event)


@pytest.mark.slow
@settings(max_examples=150)
@given(
    way=st.sampled_from(WAYS),
    rows=st.lists(
        st.tuples(st.sampled_from(["good"] * 4 + ["poison", "rejected"]), st.integers(0, 4), st.booleans()), max_size=60
    ),
    size=st.sampled_from([3, 10, 100]),
    seed=st.integers(0, 10),
)
async def test_the_good_are_handled_once_and_the_others_dead_lettered_once_with_their_tries(
    way: str, rows: list[tuple[str, int, bool]], size: int, seed: int
) -> None:
    random.seed(seed)
    ids = numbered(range(len(rows)))
    kinds = {one: kind for one, (kind, _, _) in zip(ids, rows, strict=True)}
    handler = Refusing(kinds)
    stream = Stream(handler.as_handler(way), policy(records=size))
    keys = {one: b"%d" % key if has_key else None for one, (_, key, has_key) in zip(ids, rows, strict=True)}
    for one in ids:
        stream.add(one, partition=len(keys[one] or b""), key=keys[one])
    await stream.consume(turns=10)
    later = [f"later {number}" for number in range(8)]
    for one in later:
        stream.add(one, partition=2)
        await stream.consume(turns=30)
    assert stream.is_consumed
    lettered = {_id_of(letter.record.value): letter for letter in stream.letters}
    assert len(lettered) == len(stream.letters), "each of them once"
    assert {*lettered} == {one for one in ids if kinds[one] != "good"}
    good = [*(one for one in ids if kinds[one] == "good"), *later]
    if way in {"name", "thread"}:  # what was handled before an earlier one of its key is handled again behind it
        assert {*handler.done} == {*good}
        handler.done = [one for one, later in zip(handler.done, _behind(handler.done), strict=True) if one not in later]
    assert Counter(handler.done) == Counter(good), "each of them once"
    assert all(letter.tries == handler.tries[one] for one, letter in lettered.items())
    assert all(
        (type(letter.error).__name__ == "Reject") == (kinds[one] == "rejected") for one, letter in lettered.items()
    )
    for key in {*keys.values()} - {None}:
        handled = [one for one in handler.done if keys.get(one) == key]
        assert handled == sorted(handled), "keys keep their order"


def _behind(done: list[str]) -> list[list[str]]:
    return [done[number + 1 :] for number in range(len(done))]


def _id_of(value: bytes | None) -> str:
    return EVENTS.decode(value or b"").id
