from collections.abc import Container, Sequence

from samples import Stored

from apps.consumer.dead_letters import BadRecord
from apps.consumer.limit import Limit

WRONG = ValueError("wrong")


def good(*offsets: int, partition: int = 0) -> list[Stored]:
    return [Stored(partition=partition, offset=offset) for offset in offsets]


def bad(*offsets: int, partition: int = 0) -> list[BadRecord]:
    return [BadRecord(Stored(partition=partition, offset=offset), WRONG, 1) for offset in offsets]


def judge(limit: Limit, good: Sequence[Stored], bad: Sequence[BadRecord], accepted: Container[int] = ()) -> str | None:
    """Judge a batch that is done when it passes."""
    if (reason := limit.review(good, bad, accepted)) is None:
        limit.count()
    return reason


def test_the_hundredth_bad_record_in_a_row_is_refused_and_the_ninety_ninth_is_not() -> None:
    assert Limit().review([], bad(*range(99))) is None
    assert "100 records in a row" in str(Limit().review([], bad(*range(100))))


def test_bad_records_in_a_row_are_counted_over_batches() -> None:
    limit = Limit(in_a_row=3)
    assert judge(limit, [], bad(0, 1)) is None
    assert "of partition 0, the last at offset 2" in str(judge(limit, [], bad(2)))


def test_a_good_record_between_bad_ones_ends_the_row_wherever_it_stands_in_the_batch() -> None:
    limit = Limit(in_a_row=3)
    assert judge(limit, good(2), bad(3, 1, 0)) is None
    assert judge(limit, good(4), bad(6, 5)) is None
    assert judge(limit, good(8), bad(7)) is not None


def test_a_batch_that_was_refused_does_not_count() -> None:
    limit = Limit(in_a_row=3)
    assert judge(limit, [], bad(0, 1)) is None
    assert judge(limit, [], bad(2)) is not None
    assert judge(limit, good(2), []) is None


def test_partitions_are_judged_apart() -> None:
    limit = Limit(in_a_row=3)
    assert judge(limit, [], [*bad(0, 1), *bad(0, 1, partition=1)]) is None
    assert "of partition 1" in str(judge(limit, [], bad(2, partition=1)))


def test_more_than_half_of_the_last_records_is_too_much_though_never_in_a_row() -> None:
    limit = Limit(in_a_row=100, share=0.5, of_last=10)
    assert judge(limit, good(1, 3, 5, 7, 9), bad(0, 2, 4, 6, 8)) is None
    assert "more than 50% of the last 10" in str(judge(limit, [], bad(10, 11)))


def test_old_records_do_not_count_against_the_share() -> None:
    limit = Limit(in_a_row=100, share=0.5, of_last=10)
    assert judge(limit, good(1, 3, 5, 7, 9), bad(0, 2, 4, 6, 8)) is None
    assert judge(limit, good(*range(10, 20)), []) is None
    assert judge(limit, [], bad(20, 21, 22, 23, 24)) is None


def test_what_is_accepted_passes_and_does_not_count_afterwards() -> None:
    limit = Limit(in_a_row=3, share=0.5, of_last=10)
    assert judge(limit, [], [*bad(*range(700)), *bad(0, 1, partition=1)], {0}) is None
    assert judge(limit, [], bad(700, 701)) is None
    assert "of partition 1" in str(judge(limit, [], bad(2, partition=1), {0}))


def test_a_batch_that_comes_again_because_it_was_not_done_counts_once() -> None:
    limit = Limit(in_a_row=100)
    assert limit.review([], bad(*range(60))) is None  # and is given up before its dead letters are written
    assert judge(limit, [], bad(*range(60))) is None
    assert judge(limit, [], bad(*range(60, 100))) is not None


def test_forgetting_begins_the_row_anew() -> None:
    limit = Limit(in_a_row=3)
    assert judge(limit, [], bad(0, 1)) is None
    limit.forget()
    assert judge(limit, [], bad(2, 3)) is None
