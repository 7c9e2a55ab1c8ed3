"""Derive the type that the producer decodes: the same Structs, but unknown fields are refused at any depth."""

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, is_typeddict

import msgspec
from msgspec import NODEFAULT
from msgspec.structs import fields


def strict(record_type: Any) -> Any:  # noqa: ANN401 - any type that JSON can be decoded to
    """Return a type whose Structs all forbid unknown fields. Decoded values are instances of the given Structs.

    Raises `TypeError` for types that cannot be strict: a generic Struct, one that refers to itself, or a dataclass,
    `TypedDict` or `NamedTuple`.
    """
    return _strict(record_type, {}, ())


def _strict(kind: Any, made: dict[type, type], within: tuple[type, ...]) -> Any:  # noqa: ANN401 - see `strict`
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return Annotated[(_strict(arguments[0], made, within), *arguments[1:])]
    if origin in {Union, UnionType}:
        return Union[tuple(_strict(argument, made, within) for argument in arguments)]  # noqa: UP007 - as many as there are
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if kind in within:
            raise TypeError(f"{kind.__name__} refers to itself: unknown fields cannot be refused at every depth")
        if kind not in made:
            made[kind] = _strict_struct(kind, made, (*within, kind))
        return made[kind]
    if kind in {Any, None} or origin is Literal:
        return kind
    if not isinstance(origin or kind, type) or _has_fields(origin or kind):
        name = getattr(kind, "__name__", kind)
        raise TypeError(f"{name}: expected a plain msgspec.Struct, which can refuse unknown fields")
    if not origin:
        return kind
    return origin[tuple(a if a is Ellipsis else _strict(a, made, within) for a in arguments)]


def _has_fields(kind: type) -> bool:
    """Return whether a type has named fields, of any library."""
    others = ("__dataclass_fields__", "__attrs_attrs__", "_fields")
    return issubclass(kind, msgspec.Struct) or is_typeddict(kind) or any(hasattr(kind, name) for name in others)


def _strict_struct(
    kind: type[msgspec.Struct], made: dict[type, type], within: tuple[type, ...]
) -> type[msgspec.Struct]:
    """Return a subclass with the same name, fields, order, defaults and tag: documents show the name."""
    config = kind.__struct_config__
    strict_fields = []
    for one in fields(kind):
        default: dict[str, Any] = {} if one.default is NODEFAULT else {"default": one.default}
        if one.default_factory is not NODEFAULT:
            default = {"default_factory": one.default_factory}
        strict_fields.append(
            (one.name, _strict(one.type, made, within), msgspec.field(name=one.encode_name, **default))
        )
    return msgspec.defstruct(
        kind.__name__,
        strict_fields,
        bases=(kind,),
        module=kind.__module__,
        kw_only=True,
        forbid_unknown_fields=True,
        tag=config.tag,
        tag_field=config.tag_field,
    )
