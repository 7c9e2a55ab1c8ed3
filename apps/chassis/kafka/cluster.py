"""Manage the topics that a service needs: create missing ones, and report whether they can be used now."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from uuid import UUID

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.structs import OffsetAndMetadata

from apps.chassis.kafka import consumer_groups
from apps.chassis.kafka.admin import Admin
from apps.chassis.kafka.clients import ClientOptions
from apps.chassis.kafka.diagnosis import diagnosis
from apps.chassis.kafka.topic_metadata import id_in, may
from apps.chassis.kafka.topic_settings import (
    DEFAULT_MAX_MESSAGE_BYTES,
    Difference,
    Found,
    Topic,
    Unusable,
    config_of,
    create,
    describe_new_topic,
    describe_topics,
    differences,
)
from apps.chassis.observability.logs import one_line

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 2.0
"""Seconds without an answer after which the cluster counts as out of reach."""
BROKER_TIMEOUT_S = 1.0
"""Seconds for one broker to answer."""
SETTLING_S = 0.5
"""Seconds until every broker knows the settings of a new topic."""
ANSWER_S = 3.0
"""Seconds after which `trouble` answers, even while its check is still running."""
FRESH_S = 1.0
"""Seconds for which the result of a check is reused."""
LOOK_EVERY_S = 5.0
"""Seconds between two checks of the cluster in the background."""
NO_LEADER = -1  # what Kafka says instead of the broker that leads a partition
SETTINGS_EVERY_S = 20.0
"""Seconds between two checks of the topic settings, which an administrator may change at any time."""


class Cluster:
    """Creates the missing topics of a service, and reports whether its topics can be used.

    By topic: `partitions` is their number, `configs` the configuration, and `reports` lists the differences from the
    wanted settings; the topic is used as it is. `deletions` are those of them that make Kafka delete records that must
    be kept. `unusable` has the partitions that cannot be used now, each with what it has instead; `trouble_since` is
    since when (`time.time`), None without trouble, and `last_trouble` the last one with this time. `limits` are the
    troubles of topics that only some calls need: the service works without them. `reached` is whether Kafka answered
    the last check. The service must be authorized to join `group`. `unreadable_at` is when it was last seen that the
    service may not read a topic or join the group, `trouble_at` when any trouble (`time.monotonic`).
    """

    def __init__(self, options: ClientOptions, topics: Sequence[Topic], group: str | None = None) -> None:
        self.configs: dict[str, dict[str, str]] = {}
        self.partitions: dict[str, int] = {}
        self.reports: dict[str, list[str]] = {}
        self.deletions: dict[str, list[Difference]] = {}
        self.unusable: dict[str, dict[int, str]] = {}
        self.limits: dict[str, str] = {}
        self.reached, self.unreadable_at, self.trouble_at, self._looked_at = False, -math.inf, -math.inf, -math.inf
        self.trouble_since: float | None = None
        self.last_trouble: tuple[str | None, float | None] = None, None
        self._risks: dict[str, list[str]] = {}
        self._refused: dict[str, str | None] = {}
        self._options = options
        self._journal = options["client_id"].journal
        self._topics = {topic.name: topic for topic in topics}
        self._group = group
        self._admin = Admin(options)
        self._found: str | None = None
        self._looking: asyncio.Task[str | None] | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connection at the end of the block; the first call opens it."""
        try:
            yield
        finally:
            if self._looking is not None:
                self._looking.cancel()
                await asyncio.gather(self._looking, return_exceptions=True)
            await self._admin.close()

    async def ensure_topics(self) -> None:
        """Create the missing topics and check the others.

        Raises `Unusable` when Kafka is out of reach, refuses the service or a new topic, or when a permission is
        missing.
        """
        try:
            admin = await self._admin.client()
            described = await describe_topics(admin, list(self._topics))
            names = [one["topic"] for one in described if one["error_code"] == UnknownTopicOrPartitionError.errno]
            self._refused |= await create(self._options, [self._topics[name] for name in names])
            if refused := next(filter(None, map(self._refused.get, names)), None):
                raise Unusable(refused)
            for topic in self._topics.values():
                if await self._differences(topic, admin):
                    await asyncio.sleep(SETTLING_S)  # a new topic has its settings a moment later
                self._report(topic, await self._differences(topic, admin))
            if denied := await self._denied(await describe_topics(admin, list(self._topics))):
                raise Unusable(denied)
            if self._found and UnknownTopicOrPartitionError.__name__ in self._found:
                self._found = None  # or they would seem missing until a quota lets the next look pass
        except (KafkaError, OSError) as error:
            raise Unusable(await self._out_of_reach(error)) from None

    def max_message_bytes(self, topic: str) -> int:
        """Return the largest batch, in bytes, that the topic accepts; Kafka's default while that is unknown."""
        return int(self.configs.get(topic, {}).get("max.message.bytes", DEFAULT_MAX_MESSAGE_BYTES))

    def may_be_compacted(self, topic: str) -> bool:
        """Return whether a topic may be compacted; true while its settings are unknown."""
        return "compact" in self.configs.get(topic, {}).get("cleanup.policy", "compact")

    def partition_count(self, topic: str) -> int:
        """Return the number of partitions of a topic. Raises `KafkaConnectionError` if Kafka was not reached yet."""
        if topic not in self.partitions:
            raise KafkaConnectionError("Kafka was not reached yet")
        return self.partitions[topic]

    def at_risk(self, well: str) -> str:
        """Return the health detail of a working service: `well`, and the guarantees that do not hold."""
        return "; ".join([well, *(risk for risks in self._risks.values() for risk in risks), *self.limits.values()])

    async def check_settings(self) -> None:
        """Check the topics. Raises `KafkaError`, `OSError`, `TimeoutError` after 2 s, or `Unusable` at the end."""
        unusable = None
        async with asyncio.timeout(ASK_TIMEOUT_S):
            for topic in self._topics.values():
                try:
                    self._report(topic, await self._admin.ask(partial(self._differences, topic)))
                except Unusable as error:
                    unusable = unusable or error
                    self._note(topic, [str(error)], [str(error)])
        if unusable:
            raise unusable

    async def topic_id(self, topic: str) -> UUID | None:
        """Return the id of a topic, None from a Kafka before 2.8. Raises the errors of `commits`."""
        async with self._journal.answers_within(ASK_TIMEOUT_S):
            (described,) = await self._admin.ask(lambda admin: describe_topics(admin, [topic]))
        if code := described["error_code"]:
            raise for_code(code)(topic)
        return id_in(described)

    async def commits(self, group: str, topic: str) -> dict[int, OffsetAndMetadata | None]:
        """Return the committed offset of a group in each partition, with its metadata; None where it has none.

        Raises `KafkaError`, `OSError` or, after 2 s, `TimeoutError`.
        """
        count = self.partitions.get(topic, 0)
        async with self._journal.answers_within(ASK_TIMEOUT_S):
            return await self._admin.ask(lambda admin: consumer_groups.commits(admin, group, topic, count))

    async def members(self, group: str, topic: str) -> tuple[str, list[consumer_groups.Member]]:
        """Return the state of a group (`Stable`, `PreparingRebalance`, ...) and its members; raises as `commits`."""
        async with self._journal.answers_within(ASK_TIMEOUT_S):
            return await self._admin.ask(lambda admin: consumer_groups.members(admin, group, topic))

    async def trouble(self) -> str | None:
        """Return within 3 s why the topics cannot be used now, or None. Kafka is asked at most once a second.

        A topic can be used when each partition has a leader and enough in-sync replicas for `acks=all`. Where only
        some calls need a topic, that is one of the `limits` instead.
        """
        if self._looking is None or (self._looking.done() and time.monotonic() - self._looked_at >= FRESH_S):
            self._looking = asyncio.create_task(self._look())
        await asyncio.wait([looking := self._looking], timeout=ANSWER_S)
        if looking.done():
            return looking.result()
        if self._is_held_up:
            return self._held_up()
        self.reached = False
        return self._timed(self._journal.with_quota(f"Kafka at {self._servers} does not answer in time"))

    async def watch(self, every_s: float = LOOK_EVERY_S) -> None:
        """Check the topics every `every_s` seconds, until cancelled; log changes, and create deleted topics again."""
        known: str | None = None
        settings_checked_at = -math.inf
        while True:
            await asyncio.sleep(every_s)
            found = await self.trouble()
            if found != known:
                log.log(logging.WARNING if found else logging.INFO, "%s", found or "Kafka can be used again")
            known = found
            missing = filter(None, [UnknownTopicOrPartitionError.__name__, *self._refused.values()])
            if found and any(why in found for why in missing):
                with suppress(KafkaError, OSError, Unusable):  # the next check reports what is wrong
                    await self.ensure_topics()
            elif time.monotonic() - settings_checked_at >= SETTINGS_EVERY_S:  # even in trouble: they may be its cause
                settings_checked_at = time.monotonic()
                with suppress(KafkaError, OSError, Unusable):  # reported, or by the next check of `trouble`
                    await self.check_settings()

    @property
    def _servers(self) -> str:
        return ", ".join(self._options["bootstrap_servers"])

    async def _look(self) -> str | None:
        """Return why the topics cannot be used; what was found before, while a quota holds up Kafka's answers."""
        found = None
        try:
            found = self._found = await self._find()
        except (KafkaError, OSError, TimeoutError) as error:
            self.reached = self._is_held_up
            if not self.reached:
                found = self._found = await self._out_of_reach(error)
        finally:
            self._looked_at = time.monotonic()
        return self._timed(found or (self._held_up() if self._is_held_up else None))

    def _timed(self, found: str | None) -> str | None:
        self.trouble_since = (self.trouble_since or time.time()) if found else None
        self.trouble_at = time.monotonic() if found else self.trouble_at
        if found and self.configs.keys() >= self._topics.keys():  # it is none that topics are still created
            self.last_trouble = found, self.trouble_since
        return found

    @property
    def _is_held_up(self) -> bool:
        """Whether Kafka was reached, and a quota may delay its answers."""
        return self.reached and self._journal.is_held_up()

    def _held_up(self) -> str | None:
        """Return what was found before, or that a start waits: because of the quota it is not known to be over."""
        are_checked = self.configs.keys() >= self._topics.keys()
        found = self._found or (None if are_checked else "the topics are not checked yet")
        return self._journal.with_quota(found) if found else None

    async def _find(self) -> str | None:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            topics = await self._admin.ask(lambda admin: describe_topics(admin, list(self._topics)))
            answering, denied = await asyncio.gather(self._answering(topics), self._denied(topics))
        self.reached = True
        troubles = [self._trouble_of(topic, answering) for topic in topics]
        return denied or next(filter(None, troubles), None)

    async def _out_of_reach(self, error: Exception) -> str:
        """Close the admin client, and return why it failed, like a refused password or an unreachable address."""
        found, _ = await asyncio.gather(diagnosis(self._options), self._admin.close())
        said = self._journal.last_failure(time.monotonic() - ASK_TIMEOUT_S) or one_line(error)
        return self._journal.with_quota(found or f"Kafka at {self._servers} answers with an error: {said}")

    async def _denied(self, topics: Sequence[dict[str, Any]]) -> str | None:
        """Return which permission is missing, or None."""
        denied = [self._topics[described["topic"]] for described in topics if self._is_denied(described)]
        denials = [topic.denial for topic in denied]
        if self._group is not None and not await consumer_groups.may_join(await self._admin.client(), self._group):
            denials.append(f"no permission for the group {self._group}")
        if len(denials) > len(denied) or any(topic.permission == "read" for topic in denied):
            self.unreadable_at = time.monotonic()
        return denials[0] if denials else None

    def _is_denied(self, described: dict[str, Any]) -> bool:
        if code := described["error_code"]:
            return bool(code == TopicAuthorizationFailedError.errno)
        permission = self._topics[described["topic"]].permission
        return permission is not None and not may(permission, described["operations"])

    async def _answering(self, topics: Sequence[dict[str, Any]]) -> set[int]:
        """Return which brokers with replicas answer: without a controller, metadata may be out of date."""
        nodes = {node for topic in topics for partition in topic["partitions"] for node in partition["replicas"]}
        answered = await asyncio.gather(*(self._admin.answers(node, BROKER_TIMEOUT_S) for node in nodes))
        return {node for node, did in zip(nodes, answered, strict=True) if did}

    def _trouble_of(self, described: dict[str, Any], answering: set[int]) -> str | None:
        name = str(described["topic"])
        if code := described["error_code"]:
            return self._refused.get(name) or f"topic {name}: {for_code(code).__name__}"
        self.partitions[name] = len(described["partitions"])
        reasons = {one["partition"]: self._why_unusable(name, one, answering) for one in described["partitions"]}
        self.unusable[name] = found = {partition: why for partition, why in reasons.items() if why}
        trouble = next((f"topic {name}: partition {partition} has {why}" for partition, why in found.items()), None)
        if (topic := self._topics.get(name)) is None or not topic.needed_by:
            return trouble
        self._limit(name, trouble and f"{trouble} ({topic.needed_by} need it)")
        return None

    def _limit(self, topic: str, limit: str | None) -> None:
        """Remember what fails because a topic cannot be used that only some calls need, and log it when it changes."""
        if limit != self.limits.pop(topic, None):
            log.log(logging.WARNING if limit else logging.INFO, "%s", limit or f"topic {topic} can be used again")
        if limit:
            self.limits[topic] = limit

    def _why_unusable(self, topic: str, partition: dict[str, Any], answering: set[int]) -> str | None:
        """Return what a partition has instead of a leader and enough in-sync replicas, or None."""
        if partition["leader"] not in answering:
            return self._why_without_leader(partition["leader"])
        wanted = int(self.configs.get(topic, {}).get("min.insync.replicas", "1"))
        needed = min(wanted, len(partition["replicas"]))  # Kafka asks for no more than there are (KIP-966)
        in_sync = len(answering.intersection(partition["isr"]))
        return f"{in_sync} of {needed} in-sync replicas" if in_sync < needed else None

    def _why_without_leader(self, leader: int) -> str:
        if leader == NO_LEADER:
            return "no leader"
        reason = self._journal.reason_of(("connection", leader)) or f"broker {leader} is silent"
        return f"no leader that answers: {reason}"

    async def _differences(self, topic: Topic, admin: AIOKafkaAdminClient) -> list[Difference]:
        """Return the differences between a topic and its wanted settings; remember its configuration."""
        described = await describe_new_topic(admin, topic)
        self.configs[topic.name] = configs = await config_of(admin, topic.name)
        self.partitions[topic.name] = partitions = len(described["partitions"])
        found = Found(partitions, len(described["partitions"][0]["replicas"]), configs)
        return differences(topic, found, self.max_message_bytes(topic.source) if topic.source else 0)

    def _report(self, topic: Topic, found: Sequence[Difference]) -> None:
        """Remember the differences of a topic, and log them when they change."""
        self._note(topic, map(str, found), [f"topic {topic.name}: {one}" for one in found if one.lost])
        self.deletions[topic.name] = [difference for difference in found if difference.deletes]

    def _note(self, topic: Topic, found: Iterable[str], risks: list[str]) -> None:
        if (differing := [*found]) != self.reports.get(topic.name, []):
            known = "; ".join(differing) or "none"
            log.warning("topic %s is used as it is; differences from the wanted settings: %s", topic.name, known)
        self.reports[topic.name], self._risks[topic.name] = differing, risks
