"""Build an example value of a type from the `examples` of its fields."""

from collections.abc import Mapping
from typing import Any

import msgspec

PLACEHOLDERS: Mapping[str, Any] = {
    "string": "text",
    "integer": 1,
    "number": 1.0,
    "boolean": True,
    "array": [],
    "object": {},
}
"""Values for fields without examples, by JSON type."""
FORMATS: Mapping[str, str] = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "decimal": "1.50",
    "uuid": "0b0d5c4e-6b3f-4a55-9a43-0c8f5d1c7f11",
}
"""Values for strings without examples, by format. A string with a pattern needs an example of its own.

msgspec gives the formats `date-time` and `time` only to fields with `Meta(tz=True)`; others need an example too.
"""


def example_of(record_type: Any) -> Any:  # noqa: ANN401 - a type or a union of types; what JSON knows
    """Return an example as JSON types: each required field has the first of its examples, or a placeholder.

    An optional field is included only if it has examples.
    """
    (schema,), parts = msgspec.json.schema_components([record_type], ref_template="{name}")
    return _example(schema, parts)


def _example(schema: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:  # noqa: ANN401 - what JSON knows
    given = schema.get("examples") or schema.get("enum")
    if given:
        return given[0]
    if "$ref" in schema:
        return _example(parts[schema["$ref"]], parts)
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], parts)
    if "prefixItems" in schema:
        return [_example(one, parts) for one in schema["prefixItems"]]
    if "properties" not in schema:
        return FORMATS.get(schema.get("format", ""), PLACEHOLDERS.get(schema.get("type", "")))
    fields = schema["properties"].items()
    wanted = {name for name, one in fields if name in schema.get("required", ()) or "examples" in one}
    return {name: _example(one, parts) for name, one in fields if name in wanted}
