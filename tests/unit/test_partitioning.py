import random

import pytest
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from hypothesis import given
from hypothesis import strategies as st

from contracts.partitioning import FEW, murmur2, murmur2_of_all, partitions_of


def keys_of_length(length: int, count: int = 40) -> list[bytes]:
    return [random.randbytes(length) for _ in range(count)]


def test_keys_of_every_length_hash_as_in_aiokafka() -> None:
    for length in range(65):
        keys = keys_of_length(length)
        expected = [aiokafka_murmur2(key) for key in keys]
        assert murmur2_of_all(keys).tolist() == expected
        assert [murmur2(key) for key in keys] == expected


def test_keys_of_mixed_lengths_hash_as_in_aiokafka() -> None:
    keys = [random.randbytes(random.randrange(65)) for _ in range(500)]
    assert murmur2_of_all(keys).tolist() == [aiokafka_murmur2(key) for key in keys]


def test_events_with_ids_in_any_script_go_to_the_partition_that_aiokafka_chooses() -> None:
    ids = ["Ωμέγα", "日本語", "🙂" * 16, "é", "naïve", "a" * 64]
    keys = [event_id.encode() for event_id in ids * 4]
    choose = DefaultPartitioner()
    for count in range(1, 51):
        partitions = list(range(count))
        expected = [choose(key, partitions, partitions) for key in keys]
        assert partitions_of(keys, count) == expected
        assert partitions_of(keys[:FEW], count) == expected[:FEW]


def test_no_keys_have_no_partitions() -> None:
    assert partitions_of([], 6) == []
    assert murmur2_of_all([]).tolist() == []


@given(st.lists(st.binary(max_size=200), max_size=3 * FEW), st.integers(1, 10_000))
def test_any_keys_go_to_the_partitions_that_aiokafka_chooses(keys: list[bytes], count: int) -> None:
    partitions = list(range(count))
    choose = DefaultPartitioner()
    assert partitions_of(keys, count) == [choose(key, partitions, partitions) for key in keys]


@given(st.integers(max_value=0))
def test_a_topic_without_partitions_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="partition_count: expected at least 1"):
        partitions_of([b"key"], count)
