from collections.abc import Container, Sequence

from samples import Stored

from apps.consumer.consuming.dead_letter_limit import DeadLetterLimiter
from apps.consumer.consuming.dead_letters import BadRecord
from apps.consumer.consuming.policy import DeadLetterLimit
from contracts.dead_letter import ROUNDS, TRIES

WRONG = ValueError("wrong")
REDRIVEN = ((TRIES, b"\x00\x00\x00\x03"), (ROUNDS, b"\x00\x00\x00\x01"))


class Stream:
    """Counts offsets, and has batches judged: `g` is a good record, `b` a bad one, `r` a redriven bad one.

    A digit says in which partition those behind it stand; `p` is poison.
    """

    def __init__(self, **policy: float) -> None:
        self.limit = DeadLetterLimiter(DeadLetterLimit(**policy))  # type: ignore[arg-type]  # its fields
        self.offset = 0

    def batch(self, kinds: str) -> tuple[list[Stored], list[BadRecord]]:
        records, bad, partition = [], [], 0
        for kind in kinds:
            if kind.isdigit():
                partition = int(kind)
                continue
            record = Stored(partition, self.offset, headers=REDRIVEN if kind == "r" else ())
            self.offset += 1
            records.append(record)
            if kind in "brp":
                bad.append(BadRecord(record, WRONG, 1, is_poison=kind == "p"))
        return records, bad

    def judge(self, kinds: str, accepted: Container[int] = ()) -> str | None:
        """Judge a batch that is committed when it passes."""
        if (excess := self.limit.review(*self.batch(kinds), accepted)) is None:
            self.limit.count()
            return None
        self.halted_at = excess.bad.record.offset
        return excess.reason

    def judge_all(self, batches: Sequence[str]) -> list[str | None]:
        return [self.judge(kinds) for kinds in batches]


def test_the_hundredth_bad_record_in_a_row_is_refused_and_the_ninety_ninth_is_not() -> None:
    assert Stream().judge("b" * 99) is None
    stream = Stream()
    assert "100 consecutive records were refused" in str(stream.judge("g" + "b" * 120))
    assert stream.halted_at == 100


def test_bad_records_in_a_row_are_counted_over_batches() -> None:
    stream = Stream(consecutive=3)
    assert stream.judge("1bb") is None
    assert "3 consecutive" in str(stream.judge("1b"))


def test_a_good_record_between_bad_ones_ends_the_row_wherever_it_stands_in_the_batch() -> None:
    assert Stream(consecutive=3).judge_all(["bbgb", "bgbb", "g", "bb"]) == [None] * 4
    assert Stream(consecutive=3).judge("gbbb") is not None


def test_bad_records_spread_over_partitions_are_a_row_of_the_stream() -> None:
    stream = Stream()
    reasons = stream.judge_all([f"{partition}" + "b" * 20 for partition in range(6)])
    assert reasons[:4] == [None] * 4
    assert reasons[4] == "100 consecutive records were refused of the stream"


def test_a_row_of_a_partition_is_counted_whatever_succeeds_in_others() -> None:
    reasons = Stream(consecutive=3).judge_all(["1b2g", "1b2gg", "2g1b"])
    assert reasons == [None, None, "3 consecutive records were refused of partition 1"]


def test_more_than_half_of_the_last_records_is_too_much_though_never_in_a_row() -> None:
    stream = Stream(window=10)
    assert stream.judge("bgbgbgbgbg") is None
    assert "more than 50% of the last 10 were refused" in str(stream.judge("bb"))


def test_the_share_is_counted_by_partition_and_by_stream() -> None:
    of_stream = Stream(window=10)
    assert (
        of_stream.judge_all(["1bgb", "2bgb", "3bgb"])[-1] == "more than 50% of the last 10 were refused of the stream"
    )
    of_partition = Stream(window=10)
    batches = ["1bg2gggg"] * 5 + ["1b2gggg1b"]
    assert of_partition.judge_all(batches)[-1] == "more than 50% of the last 10 were refused of partition 1"


def test_old_records_do_not_count_against_the_share() -> None:
    assert Stream(window=10).judge_all(["bgbgbgbgbg", "g" * 10, "bbbbb"]) == [None] * 3


def test_what_is_accepted_passes_and_does_not_count_afterwards() -> None:
    stream = Stream(consecutive=3, window=10)
    assert stream.judge("b" * 700, accepted={0}) is None
    assert stream.judge("bb") is None
    assert stream.judge("bbb1bbb", accepted={0}) is not None


def test_what_was_redriven_neither_counts_nor_ends_a_row() -> None:
    stream = Stream(consecutive=3)
    assert stream.judge("r" * 300) is None
    assert stream.judge("bb" + "r" * 300) is None
    assert stream.judge("b") is not None


def test_poison_neither_counts_nor_ends_a_row() -> None:
    stream = Stream(consecutive=3)
    assert stream.judge("bb" + "p" * 50) is None
    assert stream.judge("b") is not None


def test_after_a_halt_the_next_bad_record_halts_until_a_batch_had_none() -> None:
    stream = Stream(consecutive=3)
    assert stream.judge("bbb") is not None
    assert stream.judge("gggbg") == "a record was refused again after a halt"
    assert stream.judge("r") is None
    assert stream.judge("ggg") is None
    assert stream.judge("b") is None


def test_a_batch_that_is_redelivered_because_it_was_not_done_counts_once() -> None:
    stream = Stream()
    assert stream.limit.review(*stream.batch("b" * 60)) is None  # abandoned before its dead letters are written
    assert stream.judge("b" * 60) is None
    assert stream.judge("b" * 40) is not None


def test_what_was_forgotten_counts_no_more() -> None:
    stream = Stream(consecutive=3)
    assert stream.judge("bb") is None
    stream.limit.forget()
    assert stream.judge("bb") is None
