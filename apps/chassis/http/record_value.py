"""How the value of a record stands in an OpenAPI document: as the types of the streams that a service serves."""

from collections.abc import Iterable
from functools import reduce
from operator import or_
from typing import Annotated, Any, get_args

from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition

from contracts.stream import Stream

RecordValue = Annotated[Any, "the value of a record"]
"""The type of a record's value, for a field of an answer."""


class RecordValueSchema(OpenAPISchemaPlugin):
    """Documents `RecordValue` as the types of some streams."""

    def __init__(self, streams: Iterable[Stream[Any]]) -> None:
        self._types: Any = reduce(or_, (stream.record_type for stream in streams))

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        """Return whether a field is a `RecordValue`."""
        return get_args(RecordValue)[1] in field_definition.metadata

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Any:  # noqa: ANN401, ARG002 - Litestar's signature
        """Return the schema of the streams' types."""
        return schema_creator.for_field_definition(FieldDefinition.from_annotation(self._types))
