"""Finds a name that a JSON object repeats: decoders keep the last value and do not report the others."""

import json
from functools import cache
from typing import Any

import msgspec
import numpy as np

QUOTE = ord('"')
SHORT_TEXT_BYTES = 2_048
"""Up to this size bytes count a character faster than numpy is set up for it."""


class RepeatedName(ValueError):
    """A JSON object repeats a name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the field {name[:40]!r} is given twice")
        self.name = name


@cache
def fewest_quotes(kind: Any) -> int:  # noqa: ANN401 - any type that JSON can be decoded to
    """Return the fewest quotation marks that a value has as JSON; 0 for other types than a Struct.

    Each repeated name adds two. JSON that has no more than this therefore repeats none.
    """
    info = msgspec.inspect.type_info(kind)
    if not isinstance(info, msgspec.inspect.StructType):
        return 0
    return sum(4 if _is_text(field.type) else 2 for field in info.fields if field.required)


def _is_text(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.Metadata):
        return _is_text(kind.type)
    return isinstance(kind, msgspec.inspect.StrType)


def count_quotes(text: bytes) -> int:
    """Return the number of unescaped quotation marks in valid JSON."""
    escaped = text.replace(rb"\\", b"").count(rb"\"") if b"\\" in text else 0
    if len(text) <= SHORT_TEXT_BYTES:
        return text.count(QUOTE) - escaped
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == QUOTE)) - escaped


def check_names(text: bytes) -> None:
    """Raise `RepeatedName` when an object in valid JSON repeats a name. Takes several times as long as decoding."""
    READER.decode(text.decode())


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise RepeatedName(name)
        seen.add(name)


READER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=str)
"""One for all: making one takes longer than reading a record. `int` would refuse more than 4,300 digits."""
