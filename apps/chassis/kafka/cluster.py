"""The topics that a service needs: create those that are missing, and say whether they can be used now."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import OffsetAndMetadata

from apps.chassis.internals.client_parts import ask_any_broker, client_of_admin
from apps.chassis.kafka import consumer_groups
from apps.chassis.kafka.admin import Admin
from apps.chassis.kafka.clients import ClientOptions
from apps.chassis.kafka.diagnosis import diagnosis
from apps.chassis.kafka.topic_metadata import AskForTopics, id_in, may
from apps.chassis.kafka.topic_settings import DEFAULT_MAX_MESSAGE_BYTES, Difference, Found, Topic, differences
from apps.chassis.observability.logs import one_line

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 2.0
"""Seconds without an answer after which the cluster counts as out of reach."""
BROKER_TIMEOUT_S = 1.0
"""Seconds for one broker to say that it is there."""
SETTLING_S = 0.5
"""Seconds until every broker knows the settings of a new topic."""
NEW_TOPIC_TIMEOUT_S = 5.0
"""Seconds for a broker to learn of a new topic."""
ANSWER_S = 3.0
"""Seconds after which `trouble` answers, even while its work is still running."""
FRESH_S = 1.0
"""Seconds for which an answer of `trouble` is kept."""
LOOK_EVERY_S = 5.0
"""Seconds between two looks at the cluster when nobody asks."""
SETTINGS_EVERY_S = 20.0
"""Seconds between two checks of the topic settings, which an administrator may change at any time."""

Committed = Callable[[], Awaitable[dict[int, int | None]]]
"""Returns the offset that a group has committed in each partition of a topic, None where it has none."""


class Unusable(Exception):
    """Kafka, or a topic, cannot be used now; the message says why, in one line."""


class Cluster:
    """Creates the topics of a service where they are missing, and says whether they can be used.

    By topic: `partitions` is how many it has, `configs` its configuration, and `reports` says where it differs from
    what the settings want; it is used as it is. `group` is the one that the service must be allowed to join.
    `unreadable_at` is when reading a topic, or with the group, was last seen not to be allowed (`time.monotonic`).
    """

    def __init__(self, options: ClientOptions, topics: Sequence[Topic], group: str | None = None) -> None:
        self.configs: dict[str, dict[str, str]] = {}
        self.partitions: dict[str, int] = {}
        self.reports: dict[str, list[str]] = {}
        self.unreadable_at = -math.inf
        self._risks: dict[str, list[str]] = {}
        self._options = options
        self._topics = {topic.name: topic for topic in topics}
        self._group = group
        self._admin = Admin(options)
        self._looking: asyncio.Task[str | None] | None = None
        self._looked_at = -math.inf

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connection at the end; it is opened by what needs it first."""
        try:
            yield
        finally:
            if self._looking is not None:
                self._looking.cancel()
                await asyncio.gather(self._looking, return_exceptions=True)
            await self._admin.close()

    async def ensure_topics(self) -> None:
        """Create the topics that are missing and look at the others.

        Raises `Unusable` when Kafka is out of reach, does not let the service in, refuses to create a topic, or when
        the service may not do what it must.
        """
        try:
            admin = await self._admin.client()
            for topic in self._topics.values():
                if (await _described(admin, [topic.name]))[0]["error_code"] == UnknownTopicOrPartitionError.errno:
                    await _create(admin, topic)
                if await self._differences(admin, topic):
                    await asyncio.sleep(SETTLING_S)  # one that was created just now has its settings a moment later
                self._report(topic, await self._differences(admin, topic))
            if denied := await self._denied(await _described(admin, list(self._topics))):
                raise Unusable(denied)
        except (KafkaError, OSError) as error:
            raise Unusable(await self._out_of_reach(error)) from None

    def max_message_bytes(self, topic: str) -> int:
        """Return the largest batch, in bytes, that the topic takes; Kafka's default as long as it was not seen."""
        return int(self.configs.get(topic, {}).get("max.message.bytes", DEFAULT_MAX_MESSAGE_BYTES))

    def may_be_compacted(self, topic: str) -> bool:
        """Return whether a topic may keep the last record of a key alone; true as long as its settings are unknown."""
        return "compact" in self.configs.get(topic, {}).get("cleanup.policy", "compact")

    def partition_count(self, topic: str) -> int:
        """Return how many partitions a topic has. Raises `KafkaConnectionError` as long as Kafka was not reached."""
        if topic not in self.partitions:
            raise KafkaConnectionError("Kafka was not reached yet")
        return self.partitions[topic]

    def at_risk(self, well: str) -> str:
        """Return the health detail of a working service: `well`, and the guarantees that do not hold."""
        return "; ".join([well, *(risk for risks in self._risks.values() for risk in risks)])

    async def deletions(self, topic: str) -> list[Difference]:
        """Check a topic again; return the settings that make Kafka delete records that must be kept.

        Raises `Unusable`, `KafkaError`, `OSError` or, after 2 s, `TimeoutError`.
        """
        async with asyncio.timeout(ASK_TIMEOUT_S):
            found = await self._admin.ask(lambda admin: self._differences(admin, self._topics[topic]))
        self._report(self._topics[topic], found)
        return [difference for difference in found if difference.deletes]

    async def topic_id(self, topic: str) -> UUID | None:
        """Return the id of a topic, None from a Kafka before 2.8. Raises the errors of `commits`."""
        async with asyncio.timeout(ASK_TIMEOUT_S):
            (described,) = await self._admin.ask(lambda admin: _described(admin, [topic]))
        if code := described["error_code"]:
            raise for_code(code)(topic)
        return id_in(described)

    async def commits(self, group: str, topic: str) -> dict[int, OffsetAndMetadata | None]:
        """Return what a group has committed in each partition, with its metadata; None where it has nothing.

        Raises `KafkaError`, `OSError` or, after 2 s, `TimeoutError`.
        """
        count = self.partitions.get(topic, 0)
        async with asyncio.timeout(ASK_TIMEOUT_S):
            return await self._admin.ask(lambda admin: consumer_groups.commits(admin, group, topic, count))

    async def members(self, group: str, topic: str) -> tuple[str, list[consumer_groups.Member]]:
        """Return the state of a group (`Stable`, `PreparingRebalance`, ...) and its members; raises as `commits`."""
        async with asyncio.timeout(ASK_TIMEOUT_S):
            return await self._admin.ask(lambda admin: consumer_groups.members(admin, group, topic))

    async def trouble(self) -> str | None:
        """Return why the topics cannot be used now, or None when they can; asked at most once a second, within 3 s.

        A topic can be used when each partition has a leader and enough in-sync replicas for `acks=all`.
        """
        if self._looking is None or (self._looking.done() and time.monotonic() - self._looked_at >= FRESH_S):
            self._looking = asyncio.create_task(self._look())
        looking = self._looking
        await asyncio.wait([looking], timeout=ANSWER_S)
        return looking.result() if looking.done() else f"Kafka at {self._servers} does not answer in time"

    async def watch(self, every_s: float = LOOK_EVERY_S) -> None:
        """Look at the topics every 5 s, until cancelled; log a line whenever the answer changes.

        A deleted topic is created again.
        """
        known: str | None = None
        settings_checked_at = -math.inf
        while True:
            await asyncio.sleep(every_s)
            found = await self.trouble()
            if found != known:
                log.log(logging.WARNING if found else logging.INFO, "%s", found or "Kafka can be used again")
            known = found
            if found and UnknownTopicOrPartitionError.__name__ in found:
                with suppress(KafkaError, OSError, Unusable):  # the next look reports what is wrong
                    await self.ensure_topics()
            elif time.monotonic() - settings_checked_at >= SETTINGS_EVERY_S:  # in trouble too: they may have caused it
                settings_checked_at = time.monotonic()
                with suppress(KafkaError, OSError, TimeoutError, Unusable):  # the next check reports what is wrong
                    for topic in self._topics:
                        await self.deletions(topic)

    @property
    def _servers(self) -> str:
        return ", ".join(self._options["bootstrap_servers"])

    async def _look(self) -> str | None:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                topics = await self._admin.ask(lambda admin: _described(admin, list(self._topics)))
                answering, denied = await asyncio.gather(self._answering(topics), self._denied(topics))
        except (KafkaError, OSError, TimeoutError) as error:
            return await self._out_of_reach(error)
        else:
            return denied or next(filter(None, (self._trouble_of(topic, answering) for topic in topics)), None)
        finally:
            self._looked_at = time.monotonic()

    async def _out_of_reach(self, error: Exception) -> str:
        """Close what failed and return why: a probe distinguishes a refused password from an unreachable address."""
        found, _ = await asyncio.gather(diagnosis(self._options), self._admin.close())
        if found:
            return found
        said = self._options["client_id"].journal.last_failure(time.monotonic() - ASK_TIMEOUT_S) or one_line(error)
        return f"Kafka at {self._servers} answers with an error: {said}"

    async def _denied(self, topics: Sequence[dict[str, Any]]) -> str | None:
        """Return which right is missing, or None."""
        denied = [self._topics[described["topic"]] for described in topics if self._is_denied(described)]
        denials = [topic.denial for topic in denied]
        if self._group is not None and not await consumer_groups.may_join(await self._admin.client(), self._group):
            denials.append(f"no right to the group {self._group}")
        if len(denials) > len(denied) or any(topic.right == "read" for topic in denied):
            self.unreadable_at = time.monotonic()
        return denials[0] if denials else None

    def _is_denied(self, described: dict[str, Any]) -> bool:
        if code := described["error_code"]:
            return bool(code == TopicAuthorizationFailedError.errno)
        right = self._topics[described["topic"]].right
        return right is not None and not may(right, described["operations"])

    async def _answering(self, topics: Sequence[dict[str, Any]]) -> set[int]:
        """Return the brokers with replicas that answer: without a controller, the others describe an earlier state."""
        client = client_of_admin(await self._admin.client())
        nodes = {node for topic in topics for partition in topic["partitions"] for node in partition["replicas"]}

        async def answers(node: int) -> bool:
            try:
                async with asyncio.timeout(BROKER_TIMEOUT_S):
                    await client.send(node, MetadataRequest([]))
            except (KafkaError, OSError, TimeoutError):
                return False
            return True

        answered = await asyncio.gather(*map(answers, nodes))
        return {node for node, did in zip(nodes, answered, strict=True) if did}

    def _trouble_of(self, described: dict[str, Any], answering: set[int]) -> str | None:
        name = str(described["topic"])
        if code := described["error_code"]:
            return f"topic {name}: {for_code(code).__name__}"
        needed = int(self.configs.get(name, {}).get("min.insync.replicas", "1"))
        self.partitions[name] = len(described["partitions"])
        for partition in described["partitions"]:
            number, isr = partition["partition"], answering.intersection(partition["isr"])
            if partition["leader"] not in answering:
                return f"topic {name}: partition {number} has {self._why_without_leader(partition['leader'])}"
            if len(isr) < needed:
                return f"topic {name}: partition {number} has {len(isr)} of {needed} in-sync replicas"
        return None

    def _why_without_leader(self, leader: int) -> str:
        reason = self._options["client_id"].journal.reason_of(("connection", leader))
        return f"no leader that answers: {reason}" if reason else "no leader"

    async def _differences(self, admin: AIOKafkaAdminClient, topic: Topic) -> list[Difference]:
        """Return where the topic is not as the settings want it, and remember its configuration."""
        described = await _settled(admin, topic)
        self.configs[topic.name] = configs = await _config_of(admin, topic.name)
        self.partitions[topic.name] = partitions = len(described["partitions"])
        found = Found(partitions, len(described["partitions"][0]["replicas"]), configs)
        return differences(topic, found, self.max_message_bytes(topic.largest_of) if topic.largest_of else 0)

    def _report(self, topic: Topic, found: Sequence[Difference]) -> None:
        """Remember where a topic differs, and log a changed difference."""
        differing = [str(difference) for difference in found]
        if differing != self.reports.get(topic.name, []):
            known = "; ".join(differing) or "none"
            log.warning("topic %s is used as it is, with other settings than wanted: %s", topic.name, known)
        self.reports[topic.name] = differing
        self._risks[topic.name] = [f"topic {topic.name}: {difference}" for difference in found if difference.lost]


async def _described(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> list[dict[str, Any]]:
    """Return what a broker says of topics, with the `operations` that are allowed on each."""
    answer = await ask_any_broker(admin, AskForTopics(topics))
    return list(answer.to_object()["topics"])


async def _create(admin: AIOKafkaAdminClient, topic: Topic) -> None:
    new = NewTopic(topic.name, topic.partitions, topic.replication, topic_configs=topic.configs)
    answer = await admin.create_topics([new])
    for _, code, *message in answer.topic_errors:
        error = for_code(code)
        if error is TopicAuthorizationFailedError:
            raise Unusable(f"{topic.kind} {topic.name} does not exist, and there is no right to create it")
        if code and error is not TopicAlreadyExistsError:  # another instance was quicker
            raise Unusable(f"topic {topic.name} cannot be created: {error.__name__} {message[0] if message else ''}")
    log.info("created topic %s: %d partitions, replication %d", topic.name, topic.partitions, topic.replication)


async def _settled(admin: AIOKafkaAdminClient, topic: Topic) -> dict[str, Any]:
    """Return what a broker says of a topic, which it may learn some time after the topic was created.

    Raises `Unusable` when it does not within 5 s, or when the client may not see the topic.
    """
    late = time.monotonic() + NEW_TOPIC_TIMEOUT_S
    while True:
        (described,) = await _described(admin, [topic.name])
        if not described["error_code"]:
            return described
        if described["error_code"] == TopicAuthorizationFailedError.errno:
            raise Unusable(topic.denial)
        if time.monotonic() > late:
            raise Unusable(f"topic {topic.name}: {for_code(described['error_code']).__name__}")
        await asyncio.sleep(0.1)


async def _config_of(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    ((code, _, _, _, entries),) = [resource for answer in answers for resource in answer.resources]
    if code == TopicAuthorizationFailedError.errno:
        raise Unusable(f"no right to read the configuration of topic {topic} (DescribeConfigs)")
    if code:
        raise Unusable(f"topic {topic}: its configuration cannot be read: {for_code(code).__name__}")
    return {name: value for name, value, *_ in entries}
