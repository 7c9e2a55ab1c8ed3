"""A stream: one message type, its key, and where its records travel. Everything else follows from it."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType, UnionType
from typing import Any, Generic, TypeVar

import msgspec

from contracts.example import example_of
from contracts.strictness import strict

T = TypeVar("T")

NAME = re.compile(r"[a-z][a-z0-9_-]{0,59}")
"""A stream's name stands in addresses, in the names of topics and groups, and in variables."""
NAMES_OF_CALLS = frozenset({"basic_producer"})
"""Names that follow `/producers/` and are no streams."""
SUMMARY_CHARACTERS = 200
FIELDS = ("topic", "partitions", "replication", "dead_letter_topic", "group_id")
"""Settings of each stream, read from variables like `ORDERS_TOPIC`."""

encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
"""Encode a value, or a list of values, as UTF-8 JSON, fields in the order of the Struct."""


class BadStream(ValueError):
    """The streams cannot be used as declared; the message is one line."""


class Stream(Generic[T]):
    """A message type and its topic.

    `record_type` is a Struct or a tagged union of Structs. `key` returns the text whose UTF-8 is a record's key:
    records of one key keep their order. `summary` returns a line about a value, by default its JSON. `variables` are
    further names of settings, by field: `{"group_id": "CONSUMER_GROUP_ID"}`.
    """

    def __init__(
        self,
        name: str,
        record_type: type[T] | UnionType,
        *,
        key: Callable[[T], str],
        summary: Callable[[T], str] | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.name = name
        self.record_type = record_type
        self._key = key
        self._summary = summary
        self._variables = variables

    def __repr__(self) -> str:
        return f"<stream {self.name}>"

    @property
    def topic(self) -> str:
        """The topic, unless a setting names another."""
        return self.name

    @property
    def dead_letter_topic(self) -> str:
        """The topic of what could not be consumed, unless a setting names another."""
        return f"{self.name}-dlt"

    @property
    def group_id(self) -> str:
        """The consumer group, unless a setting names another."""
        return f"{self.name}-consumer"

    def variables(self, field: str) -> tuple[str, ...]:
        """Return the environment variables that set one of `FIELDS`; the first is the stream's own."""
        own = f"{self.name}_{field}".upper().replace("-", "_")
        return (own, self._variables[field]) if field in self._variables else (own,)

    def keys_of(self, values: Sequence[T]) -> list[bytes]:
        """Return the keys of the records of some values, in UTF-8."""
        key = self._key
        return [key(value).encode() for value in values]

    def summary_of(self, value: T) -> str:
        """Return a line about a value, of 200 characters at most."""
        line = self._summary(value) if self._summary else encode(value).decode()
        return " ".join(line.split())[:SUMMARY_CHARACTERS]

    @cached_property
    def strict_type(self) -> Any:  # noqa: ANN401 - a type, or a union of types
        """The type as a producer accepts it: an unknown field is refused, at any depth."""
        return strict(self.record_type)

    @cached_property
    def decode(self) -> Callable[[bytes], T]:
        """Decode a record's value; unknown fields are ignored, and types are never converted.

        Raises `msgspec.DecodeError` (`msgspec.ValidationError` names the JSON path), `UnicodeDecodeError` for strings
        that are not UTF-8, or `RecursionError`.
        """
        decode: Callable[[bytes], T] = msgspec.json.Decoder(self.record_type).decode
        return decode

    @cached_property
    def decode_strictly(self) -> Callable[[bytes], T]:
        """Decode a value of a producer's caller. Raises as `decode` does, and for unknown fields."""
        decode: Callable[[bytes], T] = msgspec.json.Decoder(self.strict_type).decode
        return decode

    @cached_property
    def decode_all_strictly(self) -> Callable[[bytes], list[T]]:
        """Decode a list of values. Raises as `decode_strictly` does, with the index in the path."""
        decode: Callable[[bytes], list[T]] = msgspec.json.Decoder(list[self.strict_type]).decode  # type: ignore[name-defined]  # a type at run time
        return decode

    @cached_property
    def example(self) -> Any:  # noqa: ANN401 - what JSON knows
        """A value for the documents, from the examples of its fields; None where these make no valid value."""
        example = example_of(self.record_type)
        try:
            self.decode_strictly(encode(example))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return example


def check_streams(streams: Iterable[Stream[Any]], reserved: Iterable[str] = ()) -> None:
    """Check that streams can live side by side. Raises `BadStream` for the first fault.

    `reserved` names environment variables that mean something else.
    """
    names: set[str] = set()
    owners = dict.fromkeys(reserved, "a setting of the service")
    for stream in streams:
        if not NAME.fullmatch(stream.name):
            raise BadStream(f"stream {stream.name!r}: expected a name of small letters, digits, - and _, like orders")
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
    """Yield the environment variables that set what belongs to a stream."""
    for field in FIELDS:
        yield from stream.variables(field)


def _check_codec(stream: Stream[Any]) -> None:
    try:
        stream.decode, stream.decode_all_strictly  # noqa: B018 - made now, or the first record would find the fault
    except (TypeError, NameError) as error:
        raise BadStream(f"stream {stream.name!r}: {str(error).splitlines()[0]}") from None
