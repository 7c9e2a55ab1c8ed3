"""Whether two versions of a record can live side by side: compares their JSON schemas, as msgspec writes them.

A reader ignores fields that it does not know, as the `decode` of a stream does; a writer writes no others than its
own. What cannot be judged counts as unreadable.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

# jsonschema would build 38 grammars of it for two seconds, for formats (`iri`) that no schema of msgspec has
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # `None` means that it cannot be imported
from jsonschema import Draft202012Validator  # noqa: E402

Schema = Mapping[str, Any]

LOWER_BOUNDS = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
UPPER_BOUNDS = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
THE_SAME = {"pattern", "format", "multipleOf", "contentEncoding", "contentMediaType", "propertyNames"}
"""What a reader may ask for only where the writer keeps to the very same."""
STRUCTURE = {"type", "enum", "const", "anyOf", "properties", "required", "additionalProperties", "items", "prefixItems"}
WITHOUT_WEIGHT = {
    "$schema",
    "$defs",
    "$ref",
    "title",
    "description",
    "examples",
    "default",
    "deprecated",
    "x-sensitive",
}
KNOWN = LOWER_BOUNDS | UPPER_BOUNDS | THE_SAME | STRUCTURE | WITHOUT_WEIGHT
TYPES = {"string", "integer", "number", "boolean", "null", "object", "array"}


def incompatibilities(old: Schema, new: Schema) -> list[str]:
    """Return what keeps two versions of a record from living side by side; nothing when they can.

    Each line names the field, and which of the two cannot read what the other wrote.
    """
    return [
        *(f"{wrong}: the new version cannot read what the old one wrote" for wrong in unreadable(old, new)),
        *(f"{wrong}: the old version cannot read what the new one writes" for wrong in unreadable(new, old)),
    ]


def unreadable(written: Schema, read: Schema) -> list[str]:
    """Return why what follows the schema `written` may be refused by a reader with the schema `read`."""
    return list(_Comparison(written, read).of(written, read, "$"))


class _Comparison:
    """Compares what a writer may write with what a reader takes, place by place."""

    def __init__(self, written: Schema, read: Schema) -> None:
        self._written = written
        self._read = read
        self._begun: set[tuple[str, str]] = set()

    def of(self, written: Schema, read: Schema, place: str) -> Iterator[str]:
        """Yield why what follows `written` may be refused by `read`."""
        if "$ref" in written and "$ref" in read:
            pair = written["$ref"], read["$ref"]
            if pair in self._begun:
                return  # a type that has itself in it
            self._begun.add(pair)
        written, read = _resolved(written, self._written), _resolved(read, self._read)
        if unknown := (written.keys() | read.keys()) - KNOWN:
            yield f"{place} cannot be judged, as it has {', '.join(sorted(unknown))}"
        elif "anyOf" in written:
            for choice in written["anyOf"]:
                yield from self.of(choice, read, place)
        elif "anyOf" in read:
            yield from self._any_of(written, read["anyOf"], place)
        elif "enum" in written or "const" in written:
            yield from self._values(written.get("enum", [written.get("const")]), read, place)
        elif "enum" in read or "const" in read:
            yield f"{place} may be any {_types_in_words(written)}, and only some are taken"
        elif wrong := _types_of(written) - _types_of(read):
            yield f"{place} may be {' or '.join(sorted(wrong))}, expected {_types_in_words(read)}"
        else:
            yield from _bounds(written, read, place)
            yield from self._items(written, read, place)
            yield from self._fields(written, read, place)

    def _any_of(self, written: Schema, choices: list[Schema], place: str) -> Iterator[str]:
        refusals = [list(self.of(written, choice, place)) for choice in choices]
        if all(refusals):
            yield min(refusals, key=len)[0]

    def _values(self, values: list[Any], read: Schema, place: str) -> Iterator[str]:
        reader = Draft202012Validator({**read, "$defs": self._read.get("$defs", {})})
        for value in values:
            if not reader.is_valid(value):
                yield f"{place} may be {json.dumps(value)}, which is not taken"

    def _items(self, written: Schema, read: Schema, place: str) -> Iterator[str]:
        own, taken = written.get("prefixItems", []), read.get("prefixItems", [])
        if len(own) != len(taken):
            yield f"{place} has {len(own)} places of their own, expected {len(taken)}"
        for number, (one, other) in enumerate(zip(own, taken, strict=False)):
            yield from self.of(one, other, f"{place}[{number}]")
        if (rest := written.get("items", {})) is not False and "items" in read:
            yield from self.of(rest, read["items"] or {"enum": []}, f"{place}[]")

    def _fields(self, written: Schema, read: Schema, place: str) -> Iterator[str]:
        own, taken = written.get("properties", {}), read.get("properties", {})
        for name in read.get("required", ()):
            if name not in written.get("required", ()):
                yield f"{place}.{name} is required, and {'may be left out' if name in own else 'not written'}"
        for name in (name for name in own if name in taken):
            yield from self.of(own[name], taken[name], f"{place}.{name}")
        rest = read.get("additionalProperties", True)
        for name in (name for name in own if name not in taken):
            if rest is False:
                yield f"{place}.{name} is written, and refused as unknown"
            elif rest is not True:
                yield from self.of(own[name], rest, f"{place}.{name}")
        if isinstance(others := written.get("additionalProperties"), Mapping):
            for name in (name for name in taken if name not in own):
                yield from self.of(others, taken[name], f"{place}.{name}")
            if isinstance(rest, Mapping):
                yield from self.of(others, rest, f"{place}.*")


def _bounds(written: Schema, read: Schema, place: str) -> Iterator[str]:
    for name, bound in read.items():
        own = written.get(name)
        if (
            (name in LOWER_BOUNDS and (own is None or own < bound))
            or (name in UPPER_BOUNDS and (own is None or own > bound))
            or (name in THE_SAME and own != bound)
        ):
            yield f"{place} is written with {name} {'not given' if own is None else own}, and read with {bound}"


def _resolved(schema: Schema, root: Schema) -> Schema:
    while reference := schema.get("$ref"):
        schema = root["$defs"][reference.removeprefix("#/$defs/")]
    return schema


def _types_of(schema: Schema) -> set[str]:
    """Return the types of JSON that a schema allows; a reader that takes numbers takes integers."""
    given = schema.get("type", TYPES)
    types = {given} if isinstance(given, str) else set(given)
    return types | {"integer"} if "number" in types else types


def _types_in_words(schema: Schema) -> str:
    given = schema.get("type", "value")
    return str(given) if isinstance(given, str) else " or ".join(given)
