"""What a service writes to Kafka and reads from it, as an AsyncAPI 3.0.0 document.

Derived from the contracts and the settings. FastStream's own document is not used: it cannot describe a Struct, takes a
batch for one record, and discloses the addresses of the brokers.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import msgspec

from apps.chassis.http.health import VERSION
from apps.chassis.kafka.topic_settings import Topic
from apps.chassis.kafka.topics import dead_letter_topic, record_topic
from apps.chassis.settings import Settings
from contracts.dead_letter import (
    INT64,
    LETTER_FIELDS,
    NAMES_ALWAYS,
    ORIGIN_FIELD,
    REDRIVE_FIELDS,
    TARGET_FIELD,
    HeaderField,
)
from contracts.stream import Stream

Document = dict[str, Any]
AS_IT_WAS = {"type": ["string", "null"], "format": "binary", "description": "Byte for byte that of the record."}


class Operation(msgspec.Struct):
    """What a service does with a channel of a stream; `group` is the consumer group that it receives as a member of."""

    action: Literal["send", "receive"]
    stream: Stream[Any]
    summary: str
    group: str | None = None
    dead_letters: bool = False

    @property
    def channel(self) -> str:
        """The name of its channel in the document."""
        return f"{self.stream.name}-dead-letters" if self.dead_letters else self.stream.name


def asyncapi_document(
    title: str, description: str, settings: Settings, client_id: str, operations: Sequence[Operation]
) -> Document:
    """Return the document of a service, as what JSON knows: all topics of the streams of its `operations`."""
    streams = list(dict.fromkeys(one.stream for one in operations))
    kinds = {kind: stream for stream in streams for kind in _types_of(stream)}
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    protocol = "kafka-secure" if settings.uses_tls else "kafka"
    channels: Document = {}
    for stream in streams:
        of, messages = settings.of(stream), [kind.__name__ for kind in _types_of(stream)]
        dead = "Records that could not be consumed, and why."
        channels[stream.name] = _channel(record_topic(of), "Records of one key stay in order.", messages)
        channels[f"{stream.name}-dead-letters"] = _channel(dead_letter_topic(of), dead, ["DeadLetter"])
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": VERSION, "description": description},
        "defaultContentType": "application/json",
        "servers": {"kafka": {"host": "kafka", "protocol": protocol, "description": "KAFKA_BOOTSTRAP_SERVERS"}},
        "channels": channels,
        "operations": {f"{one.action}-{one.channel}": _operation(one, client_id) for one in operations},
        "components": {
            "schemas": schemas,
            "messages": {
                **{kind.__name__: _record(stream, kind.__name__) for kind, stream in kinds.items()},
                "DeadLetter": _dead_letter(),
            },
        },
    }


def _types_of(stream: Stream[Any]) -> Sequence[type]:
    return get_args(stream.record_type) or (stream.record_type,)


def _kafka(**binding: object) -> Document:
    return {"kafka": {**binding, "bindingVersion": "0.5.0"}}


def _channel(topic: Topic, description: str, messages: Sequence[str]) -> Document:
    return {
        "address": topic.name,
        "title": topic.name,
        "description": description,
        "servers": [{"$ref": "#/servers/kafka"}],
        "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in messages},
        "bindings": _kafka(
            topic=topic.name,
            partitions=topic.partitions,
            replicas=topic.replication,
            topicConfiguration={name: _typed(name, value) for name, value in topic.configs.items()},
        ),
    }


def _typed(name: str, value: str) -> object:
    """Return a setting of a topic with its type in the AsyncAPI binding: a list of policies, a number, a boolean."""
    if name == "cleanup.policy":
        return value.split(",")
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError:
        return value


def _operation(operation: Operation, client_id: str) -> Document:
    ids = {"groupId": operation.group, "clientId": client_id}
    return {
        "action": operation.action,
        "channel": {"$ref": f"#/channels/{operation.channel}"},
        "summary": operation.summary,
        "bindings": _kafka(**{name: {"type": "string", "enum": [value]} for name, value in ids.items() if value}),
    }


def _record(stream: Stream[Any], name: str) -> Document:
    return {
        "name": name,
        "title": f"A record of {stream.name}",
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{name}"},
        "headers": _headers(
            (*REDRIVE_FIELDS, TARGET_FIELD, ORIGIN_FIELD), description="Only of a record that was sent back."
        ),
        "bindings": _kafka(key={"type": "string", "description": "The key in UTF-8."}),
    }


def _dead_letter() -> Document:
    return {
        "name": "DeadLetter",
        "title": "A record that could not be consumed",
        "contentType": "application/octet-stream",
        "payload": AS_IT_WAS,
        "headers": _headers(LETTER_FIELDS, description="Behind the record's own headers.", required=[*NAMES_ALWAYS]),
        "bindings": _kafka(key=AS_IT_WAS),
    }


def _headers(fields: Iterable[HeaderField], **more: object) -> Document:
    properties = {one.header: _header(one) for one in fields}
    return {"type": "object", "properties": properties, "additionalProperties": True, **more}


def _header(field: HeaderField) -> Document:
    if field.packing is None:
        return {"type": "string", "description": f"{field.meaning} UTF-8."}
    return {
        "type": "integer",
        "format": "int64" if field.packing is INT64 else "int32",
        "description": f"{field.meaning} Binary: {field.packing.size} bytes, big-endian.",
    }
