"""Decompress the records of a batch piece by piece, so that a batch never takes more memory than its reader allows.

A part of the PROTECTION `fetched_batches`; reaches for nothing private.

`aiokafka.codec` decompresses a batch as a whole and without a limit: 1 MB on the wire becomes up to 1 GB (gzip) or
32 GB (zstd). It also reads a block of snappy with a negative size again and again. Each codec here checks a size before
it allocates it.
"""

import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from struct import Struct

import cramjam
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK_BYTES = 1024 * 1024
"""Decompressed bytes of a piece of gzip and zstd."""
WHOLE_BLOCK_BYTES = 16 * 1024 * 1024
"""Decompressed bytes of a block that is decompressed as a whole, where its codec allows no smaller pieces."""
INPUT_BYTES = 64 * 1024
"""Compressed bytes that are passed to a decompressor at a time."""

Buffer = bytes | bytearray | cramjam.Buffer
"""Bytes, in a type that a codec returns."""

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
GZIP_FORMAT = 16 + zlib.MAX_WBITS

XERIAL_MAGIC, XERIAL_HEADER_BYTES = b"\x82SNAPPY\x00", 16
"""How snappy-java frames its blocks."""
SNAPPY_FRAGMENT_BYTES = 64 * 1024
"""Decompressed bytes of a fragment: every known snappy compressor compresses each one separately."""
BIG_ENDIAN_SIZE, LITTLE_ENDIAN_SIZE = Struct(">i"), Struct("<I")

LZ4_MAGIC = 0x184D2204
LZ4_UNCOMPRESSED = 0x80000000
LZ4_BLOCK_BYTES = {4: 64 * 1024, 5: 256 * 1024, 6: 1024 * 1024, 7: 4 * 1024 * 1024}
LZ4_MAX_RATIO = 255


class Indivisible(Exception):
    """Content that is too large to decompress as a whole, and that cannot be decompressed in pieces."""


def decompressed(codec: int, compressed: bytes) -> Iterator[Buffer]:
    """Yield the decompressed content in pieces of at most 16 MiB.

    Raises `CorruptRecordException` where the content is damaged, and `Indivisible`.
    """
    pieces_of = CODECS.get(codec)
    if pieces_of is None:
        raise UnsupportedCodecError(f"unknown compression codec {codec}")
    try:
        yield from pieces_of(compressed)
    except (zlib.error, zstd.ZstdError, cramjam.DecompressionError, ValueError) as error:
        raise CorruptRecordException(f"the compressed records are damaged: {error}") from None


def _gzip(compressed: bytes) -> Iterator[Buffer]:
    data, at = memoryview(compressed), 0
    while at < len(data):
        member = zlib.decompressobj(GZIP_FORMAT)
        while not member.eof:
            given = data[at : at + INPUT_BYTES]
            piece = member.decompress(given, CHUNK_BYTES)
            at += len(given) - len(member.unconsumed_tail) - len(member.unused_data)
            if not (piece or given or member.eof):
                raise ValueError("gzip ends too early")
            yield piece
        while at < len(data) and data[at] == 0:  # padding is part of the format
            at += 1


def _zstd(compressed: bytes) -> Iterator[Buffer]:
    data, at = memoryview(compressed), 0
    while at < len(data):
        frame = zstd.ZstdDecompressor()
        while not frame.eof:
            given = data[at : at + INPUT_BYTES] if frame.needs_input else b""
            wanted = frame.needs_input
            piece = frame.decompress(given, CHUNK_BYTES)
            at += len(given) - len(frame.unused_data)
            if wanted and not (piece or given or frame.eof):
                raise ValueError("zstd ends too early")
            yield piece


def _snappy(compressed: bytes) -> Iterator[Buffer]:
    if not compressed.startswith(XERIAL_MAGIC):
        yield from _snappy_block(compressed)
        return
    at = XERIAL_HEADER_BYTES
    while at < len(compressed):
        begin, at = _sized(compressed, at, BIG_ENDIAN_SIZE)
        yield from _snappy_block(compressed[begin:at])


def _snappy_block(block: bytes) -> Iterator[Buffer]:
    size, begin = _little_endian_varint(block)
    if size <= WHOLE_BLOCK_BYTES:
        yield cramjam.snappy.decompress_raw(block)
        return
    for start, stop, fragment_size in _snappy_fragments(block, begin, size):
        yield cramjam.snappy.decompress_raw(_varint_of(fragment_size) + block[start:stop])


def _snappy_fragments(block: bytes, at: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield where each fragment begins and ends in the block, and its decompressed size.

    A literal or a copy that crosses the border of two fragments makes the block indivisible.
    """
    start, made = at, 0
    while size > 0:
        wanted = min(size, SNAPPY_FRAGMENT_BYTES)
        while made < wanted:
            if at >= len(block):
                raise ValueError("snappy ends too early")
            length, at = _snappy_element(block, at)
            made += length
        if made > wanted or at > len(block):
            raise Indivisible("snappy")
        yield start, at, wanted
        start, made, size = at, 0, size - wanted


def _snappy_element(block: bytes, at: int) -> tuple[int, int]:
    """Return an element's decompressed size, and where the next element begins."""
    tag = block[at]
    kind, length = tag & 3, (tag >> 2) + 1
    if kind == 1:
        return ((tag >> 2) & 7) + 4, at + 2
    if kind:
        return length, at + (3 if kind == 2 else 5)  # noqa: PLR2004 - a copy with an offset of two bytes, or of four
    if (more := length - 60) > 0:  # the length follows the tag, in this many bytes
        length = int.from_bytes(block[at + 1 : at + 1 + more], "little") + 1
        at += more
    return length, at + 1 + length


def _lz4(compressed: bytes) -> Iterator[Buffer]:
    at = 0
    while at < len(compressed):
        start, (independent, checked, summed, max_block_bytes, at) = at, _lz4_frame(compressed, at)
        linked = 0
        while True:
            (size,) = LITTLE_ENDIAN_SIZE.unpack(_exactly(compressed, at, LITTLE_ENDIAN_SIZE.size))
            at += LITTLE_ENDIAN_SIZE.size
            if size == 0:
                break
            block = _exactly(compressed, at, size & ~LZ4_UNCOMPRESSED)
            at += len(block) + (4 if checked else 0)
            if independent:
                yield _lz4_block(block, max_block_bytes, is_compressed=size < LZ4_UNCOMPRESSED)
            else:
                linked += min(max_block_bytes, len(block) * LZ4_MAX_RATIO)
        at += 4 if summed else 0
        if linked > WHOLE_BLOCK_BYTES:
            raise Indivisible("lz4 with linked blocks")
        if not independent:
            yield cramjam.lz4.decompress(compressed[start:at])


def _lz4_frame(compressed: bytes, at: int) -> tuple[bool, bool, bool, int, int]:
    """Return the properties of a frame.

    In order: whether blocks are independent, whether blocks have checksums, whether the frame has one, the largest
    block, and where the first block begins.
    """
    magic, flags, blocks = Struct("<IBB").unpack(_exactly(compressed, at, 6))
    max_block_bytes = LZ4_BLOCK_BYTES.get(blocks >> 4 & 7)
    if magic != LZ4_MAGIC or flags >> 6 != 1 or max_block_bytes is None:
        raise ValueError("not a frame of lz4")
    at += 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)
    return bool(flags & 32), bool(flags & 16), bool(flags & 4), max_block_bytes, at


def _lz4_block(block: bytes, max_block_bytes: int, *, is_compressed: bool) -> Buffer:
    if not is_compressed:
        return block
    content = bytearray(min(max_block_bytes, len(block) * LZ4_MAX_RATIO))
    del content[cramjam.lz4.decompress_block_into(block, content) :]
    return content


def _sized(data: bytes, at: int, packing: Struct) -> tuple[int, int]:
    """Return where the block begins and ends that follows its size."""
    (size,) = packing.unpack(_exactly(data, at, packing.size))
    at += packing.size
    if not 0 <= size <= len(data) - at:
        raise ValueError(f"a block of {size} bytes where {len(data) - at} are left")
    return at, at + size


def _exactly(data: bytes, at: int, size: int) -> bytes:
    found = data[at : at + size]
    if len(found) < size:
        raise ValueError(f"expected {size} more bytes, got {len(found)}")
    return found


def _little_endian_varint(data: bytes) -> tuple[int, int]:
    """Return the number at the start of a snappy block, and its length in bytes."""
    value = 0
    for at, byte in enumerate(data[:5]):
        value |= (byte & 0x7F) << 7 * at
        if byte < 0x80:  # noqa: PLR2004 - the last byte of a varint
            return value, at + 1
    raise ValueError("snappy begins with no size")


def _varint_of(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - as above
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


CODECS: Mapping[int, Callable[[bytes], Iterator[Buffer]]] = {GZIP: _gzip, SNAPPY: _snappy, LZ4: _lz4, ZSTD: _zstd}
