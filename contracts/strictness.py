"""Derive the types that the producer decodes: the same Structs, but what a decoder would drop or change is refused."""

from collections.abc import Mapping
from datetime import datetime, time, timedelta
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, is_typeddict

import msgspec
from msgspec import NODEFAULT, Meta, UnsetType
from msgspec.inspect import CustomType, type_info
from msgspec.structs import fields

TIMES = (datetime, time, timedelta)
"""Types that keep six digits of a fraction: msgspec rounds the others, 23:59:59.9999999 to midnight."""
SETS = (set, frozenset)
"""Types that keep one of several equal elements."""
EXACT_TIME = Annotated[str, Meta(pattern=r"^[^.,]*([.,][0-9]{0,6}0*([^0-9]|$)|$)")]


def strict(record_type: Any) -> Any:  # noqa: ANN401 - any type that JSON can be decoded to
    """Return a type whose Structs all forbid unknown fields. Decoded values are instances of the given Structs.

    Raises `TypeError` for types that cannot be strict: a generic Struct, one that refers to itself, or a dataclass,
    `TypedDict` or `NamedTuple`.
    """
    return _Copies(spelled=False).of(record_type)


class Spelled(NamedTuple):
    """A type whose times and names of objects are text, and whether it has such times, and such names or sets."""

    type: Any
    times: bool
    names: bool


def spelled(record_type: Any) -> Spelled:  # noqa: ANN401 - as above
    """Return a type with times and the names of objects as text, times only if they are exact, and sets as lists.

    Raises as `strict`.
    """
    copies = _Copies(spelled=True)
    return Spelled(copies.of(record_type), copies.times, copies.names)


def find_lost(value: Any, text: Any) -> str | None:  # noqa: ANN401 - any value
    """Return the JSON path of an object or set with equal names or elements, of which `value` has one; else None.

    `text` is the same value, decoded as the type from `spelled`.
    """
    waiting = [("$", value, text)]
    while waiting:
        path, one, other = waiting.pop()
        if isinstance(one, msgspec.Struct):
            names = zip(one.__struct_encode_fields__, one.__struct_fields__, strict=True)
            waiting += [(f"{path}.{shown}", getattr(one, name), getattr(other, name)) for shown, name in names]
        elif isinstance(one, Mapping):
            if len(one) != len(other):
                return path
            waiting += [(f"{path}[...]", *pair) for pair in zip(one.values(), other.values(), strict=True)]
        elif isinstance(one, SETS):
            if len(one) != len(other):
                return path
        elif isinstance(one, list | tuple):
            waiting += [(f"{path}[{index}]", *pair) for index, pair in enumerate(zip(one, other, strict=True))]
    return None


class _Copies:
    """Copies of types, one per Struct. `times` and `names` are whether such types became text."""

    def __init__(self, *, spelled: bool) -> None:
        self.times = self.names = False
        self._spelled = spelled
        self._made: dict[type, type] = {}

    def of(self, kind: Any, within: tuple[type, ...] = ()) -> Any:  # noqa: ANN401, PLR0911 - any type, each kind its way
        origin, arguments = get_origin(kind), get_args(kind)
        if self._spelled and (arguments[0] if origin is Annotated else kind) in TIMES:
            self.times = True
            return EXACT_TIME
        if origin is Annotated:
            return Annotated[(self.of(arguments[0], within), *arguments[1:])]
        if origin in {Union, UnionType}:
            return Union[tuple(self.of(argument, within) for argument in arguments)]  # noqa: UP007 - as many as there are
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self._struct(kind, within)
        if kind in {Any, None, UnsetType} or origin is Literal:
            return kind
        if self._spelled and (origin or kind) in SETS:
            self.names = True
            return list[tuple(self.of(argument, within) for argument in arguments) or Any]  # type: ignore[misc]  # a type at run time
        _require_known(kind, origin or kind)
        if not origin or not arguments:
            return kind
        if issubclass(origin, Mapping):
            arguments = (self._name(arguments[0]), *arguments[1:])
        return origin[tuple(a if a is Ellipsis else self.of(a, within) for a in arguments)]

    def _name(self, kind: Any) -> Any:  # noqa: ANN401 - a type
        """Return the type of an object's names; text, if types become text."""
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        self.names |= plain is not str
        return str if self._spelled and plain not in TIMES else kind

    def _struct(self, kind: type[msgspec.Struct], within: tuple[type, ...]) -> type[msgspec.Struct]:
        """Return a Struct with the same name, fields, order, defaults and tag; a subclass unless types become text."""
        if kind in within:
            raise TypeError(f"{kind.__name__} refers to itself: unknown fields cannot be refused at every depth")
        if kind in self._made:
            return self._made[kind]
        config = kind.__struct_config__
        copied = []
        for one in fields(kind):
            default: dict[str, Any] = {} if one.default is NODEFAULT else {"default": one.default}
            if one.default_factory is not NODEFAULT:
                default = {"default_factory": one.default_factory}
            copy = self.of(one.type, (*within, kind))
            try:
                msgspec.json.Decoder(one.type)
            except (TypeError, ValueError) as error:
                raise TypeError(f"{kind.__name__}.{one.name}: {error}") from None
            copied.append((one.name, copy, msgspec.field(name=one.encode_name, **default)))
        self._made[kind] = made = msgspec.defstruct(
            kind.__name__,
            copied,
            bases=() if self._spelled else (kind,),
            module=kind.__module__,
            kw_only=True,
            forbid_unknown_fields=True,
            tag=config.tag,
            tag_field=config.tag_field,
            array_like=config.array_like,
        )
        return made


def _require_known(kind: Any, plain: Any) -> None:  # noqa: ANN401 - any type, with and without its arguments
    """Raise `TypeError` for a type that JSON cannot be decoded to, or whose fields cannot be refused."""
    name = getattr(kind, "__name__", kind)
    if not isinstance(plain, type) or _has_fields(plain):
        raise TypeError(f"{name}: expected a plain msgspec.Struct, which can refuse unknown fields")
    if isinstance(type_info(plain), CustomType):
        raise TypeError(f"{name}: JSON cannot be decoded to it; use list, dict or another type that msgspec knows")


def _has_fields(kind: type) -> bool:
    """Return whether a type has named fields, of any library."""
    others = ("__dataclass_fields__", "__attrs_attrs__", "_fields")
    return issubclass(kind, msgspec.Struct) or is_typeddict(kind) or any(hasattr(kind, name) for name in others)
