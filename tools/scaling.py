"""Scales consumers on Kubernetes by the lag of each stream: `python -m tools.scaling`, after a change of `STREAMS`.

It writes a trigger for each stream into KEDA's ScaledObject, its login on a Kafka with passwords, and the settings that
the triggers read. Values that are set in `settings.env` stay, but for those of streams that are gone.
"""

import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from apps.chassis.settings import Settings
from contracts import STREAMS
from contracts.stream import Stream, variables_of

FOLDER = Path(__file__).parents[1] / "deploy"
SCALED_OBJECT = FOLDER / "kubernetes" / "consumer-scaling.yaml"
SETTINGS = FOLDER / "kubernetes" / "settings.env"
WITH_PASSWORDS = FOLDER / "kubernetes-sasl" / "kustomization.yaml"
PARTITIONS, REPLICATION = 6, 3
"""Of a topic of which nothing is set: the settings' default, and what a cluster needs."""

TRIGGER = """    - type: kafka
      useCachedMetrics: true
      metadata:
        bootstrapServersFromEnv: KAFKA_BOOTSTRAP_SERVERS
        topicFromEnv: {topic}
        consumerGroupFromEnv: {group_id}
        # The lag that an instance may have: records per second of your handler, times the acceptable delay in seconds.
        # With a handler of 1 ms per record, 10,000 records are 10 s.
        lagThreshold: "10000"
        offsetResetPolicy: earliest # as the consumer begins
        excludePersistentLag: "true"
        allowIdleConsumers: "false"
"""
LOGIN = """      - op: add
        path: /spec/triggers/{number}/authenticationRef
        value: {{name: people-over-kafka}}
      - op: add
        path: /spec/triggers/{number}/metadata/sasl
        value: scram_sha512
      - op: add
        path: /spec/triggers/{number}/metadata/tls
        value: enable
"""


def set_variables() -> dict[str, str]:
    """Return the variables that are set in the file of settings."""
    lines = SETTINGS.read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def settings_with(streams: Iterable[Stream[Any]]) -> str:
    """Return the file of settings, with those of the streams that were not set, and none of another stream."""
    streams = list(streams)
    given = set_variables()
    known = {*Settings.__struct_encode_fields__, *chain.from_iterable(map(variables_of, streams))}
    others = tuple(f"{variable}=" for variable in given if variable not in known)
    lines = SETTINGS.read_text("utf-8").splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith(others))
    for stream in streams:
        defaults = {
            "topic": stream.topic,
            "partitions": PARTITIONS,
            "replication": REPLICATION,
            "group_id": stream.group_id,
        }
        for field, value in defaults.items():
            variables = stream.variables(field)
            if not given.keys() & set(variables):
                text += f"{variables[0]}={value}\n"
    return text


def scaled_object_of(streams: Iterable[Stream[Any]], given: dict[str, str]) -> str:
    """Return the ScaledObject with a trigger for each stream, and as many instances as the most partitions."""
    head, _ = SCALED_OBJECT.read_text("utf-8").split("  triggers:\n")
    max_partitions = max(int(given[_variable(stream, "partitions", given)]) for stream in streams)
    head = re.sub(r"maxReplicaCount: \d+", f"maxReplicaCount: {max_partitions}", head)
    names = [{field: _variable(stream, field, given) for field in ("topic", "group_id")} for stream in streams]
    return head + "  triggers:\n" + "".join(TRIGGER.format(**one) for one in names)


def with_passwords_for(streams: Iterable[Stream[Any]]) -> str:
    """Return the kustomization for a Kafka with passwords, in which each trigger logs in."""
    target = "  - target: {kind: ScaledObject, name: consumer}\n    patch: |\n"
    head, _ = WITH_PASSWORDS.read_text("utf-8").split(target)
    return head + target + "".join(LOGIN.format(number=number) for number, _ in enumerate(streams))


def _variable(stream: Stream[Any], field: str, given: dict[str, str]) -> str:
    """Return which of a stream's variables is set: KEDA does not know the defaults of the settings."""
    return next(variable for variable in stream.variables(field) if variable in given)


def main() -> None:
    """Write the files."""
    _write(SETTINGS, settings_with(STREAMS))
    _write(SCALED_OBJECT, scaled_object_of(STREAMS, set_variables()))
    _write(WITH_PASSWORDS, with_passwords_for(STREAMS))


def _write(file: Path, text: str) -> None:
    if file.read_text("utf-8") != text:
        file.write_text(text, "utf-8")
        print(f"{file.relative_to(FOLDER.parent)} is written: commit it")


if __name__ == "__main__":
    main()
