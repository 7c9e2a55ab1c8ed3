"""The cluster as an administrator sees it: the topics that a service needs, and whether they can be used now."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import msgspec
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import (
    GroupAuthorizationFailedError,
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
from apps.chassis.internals.group_description import GROUP_ID_NOT_FOUND, describe_group
from apps.chassis.kafka.authorization import AskForGroup, AskForTopics, may
from apps.chassis.kafka.clients import ClientOptions
from apps.chassis.kafka.diagnosis import diagnosis
from apps.chassis.kafka.topic_settings import DEFAULT_MAX_MESSAGE_BYTES, Difference, Found, Topic, differences
from apps.chassis.observability.logs import one_line

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds that a look at the cluster may take before it counts as out of reach."""
ATTEMPTS = 3
"""Attempts within that time: the client asks any broker, also one that just died."""
SETTLING = 0.5
"""Seconds until every broker knows the settings of a new topic."""
ANSWER_S = 3.0
"""Seconds after which `trouble` answers, even while its work is still running."""
FRESH = 1.0
"""Seconds for which what was seen of the cluster is not asked again."""
EVERY = 5.0
"""Seconds between two looks at the cluster when nobody asks."""
SETTINGS_EVERY_S = 20.0
"""Seconds between two checks of the topic settings, which an administrator may change at any time."""


class Member(msgspec.Struct):
    """A member of a consumer group, and which partitions of a topic it has."""

    member_id: str
    client_id: str
    host: str
    partitions: list[int]


Committed = Callable[[], Awaitable[dict[int, int | None]]]
"""Tells the offset that a group has committed in each partition of a topic, as `Cluster.committed` does."""


class Unusable(Exception):
    """Kafka, or a topic, cannot be used now; the message says why, in one line."""


class Cluster:
    """Creates the topics of a service where they are missing, and tells whether they can be used.

    By topic: `partitions` is how many it has, `configs` its configuration, and `reports` says where it differs from
    what the settings want; it is used as it is. `risks` names which of these differences take a guarantee away.
    `group` is the one that the service must be allowed to join.
    `unreadable_at` is when reading a topic, or with the group, was last seen not to be allowed (`time.monotonic`).
    """

    def __init__(self, options: ClientOptions, topics: Sequence[Topic], group: str | None = None) -> None:
        self.reports: dict[str, list[str]] = {}
        self.risks: list[str] = []
        self._risks: dict[str, list[str]] = {}
        self._settings_seen = -math.inf
        self.configs: dict[str, dict[str, str]] = {}
        self.partitions: dict[str, int] = {}
        self.unreadable_at = -math.inf
        self._options = options
        self._topics = {topic.name: topic for topic in topics}
        self._group = group
        self._admin: AIOKafkaAdminClient | None = None
        self._connecting = asyncio.Lock()
        self._looking: asyncio.Task[str | None] | None = None
        self._seen: tuple[float, str | None] = (-FRESH, None)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connection at the end; it is opened by what needs it first."""
        try:
            yield
        finally:
            if self._looking is not None:
                self._looking.cancel()
                await asyncio.gather(self._looking, return_exceptions=True)
            await self._disconnect()

    async def ensure_topics(self) -> None:
        """Create the topics that are missing and look at the others.

        Raises `Unusable` when Kafka is out of reach, does not let the service in, refuses to create a topic, or when
        the service may not do what it must.
        """
        try:
            admin = await self._connected()
            for topic in self._topics.values():
                if (await _described(admin, [topic.name]))[0]["error_code"] == UnknownTopicOrPartitionError.errno:
                    await self._create(admin, topic)
                if await self._differences(admin, topic):
                    await asyncio.sleep(SETTLING)  # one that was created just now has its settings a moment later
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
        return "; ".join([well, *self.risks])

    async def deletions(self, topic: str) -> list[Difference]:
        """Check a topic again; return the settings that make Kafka delete records that must be kept.

        Raises `Unusable`, `KafkaError`, `OSError` or, after 2 s, `TimeoutError`.
        """
        async with asyncio.timeout(PATIENCE):
            found = await self._ask(lambda admin: self._differences(admin, self._topics[topic]))
        self._report(self._topics[topic], found)
        return [difference for difference in found if difference.deletes]

    async def _look_at_settings(self) -> None:
        self._settings_seen = time.monotonic()
        with suppress(KafkaError, OSError, TimeoutError, Unusable):  # the next check reports what is wrong
            for topic in self._topics:
                await self.deletions(topic)

    async def committed(self, group: str, topic: str) -> dict[int, int | None]:
        """Return the offset that a group has committed in each partition, None where it has none.

        Raises `KafkaError`, `OSError` or, after 2 s, `TimeoutError`.
        """
        commits = await self.commits(group, topic)
        return {partition: commit.offset if commit else None for partition, commit in commits.items()}

    async def commits(self, group: str, topic: str) -> dict[int, OffsetAndMetadata | None]:
        """Return what a group has committed in each partition, with its metadata; None where it has nothing.

        Raises `KafkaError`, `OSError` or, after 2 s, `TimeoutError`.
        """
        wanted = [TopicPartition(topic, partition) for partition in range(self.partitions.get(topic, 0))]
        async with asyncio.timeout(PATIENCE):
            offsets = await self._ask(lambda admin: admin.list_consumer_group_offsets(group, partitions=wanted))
        return {tp.partition: found if found.offset >= 0 else None for tp, found in offsets.items()}

    async def members(self, group: str, topic: str) -> tuple[str, list[Member]]:
        """Return the state of a group (`Stable`, `PreparingRebalance`, `Empty`, ...) and its members.

        Raises `KafkaError`, `OSError` or, after 2 s, `TimeoutError`.
        """
        async with asyncio.timeout(PATIENCE):
            return await self._ask(lambda admin: _members_of(admin, group, topic))

    async def trouble(self) -> str | None:
        """Return why the topics cannot be used now, or None when they can; asked at most once a second, within 3 s.

        A topic can be used when each partition has a leader and enough in-sync replicas for `acks=all`.
        """
        at, found = self._seen
        if time.monotonic() - at < FRESH:
            return found
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_and_remember())
        looking = self._looking
        await asyncio.wait([looking], timeout=ANSWER_S)
        servers = ", ".join(self._options["bootstrap_servers"])
        return looking.result() if looking.done() else f"Kafka at {servers} does not answer in time"

    async def _look_and_remember(self) -> str | None:
        found = await self._look()
        self._seen = (time.monotonic(), found)
        return found

    async def watch(self) -> None:
        """Look at the topics every 5 s, until cancelled; log a line whenever the answer changes.

        A deleted topic is created again.
        """
        known: str | None = None
        while True:
            await asyncio.sleep(EVERY)
            found = await self.trouble()
            if found is None and time.monotonic() - self._settings_seen >= SETTINGS_EVERY_S:
                await self._look_at_settings()
            if found != known:
                log.log(logging.WARNING if found else logging.INFO, "%s", found or "Kafka can be used again")
            known = found
            if found and UnknownTopicOrPartitionError.__name__ in found:
                with suppress(KafkaError, OSError, Unusable):  # it is asked again, and says what is wrong
                    await self.ensure_topics()

    async def _look(self) -> str | None:
        try:
            async with asyncio.timeout(PATIENCE):
                topics = await self._ask(lambda admin: _described(admin, list(self._topics)))
                answering, denied = await asyncio.gather(self._answering(topics), self._denied(topics))
        except (KafkaError, OSError, TimeoutError) as error:
            return await self._out_of_reach(error)
        return denied or next(filter(None, (self._trouble_of(topic, answering) for topic in topics)), None)

    async def _out_of_reach(self, error: Exception) -> str:
        """Close what failed and return why: a probe distinguishes a refused password from an unreachable address."""
        found, _ = await asyncio.gather(diagnosis(self._options), self._disconnect())
        if found:
            return found
        said = self._options["client_id"].journal.last_failure(time.monotonic() - PATIENCE) or one_line(error)
        return f"Kafka at {', '.join(self._options['bootstrap_servers'])} answers with an error: {said}"

    async def _denied(self, topics: Sequence[dict[str, Any]]) -> str | None:
        """Return which right is missing, or None."""
        denied = [self._topics[described["topic"]] for described in topics if self._is_denied(described)]
        denials = [topic.denial for topic in denied]
        if self._group is not None and not await self._may_join(self._group):
            denials.append(f"no right to the group {self._group}")
        if len(denials) > len(denied) or any(topic.right == "read" for topic in denied):
            self.unreadable_at = time.monotonic()
        return denials[0] if denials else None

    def _is_denied(self, described: dict[str, Any]) -> bool:
        if code := described["error_code"]:
            return bool(code == TopicAuthorizationFailedError.errno)
        right = self._topics[described["topic"]].right
        return right is not None and not may(right, described["operations"])

    async def _may_join(self, group: str) -> bool:
        """Tell whether the group may be read, which is what its members need; True as long as that is not known."""
        admin = await self._connected()
        try:
            async with asyncio.timeout(PATIENCE / 2):
                node = await admin.find_coordinator(group)
                answer = await client_of_admin(admin).send(node, AskForGroup(group))
        except GroupAuthorizationFailedError:
            return False
        except (KafkaError, OSError, TimeoutError):  # its coordinator is on the move, or being elected
            return True
        ((code, *_, operations),) = answer.groups
        return may("read", operations) if not code else code != GroupAuthorizationFailedError.errno

    async def _answering(self, topics: Sequence[dict[str, Any]]) -> set[int]:
        """Return the brokers with replicas that answer: without a controller, one goes on telling what was before."""
        admin = await self._connected()
        nodes = {node for topic in topics for partition in topic["partitions"] for node in partition["replicas"]}

        async def answers(node: int) -> bool:
            try:
                async with asyncio.timeout(PATIENCE / 2):
                    await client_of_admin(admin).send(node, MetadataRequest([]))
            except (KafkaError, OSError, TimeoutError):
                return False
            return True

        answered = await asyncio.gather(*map(answers, nodes))
        return {node for node, did in zip(nodes, answered, strict=True) if did}

    async def _ask(self, question: Callable[[AIOKafkaAdminClient], Awaitable[T]]) -> T:
        """Ask any broker; when the one that was chosen is gone, ask through a new connection, which finds another."""
        for _ in range(ATTEMPTS - 1):
            with suppress(KafkaError, OSError):
                return await question(await self._connected())
            await self._disconnect()
        return await question(await self._connected())

    def _trouble_of(self, described: dict[str, Any], answering: set[int]) -> str | None:
        name = str(described["topic"])
        if code := described["error_code"]:
            return f"topic {name}: {for_code(code).__name__}"
        needed = int(self.configs.get(name, {}).get("min.insync.replicas", "1"))
        partitions = described["partitions"]
        self.partitions[name] = len(partitions)
        for partition in partitions:
            number, isr = partition["partition"], answering.intersection(partition["isr"])
            if partition["leader"] not in answering:
                return f"topic {name}: partition {number} has {self._why_without_leader(partition['leader'])}"
            if len(isr) < needed:
                return f"topic {name}: partition {number} has {len(isr)} of {needed} in-sync replicas"
        return None

    def _why_without_leader(self, leader: int) -> str:
        reason = self._options["client_id"].journal.reason_of(("connection", leader))
        return f"no leader that answers: {reason}" if reason else "no leader"

    async def _create(self, admin: AIOKafkaAdminClient, topic: Topic) -> None:
        new = NewTopic(topic.name, topic.partitions, topic.replication, topic_configs=topic.configs)
        answer = await admin.create_topics([new])
        for _, code, *message in answer.topic_errors:
            error = for_code(code)
            if error is TopicAuthorizationFailedError:
                raise Unusable(f"{topic.kind} {topic.name} does not exist, and there is no right to create it")
            if code and error is not TopicAlreadyExistsError:  # another instance was quicker
                raise Unusable(
                    f"topic {topic.name} cannot be created: {error.__name__} {message[0] if message else ''}"
                )
        log.info("created topic %s: %d partitions, replication %d", topic.name, topic.partitions, topic.replication)

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
        self.risks = [risk for risks in self._risks.values() for risk in risks]

    async def _connected(self) -> AIOKafkaAdminClient:
        async with self._connecting:
            if self._admin is None:
                admin = AIOKafkaAdminClient(**self._options)
                try:
                    await admin.start()
                except BaseException:
                    await admin.close()
                    raise
                self._admin = admin
            return self._admin

    async def _disconnect(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await admin.close()


async def _described(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> list[dict[str, Any]]:
    """Return what a broker says of topics, with the `operations` that are allowed on each."""
    answer = await ask_any_broker(admin, AskForTopics(list(topics)))
    return list(answer.to_object()["topics"])


async def _settled(admin: AIOKafkaAdminClient, topic: Topic) -> dict[str, Any]:
    """Return what a broker says of a topic, which it may learn some time after the topic was created.

    Raises `Unusable` when it does not within 5 s, or may not tell.
    """
    for _ in range(50):
        (described,) = await _described(admin, [topic.name])
        if not described["error_code"]:
            return described
        if described["error_code"] == TopicAuthorizationFailedError.errno:
            raise Unusable(topic.denial)
        await asyncio.sleep(0.1)
    raise Unusable(f"topic {topic.name}: {for_code(described['error_code']).__name__}")


async def _config_of(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    ((code, _, _, _, entries),) = [resource for answer in answers for resource in answer.resources]
    if code == TopicAuthorizationFailedError.errno:
        raise Unusable(f"no right to read the configuration of topic {topic} (DescribeConfigs)")
    if code:
        raise Unusable(f"topic {topic}: its configuration cannot be read: {for_code(code).__name__}")
    return {name: value for name, value, *_ in entries}


async def _members_of(admin: AIOKafkaAdminClient, group: str, topic: str) -> tuple[str, list[Member]]:
    coordinator = await admin.find_coordinator(group)
    (answer,) = await admin.describe_consumer_groups([group], group_coordinator_id=coordinator)
    ((code, _, state, _, _, members, *_),) = answer.groups
    if code in {0, GROUP_ID_NOT_FOUND} and (not members or code):  # Kafka answers so for a group of the newer protocol
        newer = await describe_group(client_of_admin(admin), coordinator, group)
        if newer is not None:
            return newer[0], [Member(m.member_id, m.client_id, m.host, m.partitions.get(topic, [])) for m in newer[1]]
    if code not in {0, GROUP_ID_NOT_FOUND}:
        raise for_code(code)(group)
    return state or "Dead", [
        Member(member_id, client_id, host.removeprefix("/"), _partitions_in(assignment, topic))
        for member_id, client_id, host, _, assignment in (member[:5] for member in members)
    ]


def _partitions_in(assignment: bytes, topic: str) -> list[int]:
    """Return which partitions of a topic a member was given; none while the group rebalances."""
    if not assignment:
        return []
    given = ConsumerProtocolMemberAssignment.decode(assignment).partitions()
    return sorted(tp.partition for tp in given if tp.topic == topic)
