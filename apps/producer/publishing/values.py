"""Decode a caller's JSON to values, and encode values as records. Knows neither HTTP nor Kafka."""

from codecs import BOM_UTF8
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from apps.chassis.http.json_faults import split_fault
from apps.chassis.http.repeated_names import RepeatedName, check_names, count_quotes, fewest_quotes
from contracts.stream import NoKey, Stream, encode
from contracts.strictness import find_lost

T = TypeVar("T")

MAX_QUOTED_CHARACTERS = 300
"""Maximum of a detail or a path. The decoder quotes names and values of any length."""
ITEM_BYTES, OBJECT_BYTES = 75, 150
"""Bytes of memory that an item of a list or an object takes, and those that an object takes beyond its items."""
NESTED_TOO_DEEPLY = "the body is nested too deeply"
ROUNDED = "the time has more than 6 digits behind the point, which would be rounded"
EQUAL = "two names of the object, or elements of the set, are the same"


LIMITED_BY = "by the limit of this service and the topic's max.message.bytes, which is read every 20 s"


class BadRecords(ValueError):
    """A body is not valid; `path` is the JSON path of the fault (`$` is the whole body)."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(_shortened(detail))
        self.path = _shortened(path)


def read_records(stream: Stream[Any], body: bytes, max_record_bytes: int) -> tuple[list[bytes], list[bytes]]:
    """Return keys and encoded values of a JSON body: one value, or a list. Raises `BadRecords` for the first fault."""
    where = "$[{}]" if is_list(body) else "$"
    keys, values = to_records(stream, _decode(stream, body), max_record_bytes, where)  # frees the decoded values
    if count_quotes(body) != fewest_quotes(stream.strict_type) * len(values):
        check_fields(stream, body)
    return keys, values


def memory_of(body: bytes) -> int:
    """Return about how many bytes of memory the decoded values of a JSON body take at most (measured)."""
    items = body.count(b",") + body.count(b"[")
    return 2 * len(body) + ITEM_BYTES * items + OBJECT_BYTES * body.count(b"{")


def read_line(stream: Stream[T], line: bytes) -> T:
    """Return the value of one line. Raises `BadRecords`, even for a list.

    A byte order mark is skipped, because concatenated files have them in the middle.
    """
    line = line.removeprefix(BOM_UTF8)
    if is_list(line):
        raise BadRecords("$", "Expected `object`, got `array`")
    return _decode(stream, line)[0]


def _decode(stream: Stream[T], body: bytes) -> list[T]:
    try:
        values = stream.decode_all_strictly(body) if is_list(body) else [stream.decode_strictly(body)]
        if stream.spelled.times or stream.spelled.names:
            _check_spelling(stream, body, values)
    except msgspec.MsgspecError as error:
        raise BadRecords(*split_fault(error, body)) from None
    except UnicodeDecodeError:
        raise BadRecords("$", "the body is not valid UTF-8") from None
    except RecursionError:
        raise BadRecords("$", NESTED_TOO_DEEPLY) from None
    except BadRecords:
        raise
    except Exception as error:  # noqa: BLE001 - the `__post_init__` of a Struct may raise anything
        raise BadRecords("$", f"{type(error).__name__}: {error}") from None
    return values


def _check_spelling(stream: Stream[Any], body: bytes, values: Sequence[Any]) -> None:
    """Raise `BadRecords` for the first value that lost digits of a time, or one of two equal names or elements."""
    for (path, text), value in zip(_texts_of(body), values, strict=True):
        try:
            kept = stream.decode_spelled(text)
        except msgspec.ValidationError as error:
            within, _ = split_fault(error, text)
            raise BadRecords(path + within.removeprefix("$"), ROUNDED) from None
        if stream.spelled.names and (lost := find_lost(value, kept)):
            raise BadRecords(path + lost.removeprefix("$"), EQUAL)


def check_fields(stream: Stream[Any], body: bytes) -> None:
    """Raise `BadRecords` for the first repeated field, which the decoder does not report."""
    for path, text in _texts_of(body):
        if count_quotes(text) == fewest_quotes(stream.strict_type):  # ten times as fast as reading the names
            continue
        try:
            check_names(text)
        except RepeatedName as error:
            raise BadRecords(f"{path}.{error.name}", str(error)) from None
        except RecursionError:  # this reader takes more of the stack than the decoder
            raise BadRecords("$", NESTED_TOO_DEEPLY) from None


def _texts_of(body: bytes) -> Iterable[tuple[str, bytes]]:
    """Return the JSON path and text of each value in a valid body."""
    if not is_list(body):
        return [("$", body.removeprefix(BOM_UTF8))]
    texts = msgspec.json.decode(body, type=list[msgspec.Raw])
    return ((f"$[{index}]", bytes(text)) for index, text in enumerate(texts))


def is_list(body: bytes) -> bool:
    """Return whether a JSON body begins like a list."""
    return body.lstrip(b" \t\r\n")[:1] == b"["


def to_records(
    stream: Stream[T], values: Sequence[T], max_record_bytes: int, where: str = "$[{}]"
) -> tuple[list[bytes], list[bytes]]:
    """Return keys and encoded values.

    Raises `BadRecords` for the first record without a key, or of more than `max_record_bytes`. `where` is a template
    for its JSON path.
    """
    try:
        keys, encoded = stream.keys_of(values), list(map(encode, values))
    except RecursionError:  # the encoder may be called with more of the stack in use than the decoder was
        raise BadRecords("$", NESTED_TOO_DEEPLY) from None
    except NoKey as error:
        raise BadRecords(where.format(error.index), str(error)) from None
    for index, (key, value) in enumerate(zip(keys, encoded, strict=True)):
        if (stream.nests_freely or stream.deletes) and (fault := stream.fault_of(key, value)):
            raise BadRecords(where.format(index), fault)
        if len(key) + len(value) > max_record_bytes:
            size = len(key) + len(value)
            raise BadRecords(where.format(index), f"the record has {size} bytes, {expected_size(max_record_bytes)}")
    return keys, encoded


def expected_size(max_record_bytes: int) -> str:
    """Return how large a record may be, in words that say what limits it."""
    if max_record_bytes <= 0:
        return "and the topic takes none: its max.message.bytes, which is read every 20 s, is less than an empty record"
    return f"expected at most {max_record_bytes} {LIMITED_BY}"


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_QUOTED_CHARACTERS else f"{text[:MAX_QUOTED_CHARACTERS]}..."
