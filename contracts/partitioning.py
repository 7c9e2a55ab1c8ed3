"""Choose the partition of a key by Java's murmur2, like the other Kafka clients of a company."""

from collections.abc import Sequence
from struct import unpack_from

import numpy as np
from numpy.typing import NDArray

SEED = 0x9747B28C
MIX = 0x5BD1E995
WORD = 0xFFFFFFFF
POSITIVE = 0x7FFFFFFF

FEW = 12
"""Up to this many keys, hashing one by one is faster than column by column (measured with UUIDs)."""


def partitions_of(keys: Sequence[bytes], partition_count: int) -> list[int]:
    """Return each key's partition, 0 to `partition_count - 1`, in the order of `keys`.

    Java's `BuiltInPartitioner` and aiokafka's `DefaultPartitioner` choose the same partition for a key that is not
    null. Raises `ValueError` for a `partition_count` below 1.
    """
    if partition_count < 1:
        raise ValueError(f"partition_count: expected at least 1, got {partition_count}")
    if len(keys) <= FEW:
        return [(murmur2(key) & POSITIVE) % partition_count for key in keys]
    partitions: list[int] = ((murmur2_of_all(keys) & np.uint32(POSITIVE)) % np.uint32(partition_count)).tolist()
    return partitions


def murmur2(key: bytes) -> int:
    """Return Java's murmur2 of one key, as an unsigned 32-bit number (org.apache.kafka.common.utils.Utils.murmur2)."""
    length = len(key)
    h = SEED ^ length
    words = length // 4
    for word in unpack_from(f"<{words}I", key):
        k = word * MIX & WORD
        h = (h * MIX ^ (k ^ k >> 24) * MIX) & WORD
    if tail := key[words * 4 :]:
        h = (h ^ int.from_bytes(tail, "little")) * MIX & WORD
    h = (h ^ h >> 13) * MIX & WORD
    return h ^ h >> 15


def murmur2_of_all(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    """Return Java's murmur2 of every key, in the order of `keys`; keys may differ in length."""
    lengths = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))
    if len(keys) and (lengths == lengths[0]).all():
        return _murmur2_of_equally_long(keys, int(lengths[0]))
    hashes = np.empty(len(keys), dtype=np.uint32)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        hashes[rows] = _murmur2_of_equally_long([keys[row] for row in rows.tolist()], int(length))
    return hashes


def _murmur2_of_equally_long(keys: Sequence[bytes], length: int) -> NDArray[np.uint32]:
    """Hash keys of one length column by column: one vector operation per word of the key."""
    mix = np.uint32(MIX)
    octets = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), length)
    h = np.full(len(keys), SEED ^ length, dtype=np.uint32)
    words = length // 4
    for column in np.ascontiguousarray(octets[:, : words * 4]).view("<u4").T:
        k = column * mix
        k ^= k >> 24
        k *= mix
        h *= mix
        h ^= k
    tail = octets[:, words * 4 :].astype(np.uint32)
    if tail.shape[1]:
        for place in range(tail.shape[1]):
            h ^= tail[:, place] << (8 * place)
        h *= mix
    h ^= h >> 13
    h *= mix
    h ^= h >> 15
    return h
