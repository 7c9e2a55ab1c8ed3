"""What a service writes to Kafka and reads from it, as an AsyncAPI 3.0.0 document.

Derived from the contracts and the settings. FastStream's own document is of no use here: it cannot describe a Struct,
takes a batch for one record, and tells the addresses of the brokers.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import msgspec

from apps.chassis.http.health import VERSION
from apps.chassis.kafka.topic_settings import Topic
from apps.chassis.kafka.topics import dead_letter_topic, record_topic
from apps.chassis.settings import Settings
from contracts.dead_letter import INT64, SAID, SAID_OF_SENT_BACK, SAID_TARGET, Said
from contracts.stream import Stream


class Operation(msgspec.Struct):
    """What a service does with a channel of a stream; `group` is the consumer group that it receives as a member of."""

    action: Literal["send", "receive"]
    stream: Stream[Any]
    summary: str
    group: str | None = None
    dead_letters: bool = False


def asyncapi_document(
    title: str, description: str, settings: Settings, client_id: str, operations: Sequence[Operation]
) -> dict[str, Any]:
    """Return the document of a service, as what JSON knows: all topics of the streams of its `operations`."""
    streams = list(dict.fromkeys(one.stream for one in operations))
    _, schemas = msgspec.json.schema_components(
        [kind for stream in streams for kind in _types_of(stream)], ref_template="#/components/schemas/{name}"
    )
    protocol = "kafka-secure" if settings.uses_tls else "kafka"
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": VERSION, "description": description},
        "defaultContentType": "application/json",
        "servers": {"kafka": {"host": "kafka", "protocol": protocol, "description": "KAFKA_BOOTSTRAP_SERVERS"}},
        "channels": {name: channel for stream in streams for name, channel in _channels(stream, settings).items()},
        "operations": {f"{one.action}-{_channel_name(one)}": _operation(one, client_id) for one in operations},
        "components": {
            "schemas": schemas,
            "messages": {
                **{kind.__name__: _message(stream, kind) for stream in streams for kind in _types_of(stream)},
                "DeadLetter": _dead_letter(),
            },
        },
    }


def _types_of(stream: Stream[Any]) -> Sequence[type]:
    return get_args(stream.record_type) or (stream.record_type,)


def _channels(stream: Stream[Any], settings: Settings) -> dict[str, Any]:
    of_stream, kinds = settings.of(stream), [kind.__name__ for kind in _types_of(stream)]
    dead = "Records that could not be consumed, and what became of them."
    return {
        stream.name: _channel(record_topic(of_stream), "Records of one key stay in order.", kinds),
        f"{stream.name}-dead-letters": _channel(dead_letter_topic(of_stream), dead, ["DeadLetter"]),
    }


def _channel_name(operation: Operation) -> str:
    return f"{operation.stream.name}-dead-letters" if operation.dead_letters else operation.stream.name


def _channel(topic: Topic, description: str, messages: Sequence[str]) -> dict[str, Any]:
    return {
        "address": topic.name,
        "title": topic.name,
        "description": description,
        "servers": [{"$ref": "#/servers/kafka"}],
        "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in messages},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "replicas": topic.replication,
                "topicConfiguration": _configuration(topic),
                "bindingVersion": "0.5.0",
            }
        },
    }


def _configuration(topic: Topic) -> dict[str, Any]:
    """Return the configuration with the types of the AsyncAPI binding: a list of policies, numbers, booleans."""
    configuration: dict[str, Any] = {}
    for name, value in topic.configs.items():
        if name == "cleanup.policy":
            configuration[name] = value.split(",")
        elif value in {"true", "false"}:
            configuration[name] = value == "true"
        else:
            configuration[name] = int(value) if value.lstrip("-").isdigit() else value
    return configuration


def _operation(operation: Operation, client_id: str) -> dict[str, Any]:
    group = {"groupId": {"type": "string", "enum": [operation.group]}} if operation.group else {}
    client = {"clientId": {"type": "string", "enum": [client_id]}}
    return {
        "action": operation.action,
        "channel": {"$ref": f"#/channels/{_channel_name(operation)}"},
        "summary": operation.summary,
        "bindings": {"kafka": {**group, **client, "bindingVersion": "0.5.0"}},
    }


def _message(stream: Stream[Any], kind: type) -> dict[str, Any]:
    return {
        "name": kind.__name__,
        "title": f"A record of {stream.name}",
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
        "headers": _headers((*SAID_OF_SENT_BACK, SAID_TARGET), []),
        "bindings": _key({"type": "string", "description": "The key in UTF-8."}),
    }


def _dead_letter() -> dict[str, Any]:
    as_it_was = "that of the record, byte for byte; null where it had none."
    return {
        "name": "DeadLetter",
        "title": "A record that could not be consumed",
        "contentType": "application/octet-stream",
        "payload": {"type": ["string", "null"], "format": "binary", "description": f"The value: {as_it_was}"},
        "headers": _headers(SAID, [said.header for said in SAID]),
        "bindings": _key({"type": ["string", "null"], "format": "binary", "description": f"The key: {as_it_was}"}),
    }


def _headers(those: Sequence[Said], required: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": "Behind the record's own headers." if required else "Only of a record that was sent back.",
        "properties": {said.header: _header(said) for said in those},
        **({"required": list(required)} if required else {}),
        "additionalProperties": True,
    }


def _header(said: Said) -> dict[str, Any]:
    if said.packing is None:
        return {"type": "string", "description": f"{said.meaning} UTF-8."}
    return {
        "type": "integer",
        "format": "int64" if said.packing is INT64 else "int32",
        "description": f"{said.meaning} Binary: {said.packing.size} bytes, big-endian.",
    }


def _key(schema: dict[str, Any]) -> dict[str, Any]:
    return {"kafka": {"key": schema, "bindingVersion": "0.5.0"}}
