"""Compare the settings of a topic with those that the guarantees need, and say which guarantee is lost."""

import asyncio
import logging
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, TopicAuthorizationFailedError, for_code

from apps.chassis.internals.client_parts import ask_any_broker
from apps.chassis.kafka.admin import Admin
from apps.chassis.kafka.clients import ClientOptions, with_own_journal
from apps.chassis.kafka.topic_metadata import AskForTopics, Permission

log = logging.getLogger(__name__)

DEFAULT_MAX_MESSAGE_BYTES = 1_048_588
UNLIMITED = "-1"
DEFAULT_SEGMENT_MS = 7 * 24 * 60 * 60 * 1_000
"""Milliseconds after which Kafka closes a segment by default."""
SHORT_RETENTION_MS = 24 * 60 * 60 * 1_000
"""Retention in milliseconds that counts as too short: a consumer that is stopped overnight would lose records."""
NEW_TOPIC_TIMEOUT_S = 5.0
"""Seconds until a broker knows a new topic."""
DEAD_LETTER_HEADERS_BYTES = 16 * 1024
"""Bytes by which a dead letter may be larger than its record, for its headers."""

Settings = Mapping[str, str]
"""The configuration of a topic, as Kafka describes it."""


class Unusable(Exception):
    """Kafka, or a topic, cannot be used now; the message says why, in one line."""


class Topic(msgspec.Struct, frozen=True):
    """A topic as a service wants it; `max_message_bytes` is its largest batch.

    `permission` is what the service needs besides Describe. `kind` is what messages call the topic.

    With `kept` Kafka deletes no records, or only after `retention_ms`; with `compacted` it keeps the last record of
    each key; otherwise the cluster's retention holds. `loss` is the consequence when Kafka deletes records. The largest
    record of the topic `source` must fit into this one, with the headers of a dead letter. The largest batch must not
    be smaller than `min_bytes`. `needed_by` names the calls that alone need the topic, if the service works without it.
    """

    name: str
    partitions: int
    replication: int
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    kept: bool = False
    retention_ms: int | None = None
    compacted: bool = False
    permission: Permission | None = None
    kind: str = "topic"
    loss: str = "records are deleted, consumed or not"
    source: str | None = None
    min_bytes: int = 0
    needed_by: str = ""

    @property
    def denial(self) -> str:
        """The message when `permission` is missing."""
        action = {"read": "read", "write": "write to", None: "see"}[self.permission]
        return f"no permission to {action} {self.kind} {self.name}"

    @property
    def min_insync_replicas(self) -> int:
        """The number of replicas that must have a record before it is acknowledged: all but one, and at least one."""
        return max(1, self.replication - 1)

    @property
    def configs(self) -> dict[str, str]:
        """The configuration of a new topic: everything that the guarantees need, independent of the broker's defaults.

        Brokers set the timestamps of topics that are kept. Otherwise they would refuse records of a client whose clock
        is wrong. With a retention, segments are closed in time: Kafka deletes only whole ones.
        """
        kept = {
            "retention.ms": self.wanted_retention_ms,
            "retention.bytes": UNLIMITED,
            "message.timestamp.type": "LogAppendTime",
        }
        if self.retention_ms is not None:
            kept["segment.ms"] = str(min(self.retention_ms, DEFAULT_SEGMENT_MS))
        return {
            "cleanup.policy": "compact" if self.compacted else "delete",
            "min.insync.replicas": str(self.min_insync_replicas),
            "max.message.bytes": str(self.max_message_bytes),
            "unclean.leader.election.enable": "false",
            **(kept if self.kept else {}),
        }

    @property
    def wanted_retention_ms(self) -> str:
        """The `retention.ms` of a topic that is kept."""
        return UNLIMITED if self.retention_ms is None else str(self.retention_ms)


class Found(NamedTuple):
    """An existing topic: its partitions, the replicas of each, and its configuration."""

    partitions: int
    replication: int
    settings: Settings


class Difference(NamedTuple):
    """A difference between a topic and its wanted settings; `lost` is the consequence for the guarantees, or None.

    `deletes` is whether Kafka then deletes records that must be kept.
    """

    setting: str
    have: object
    want: object
    lost: str | None = None
    deletes: bool = False

    def __str__(self) -> str:
        return f"{self.setting} {self.have}, wanted {self.want}" + (f": {self.lost}" if self.lost else "")


def differences(topic: Topic, found: Found, source_max_bytes: int = 0) -> list[Difference]:
    """Return the differences between a topic and its wanted settings.

    `source_max_bytes` is the largest batch of the topic `source`.
    """
    return [*_of_numbers(topic, found, source_max_bytes), *_of_cleanup(topic, found.settings)]


def _of_numbers(topic: Topic, found: Found, source_max_bytes: int) -> Iterable[Difference]:
    settings, replication, in_sync_wanted = found.settings, found.replication, topic.min_insync_replicas
    in_sync = int(settings.get("min.insync.replicas", "1"))
    unclean = settings.get("unclean.leader.election.enable") == "true" and replication > 1
    max_bytes = int(settings.get("max.message.bytes", DEFAULT_MAX_MESSAGE_BYTES))
    needed = source_max_bytes + DEAD_LETTER_HEADERS_BYTES if topic.source else topic.min_bytes
    clock = settings.get("message.timestamp.type", "LogAppendTime") if topic.kept else "LogAppendTime"
    fewer = "fewer brokers than wanted keep each record" if replication < topic.replication else None
    too_few = "records are acknowledged that too few brokers have" if in_sync < in_sync_wanted else None
    lost_leader = "a broker that lacks acknowledged records may become the leader"
    too_small = None if max_bytes >= needed else "its records may not fit"
    if too_small and topic.source:
        too_small = f"the largest records of {topic.source} may not fit, and block their partition"
    wrong_clock = "records of an instance whose clock is wrong may be refused"
    compared = (
        Difference("partitions", found.partitions, topic.partitions),
        Difference("replication", replication, topic.replication, fewer),
        Difference("min.insync.replicas", in_sync, in_sync_wanted, too_few),
        Difference("unclean.leader.election.enable", "true" if unclean else "false", "false", lost_leader),
        Difference("max.message.bytes", max_bytes, max(topic.max_message_bytes, needed), too_small),
        Difference("message.timestamp.type", clock, "LogAppendTime", wrong_clock),
    )
    return (one for one in compared if one.have != one.want)


def _of_cleanup(topic: Topic, settings: Settings) -> Iterator[Difference]:
    policy = settings.get("cleanup.policy", "delete")
    policies = {one.strip() for one in policy.split(",")} - {""}
    wanted = "compact" if topic.compacted else "delete"
    if "compact" in policies and not topic.compacted:
        lost = "all but the last record of each key are deleted, and records without a key are refused"
        yield Difference("cleanup.policy", policy, wanted, lost, deletes=True)
    elif policies - {wanted} or (topic.compacted and not policies):
        yield Difference("cleanup.policy", policy or "none", wanted)
    if "delete" in policies:
        yield from _of_retention(topic, settings)


def _of_retention(topic: Topic, settings: Settings) -> Iterator[Difference]:
    time, size = settings.get("retention.ms", UNLIMITED), settings.get("retention.bytes", UNLIMITED)
    least = math.inf if topic.kept else SHORT_RETENTION_MS
    least = least if topic.retention_ms is None else topic.retention_ms
    kept = math.inf if time == UNLIMITED else int(time)
    if kept < least:
        wanted = topic.wanted_retention_ms if topic.kept else f"at least {SHORT_RETENTION_MS}"
        yield Difference("retention.ms", time, wanted, f"after that time {topic.loss}", deletes=True)
    elif topic.retention_ms is not None and kept > topic.retention_ms:
        lost = "records are kept longer than the settings say"
        yield Difference("retention.ms", time, topic.wanted_retention_ms, lost)
    if size != UNLIMITED:
        lost = f"beyond that many bytes per partition {topic.loss}"
        yield Difference("retention.bytes", size, UNLIMITED, lost, deletes=True)


async def config_of(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    """Return the configuration of a topic. Raises `Unusable` without the permission, or when it cannot be read."""
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    ((code, _, _, _, entries),) = [resource for answer in answers for resource in answer.resources]
    if code == TopicAuthorizationFailedError.errno:
        raise Unusable(f"no permission to read the configuration of topic {topic} (DescribeConfigs)")
    if code:
        raise Unusable(f"topic {topic}: its configuration cannot be read: {for_code(code).__name__}")
    return {name: value for name, value, *_ in entries}


async def create(options: ClientOptions, topics: Collection[Topic]) -> dict[str, str | None]:
    """Create topics; return why Kafka refused that, or None, by topic. Raises `KafkaError` or `OSError`.

    A quota on the creation of topics has Kafka answer nothing more on the connection for seconds or minutes. Therefore
    one request creates all, by a client of its own.
    """
    if not topics:
        return {}
    new = [NewTopic(one.name, one.partitions, one.replication, topic_configs=one.configs) for one in topics]
    admin = Admin(with_own_journal(options))
    try:
        answer = await (await admin.client()).create_topics(new)
    finally:
        await admin.close()
    errors = {name: error for name, *error in answer.topic_errors}
    return {topic.name: _why_not_created(topic, *errors[topic.name]) for topic in topics}


def _why_not_created(topic: Topic, code: int, message: str | None = None) -> str | None:
    error = for_code(code)
    if error is TopicAuthorizationFailedError:
        return f"{topic.kind} {topic.name} does not exist, and there is no permission to create it"
    if code and error is not TopicAlreadyExistsError:  # another instance may have created it
        return f"topic {topic.name} cannot be created: {error.__name__} {message or ''}"
    if not code:
        log.info("created topic %s: %d partitions, replication %d", topic.name, topic.partitions, topic.replication)
    return None


async def describe_topics(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> list[dict[str, Any]]:
    """Return a broker's description of topics, with the authorized `operations` on each."""
    return list((await ask_any_broker(admin, AskForTopics(topics))).to_object()["topics"])


async def describe_new_topic(admin: AIOKafkaAdminClient, topic: Topic) -> dict[str, Any]:
    """Return a broker's description of a topic; wait up to 5 s until the broker knows a new topic.

    Raises `Unusable` after that time, or when the client may not describe the topic.
    """
    deadline = time.monotonic() + NEW_TOPIC_TIMEOUT_S
    while True:
        (described,) = await describe_topics(admin, [topic.name])
        if not described["error_code"]:
            return described
        if described["error_code"] == TopicAuthorizationFailedError.errno:
            raise Unusable(topic.denial)
        if time.monotonic() > deadline:
            raise Unusable(f"topic {topic.name}: {for_code(described['error_code']).__name__}")
        await asyncio.sleep(0.1)
