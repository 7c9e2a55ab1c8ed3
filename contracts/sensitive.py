"""Mark fields of a message type as sensitive, and mask them for callers that may not see them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from contracts.example import example_of

MASK = "…"
"""Replaces what is masked, however long it is."""
MARK = "x-sensitive"
"""The member of a JSON schema that marks a sensitive field."""
EMAIL = re.compile(r"[^\s@]+@([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+)")

FILLINGS = (None, MASK, "0123456789", "Ada Lovelace", "ada@example.com", "")
"""What sensitive fields are tried with, to see whether a key is made of them; None leaves them as they are."""
SIMPLE = (str, bytes, bool, int, float, list, dict)
"""Types that have an empty value."""

Mask = Callable[[Any], Any]
"""Returns JSON, of types that Python knows, with what is sensitive replaced."""


def Sensitive() -> msgspec.Meta:  # noqa: N802 - it marks a type, as `Meta` does
    """Mark an annotated field: callers see it whole only with the role `read:sensitive`."""
    return msgspec.Meta(extra_json_schema={MARK: True})


def masked(value: object) -> object:
    """Return what is shown of a sensitive value: of an e-mail address the first letter and the domain."""
    if value is None:
        return None
    found = EMAIL.fullmatch(value) if isinstance(value, str) else None
    return f"{found[0][0]}{MASK}@{found[1]}" if found else MASK


class Masking:
    """Masks the sensitive fields of a type; it is false when the type has none."""

    def __init__(self, record_type: Any, key: Callable[[Any], str]) -> None:  # noqa: ANN401 - a type, or a union of types
        kind = inspect.type_info(record_type)
        self._mask = _mask_of(kind, masked)
        self._remove = _mask_of(kind, lambda value: None if value is None else "")
        self.hides_key = bool(self) and any(_is_sensitive(key, one) for one in _structs_of(kind))

    def __bool__(self) -> bool:
        return self._mask is not None

    def mask(self, value: object) -> object:
        """Return a decoded value as JSON types, masked."""
        return self._mask(_json_of(value)) if self._mask else value

    def text_of(self, value: object) -> bytes:
        """Return a decoded value as JSON without anything sensitive, for a search."""
        return msgspec.json.encode(self._remove(_json_of(value)) if self._remove else value)


def _json_of(value: object) -> Any:  # noqa: ANN401 - what JSON knows
    return msgspec.json.decode(msgspec.json.encode(value))


class _Member(NamedTuple):
    """A type of a union, the Python type of its JSON, and its tag, None without any."""

    shape: type
    tag_field: str | None
    tag: object
    mask: Mask | None

    def fits(self, value: Any) -> bool:  # noqa: ANN401 - what JSON knows
        if self.shape is not object and not isinstance(value, self.shape):
            return False
        if self.tag is None:
            return self.shape is not object or not isinstance(value, dict | list)
        return bool((value[:1] == [self.tag]) if self.shape is list else value.get(self.tag_field) == self.tag)


def _mask_of(kind: inspect.Type, hide: Mask) -> Mask | None:  # noqa: PLR0911 - each kind of type its way
    """Return what masks JSON of a type with `hide`, None when nothing in it is sensitive."""
    match kind:
        case inspect.Metadata():
            return hide if (kind.extra_json_schema or {}).get(MARK) else _mask_of(kind.type, hide)
        case inspect.StructType():
            return _mask_of_struct(kind, hide)
        case inspect.UnionType():
            return _mask_of_union(kind, hide)
        case inspect.DictType() | inspect.FrozenDictType():
            if _mask_of(kind.key_type, hide):
                return hide
            of_values = _mask_of(kind.value_type, hide)
            return of_values and (lambda value: {name: of_values(one) for name, one in value.items()})
        case inspect.TupleType():
            masks = [_mask_of(one, hide) for one in kind.item_types]
            return _mask_in_place(masks) if any(masks) else None
        case inspect.CollectionType():
            of_items = _mask_of(kind.item_type, hide)
            return of_items and (lambda value: [of_items(one) for one in value])
    return None


def _mask_of_struct(kind: inspect.StructType, hide: Mask) -> Mask | None:
    masks = {one.encode_name: _mask_of(one.type, hide) for one in kind.fields}
    if not any(masks.values()):
        return None
    if kind.array_like:
        return _mask_in_place([*([None] if kind.tag is not None else []), *masks.values()])
    return lambda value: {name: mask(one) if (mask := masks.get(name)) else one for name, one in value.items()}


def _mask_in_place(masks: Sequence[Mask | None]) -> Mask:
    return lambda value: [mask(one) if mask else one for mask, one in zip(masks, value, strict=False)]


def _mask_of_union(kind: inspect.UnionType, hide: Mask) -> Mask | None:
    """Return what masks by the type that a value has; what fits several is masked if one of them is sensitive."""
    members = [_member_of(one, _mask_of(one, hide)) for one in kind.types]
    if not any(member.mask for member in members):
        return None

    def mask(value: object) -> object:
        fitting = [member.mask for member in members if member.fits(value)]
        found = next(filter(None, fitting), None)
        return found(value) if found else value if fitting else hide(value)

    return mask


def _member_of(kind: inspect.Type, mask: Mask | None) -> _Member:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.StructType):
        return _Member(list if kind.array_like else dict, kind.tag_field, kind.tag, mask)
    shapes: Mapping[type, type] = {
        inspect.DictType: dict,
        inspect.FrozenDictType: dict,
        inspect.CollectionType: list,
        inspect.TupleType: list,
    }
    return _Member(next((to for one, to in shapes.items() if isinstance(kind, one)), object), None, None, mask)


def _structs_of(kind: inspect.Type) -> Iterator[inspect.StructType]:
    for one in kind.types if isinstance(kind, inspect.UnionType) else (kind,):
        if isinstance(one, inspect.StructType):
            yield one


def _is_sensitive(key: Callable[[Any], str], kind: inspect.StructType) -> bool:
    """Return whether a key is made of a sensitive field: it changes, or fails, with other values of these.

    Each other field is tried empty as well, and so are all together: a key may be made of the first that is not.
    """
    try:
        example = msgspec.json.encode(example_of(kind.cls))
        decode = partial(msgspec.json.decode, example, type=kind.cls)
        key(decode())
        others = [one.name for one in kind.fields if _mask_of(one.type, masked) is None]
        cases = [[], others, *([one] for one in others)]
        return any(len({_key_of(key, decode(), kind, empty, filling) for filling in FILLINGS}) > 1 for empty in cases)
    except Exception:  # noqa: BLE001 - the key may be any function; what is not known counts as sensitive
        return True


def _key_of(
    key: Callable[[Any], str],
    value: msgspec.Struct,
    kind: inspect.StructType,
    empty: Sequence[str],
    filling: str | None,
) -> str | None:
    """Return the key of a value with some fields empty and a filling in its sensitive ones, None where it has none."""
    for name in empty:
        given = getattr(value, name)
        msgspec.structs.force_setattr(value, name, type(given)() if isinstance(given, SIMPLE) else None)
    if filling is not None:
        _overwrite(value, kind, filling)
    try:
        return key(value)
    except Exception:  # noqa: BLE001 - the key may be any function
        return None


def _overwrite(value: msgspec.Struct, kind: inspect.StructType, filling: str) -> None:
    """Replace what is sensitive in a Struct, also where its type does not allow that."""
    for one in kind.fields:
        if _mask_of(one.type, masked) is None:
            continue
        inner = getattr(value, one.name)
        if isinstance(one.type, inspect.StructType) and isinstance(inner, msgspec.Struct):
            _overwrite(inner, one.type, filling)
        else:
            msgspec.structs.force_setattr(value, one.name, filling)
