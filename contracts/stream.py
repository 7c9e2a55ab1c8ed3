"""A stream: one message type, its key and its topic. Everything else follows from it."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from types import MappingProxyType, UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin

import msgspec

from contracts.depth import MAX_DEPTH, is_too_deep, nests_freely
from contracts.example import example_of
from contracts.sensitive import Masking
from contracts.strictness import Spelled, spelled, strict

T = TypeVar("T")

NAME = re.compile(r"[a-z][a-z0-9_-]{0,59}")
"""A valid stream name: it becomes part of URL paths, topics, groups and environment variables."""
NAMES_OF_CALLS = frozenset({"basic_producer"})
"""Path segments after `/producers/` that are calls, so no stream may have them as its name."""
SUMMARY_CHARACTERS = 200
MAX_DELETABLE_KEY_BYTES = 16 * 1024
"""Longest key where records can be deleted: percent-encoded it takes three times as much, and must fit into a URL."""
FIELDS = ("topic", "partitions", "replication", "dead_letter_topic", "dead_letter_retention", "group_id")
"""The settings of each stream, read from variables like `ORDERS_TOPIC`."""

encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
"""Encode a value, or a list of values, as UTF-8 JSON, fields in the order of the Struct."""


class Deletion(msgspec.Struct, frozen=True):
    """What a tombstone is decoded to, where the stream takes deletions: nothing is left of the record's key."""


DELETION = Deletion()


class TakesDeletions(partial[T]):
    """How a stream that takes deletions decodes values: its tombstones, which have none, are no bad records."""


class BadStream(ValueError):
    """A declaration of streams is invalid; the message is one line."""


class NoKey(ValueError):
    """The key function of a stream fails for a value; `index` is the place of the value among those given."""

    def __init__(self, index: int, error: Exception) -> None:
        super().__init__(f"the record has no key: {type(error).__name__}: {error}")
        self.index = index


class Stream(Generic[T]):
    """A message type and its topic.

    `record_type` is a Struct or a tagged union of Structs. `key` returns the record's key as text; it is encoded as
    UTF-8, and records of one key keep their order. `summary` returns one line about a value, by default its JSON.
    `variables` are additional environment variables of settings, by field: `{"group_id": "CONSUMER_GROUP_ID"}`.
    With `deletes` it takes tombstones, records with a key and no value, which are bad records otherwise: the producer
    writes them (`DELETE /producers/{stream}?key=`), and handlers get them as a `Deletion`, in the order of their key.
    """

    def __init__(  # noqa: PLR0913 - all that is said of a message
        self,
        name: str,
        record_type: type[T] | UnionType,
        *,
        key: Callable[[T], str],
        summary: Callable[[T], str] | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
        deletes: bool = False,
    ) -> None:
        self.name = name
        self.deletes = deletes
        self.record_type = record_type
        self._key = key
        self._summary = summary
        self._variables = variables

    def __repr__(self) -> str:
        return f"<stream {self.name}>"

    @property
    def topic(self) -> str:
        """The default topic."""
        return self.name

    @property
    def dead_letter_topic(self) -> str:
        """The default dead-letter topic."""
        return f"{self.name}-dlt"

    @property
    def group_id(self) -> str:
        """The default consumer group."""
        return f"{self.name}-consumer"

    def variables(self, field: str) -> tuple[str, ...]:
        """Return the environment variables that set one of `FIELDS`; the first is the stream's own."""
        own = f"{self.name}_{field}".upper().replace("-", "_")
        return (own, self._variables[field]) if field in self._variables else (own,)

    def keys_of(self, values: Sequence[T]) -> list[bytes]:
        """Return the record keys of values, as UTF-8. Raises `NoKey` for the first value without a key."""
        key, keys = self._key, list[bytes]()
        try:
            for value in values:
                keys.append(key(value).encode())
        except Exception as error:  # noqa: BLE001 - the key may be any function
            raise NoKey(len(keys), error) from None
        return keys

    def fault_of(self, key: bytes, value: bytes) -> str | None:
        """Return why a valid value must not be written under a key, None if it may."""
        if self.nests_freely and is_too_deep(value):
            return f"the record is nested more than {MAX_DEPTH} levels deep"
        if not self.deletes or 0 < len(key) <= MAX_DELETABLE_KEY_BYTES:
            return None
        fault = (
            f"the key has {len(key)} bytes, expected at most {MAX_DELETABLE_KEY_BYTES}" if key else "the key is empty"
        )
        return f"{fault}: no call could delete the record"

    def summary_of(self, value: T) -> str:
        """Return one line about a value, of at most 200 characters."""
        line = self._summary(value) if self._summary else encode(value).decode()
        return " ".join(line.split())[:SUMMARY_CHARACTERS]

    @cached_property
    def strict_type(self) -> Any:  # noqa: ANN401 - a type, or a union of types
        """The type that the producer decodes: unknown fields are refused at any depth."""
        return strict(self.record_type)

    @cached_property
    def decode(self) -> Callable[[bytes], T]:
        """Decode a record's value; unknown fields are ignored, and types are never converted.

        Raises `msgspec.DecodeError` (`msgspec.ValidationError` names the JSON path), `UnicodeDecodeError` for strings
        that are not UTF-8, or `RecursionError`. Raises `TypeError` for None.
        """
        decode: Callable[[bytes], T] = msgspec.json.Decoder(self.record_type).decode
        return TakesDeletions(decode) if self.deletes else decode

    @cached_property
    def decode_strictly(self) -> Callable[[bytes], T]:
        """Decode a value that a caller sent. Raises as `decode` does, and for unknown fields."""
        decode: Callable[[bytes], T] = msgspec.json.Decoder(self.strict_type).decode
        return decode

    @cached_property
    def decode_all_strictly(self) -> Callable[[bytes], list[T]]:
        """Decode a list of values that a caller sent. Raises as `decode_strictly` does, with the index in the path."""
        decode: Callable[[bytes], list[T]] = msgspec.json.Decoder(list[self.strict_type]).decode  # type: ignore[name-defined]  # a type at run time
        return decode

    @cached_property
    def spelled(self) -> Spelled:
        """The type that keeps times and the names of objects as text: decoding changes some of them silently."""
        return spelled(self.record_type)

    @cached_property
    def decode_spelled(self) -> Callable[[bytes], Any]:
        """Decode a value as `spelled`. Raises `msgspec.ValidationError` for a time that cannot be kept exactly."""
        decode: Callable[[bytes], Any] = msgspec.json.Decoder(self.spelled.type).decode
        return decode

    @cached_property
    def masking(self) -> Masking:
        """Masks the sensitive fields of values."""
        return Masking(self.record_type, self._key)

    @cached_property
    def nests_freely(self) -> bool:
        """Whether values may have any depth: `contracts.depth` limits it."""
        return nests_freely(msgspec.inspect.type_info(self.record_type))

    @cached_property
    def example(self) -> Any:  # noqa: ANN401 - what JSON knows
        """An example for the API documents, from the examples of the fields; None if these give no valid value."""
        example = example_of(self.record_type)
        try:
            self.decode_strictly(encode(example))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return example


def check_streams(streams: Iterable[Stream[Any]], reserved: Iterable[str] = ()) -> None:
    """Check that streams have valid and distinct names and variables. Raises `BadStream` for the first fault.

    `reserved` are environment variables with another meaning.
    """
    names: set[str] = set()
    owners = dict.fromkeys(reserved, "a setting of the service")
    for stream in streams:
        if not NAME.fullmatch(stream.name):
            raise BadStream(
                f"stream {stream.name!r}: expected a name of lower-case letters, digits, - and _, like orders"
            )
        if stream.name in NAMES_OF_CALLS:
            raise BadStream(f"stream {stream.name!r}: the name is taken by a call of the producer")
        if stream.name in names:
            raise BadStream(f"stream {stream.name!r}: the name is taken by another stream")
        names.add(stream.name)
        for variable in variables_of(stream):
            owner = owners.setdefault(variable, f"stream {stream.name!r}")
            if owner != f"stream {stream.name!r}":
                raise BadStream(f"stream {stream.name!r}: the variable {variable} belongs to {owner}")
        _check_codec(stream)


def variables_of(stream: Stream[Any]) -> Iterator[str]:
    """Yield the environment variables of a stream's settings."""
    for field in FIELDS:
        yield from stream.variables(field)


def _check_codec(stream: Stream[Any]) -> None:
    is_union = get_origin(stream.record_type) in {Union, UnionType}
    for kind in get_args(stream.record_type) if is_union else (stream.record_type,):
        is_struct = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        if not is_struct or kind.__struct_config__.array_like:  # a list in a body is a list of records
            name = getattr(kind, "__name__", kind)
            raise BadStream(f"stream {stream.name!r}: expected Structs that are objects in JSON, got {name}")
    try:
        stream.decode_all_strictly, stream.decode_spelled, stream.decode  # noqa: B018 - built now, so that a fault appears at the start
    except (TypeError, NameError, ValueError) as error:
        raise BadStream(f"stream {stream.name!r}: {str(error).splitlines()[0]}") from None
