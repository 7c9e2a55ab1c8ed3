"""Failing records in every batch cost themselves: few good ones are handled again, and verdicts need no new batch."""

import random

import pytest
from streams import Handler, Stream, numbered, policy

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_stacks")]

RECORDS, SIZE = 20_000, 500


def some(share: float) -> set[str]:
    """Return the ids of events that are poison."""
    return set(random.Random(1).sample(numbered(range(RECORDS)), int(RECORDS * share)))


@pytest.mark.parametrize(("share", "repeated"), [(0.002, 0.8), (0.02, 1.5)])
async def test_of_a_handler_that_raises_few_good_records_are_handled_again(share: float, repeated: float) -> None:
    poison = some(share)
    handler = Handler(poison.__contains__)
    stream = Stream(handler, policy(records=SIZE))
    stream.add(*numbered(range(RECORDS)))
    await stream.consume()
    assert sorted(stream.lettered) == sorted(poison)
    assert len(handler.done) == RECORDS - len(poison)
    handled = sum(map(len, handler.calls))
    assert handled < (1 + repeated) * RECORDS, f"{handled:,} records of {RECORDS:,} were handed over"


async def test_a_stream_without_failures_gets_whole_batches_again() -> None:
    handler = Handler({"00003"}.__contains__)
    stream = Stream(handler, policy(records=SIZE))
    stream.add(*numbered(range(RECORDS)))
    await stream.consume()
    assert stream.lettered == ["00003"]
    assert [len(call) for call in handler.calls[-10:]] == [SIZE] * 10


async def test_records_that_are_named_in_the_last_batch_are_dead_lettered_without_a_newer_record() -> None:
    poison = some(0.02)
    stream = Stream(Handler(poison.__contains__, names=True), policy(records=SIZE))
    stream.add(*numbered(range(RECORDS)))
    await stream.consume(turns=2 * RECORDS // SIZE)
    assert stream.is_consumed
    assert sorted(stream.lettered) == sorted(poison)
    assert stream.polls < RECORDS // SIZE + 5, "hardly a batch was read again"


async def test_a_chunk_that_failed_is_split_until_its_failing_record_is_alone() -> None:
    ids = numbered(range(1_024))
    for failing in (ids[0], ids[700], ids[-1]):
        handler = Handler(failing.__eq__)
        stream = Stream(handler, policy(records=len(ids)))
        stream.add(*ids, "newer")
        await stream.consume()
        assert stream.lettered == [failing]
        failed = [len(call) for call in handler.calls if failing in call]
        assert len(failed) < 16, failed
        assert len(handler.calls) < 32, [len(call) for call in handler.calls]
        assert sum(failed) < 3.1 * len(ids), failed


async def test_records_done_at_their_first_call_are_not_handled_again_because_dead_letters_cannot_be_written() -> None:
    poison = some(0.005)
    handler = Handler(poison.__contains__)
    stream = Stream(handler, policy(records=SIZE), give_way_s=0.01)
    writes = 0

    def write() -> None:
        nonlocal writes
        writes += 1
        if writes % 2 == 0:
            raise ConnectionError("no dead-letter topic")

    stream.write_with(write)
    stream.add(*numbered(range(RECORDS)))
    await stream.consume()
    assert sorted(stream.lettered) == sorted(poison)
    assert len(handler.done) == RECORDS - len(poison)
