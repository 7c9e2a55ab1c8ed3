"""Limit how deeply a record is nested: a decoder fails at a depth that depends on how many calls are on the stack."""

import re
from itertools import chain

import numpy as np
from msgspec import inspect

MAX_DEPTH = 500
"""Levels of lists and objects that a record may have: both services can decode this many from anywhere."""
STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
OTHERS = bytes(code for code in range(256) if code not in b"[]{}")
CLOSES = 0b100
"""The bit in which `]` and `}` differ from `[` and `{`."""


PARTS = ("type", "types", "item_type", "item_types", "key_type", "value_type", "fields")
"""The attributes of msgspec's descriptions of types that hold the types inside them."""


def nests_freely(kind: inspect.Type) -> bool:
    """Return whether JSON of any depth can be decoded to a type, because a part of it may be anything."""
    held = (getattr(kind, name, ()) for name in PARTS)
    parts = chain.from_iterable(one if isinstance(one, tuple) else (one,) for one in held)
    return isinstance(kind, inspect.AnyType | inspect.RawType) or any(
        nests_freely(one.type if isinstance(one, inspect.Field) else one) for one in parts
    )


def is_too_deep(text: bytes) -> bool:
    """Return whether valid JSON has more than `MAX_DEPTH` levels of lists and objects."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    brackets = np.frombuffer(STRINGS.sub(b"", text).translate(None, OTHERS), np.uint8)
    return bool(np.where(brackets & CLOSES, -1, 1).cumsum().max(initial=0) > MAX_DEPTH)
