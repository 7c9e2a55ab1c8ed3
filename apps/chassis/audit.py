"""Audit: who asked for which operator action or deletion, with which parameters, and how it ended.

Every refused or failed action is a log line here; routes log what was done. With `AUDIT_TOPIC` each action, and each
deletion of a record, is a record too. No record holds a value or a key: of a text that may be one there is a hash. The
newest are kept in memory.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import parse_qsl

import msgspec
from litestar.types import Scope
from prometheus_client import CollectorRegistry, Counter

from apps.chassis.background import Background
from apps.chassis.http.authentication import SAFE_METHODS
from apps.chassis.http.problems import ANSWERED
from apps.chassis.http.request_body import DECODED_BODY
from apps.chassis.http.roles import OPERATE, ROLE
from apps.chassis.kafka.clients import ClientOptions, for_purpose
from apps.chassis.kafka.cluster import Cluster, Unusable
from apps.chassis.kafka.errors import KAFKA_ERRORS
from apps.chassis.kafka.kafka import Kafka
from apps.chassis.kafka.topic_settings import Topic
from apps.chassis.kafka.topic_writer import TopicWriter
from apps.chassis.observability.logs import key_name, one_line, request_id
from apps.chassis.settings import Settings

log = logging.getLogger(__name__)

PLAIN = frozenset({"stream", "limit", "partition", "offset", "from", "to", "before", "after", "accept", "dry_run"})
"""Parameters that are no part of a record; the text of others is hashed."""
DELETE = "DELETE"
"""The method of calls that delete a record."""
SHORT = re.compile(r"[A-Za-z0-9:.+_-]{1,64}")
NEWEST = 100
"""Records that are kept in memory."""
AUDIT = "audit"
"""The key of an application's state that holds its `Audit`."""
WAITING = 1_000
"""Records that wait for Kafka; of more, the newest are lost, and counted."""
LAST_RECORDS_S = 1.0
"""Seconds for the last records to be written at the end."""
RETRY_S = 1.0
"""Seconds between two attempts to write a record."""
REFUSED, INVALID = frozenset({401, 403, 421, 429}), frozenset({400, 413, 415})
"""Statuses of calls that may not be made, and of those that make no sense: why not may quote a value."""


class AuditRecord(msgspec.Struct, kw_only=True):
    """What an operator asked for; `who` is the name of the key, null without an accepted one."""

    at: str
    service: str
    who: str | None
    action: str
    parameters: Mapping[str, Any]
    outcome: Literal["done", "refused", "failed", "unknown"]
    status: int
    request_id: str | None


class Audit:
    """Logs and records the operator actions of a service; `writer` is None without a topic for them.

    `newest` are the last ones, the newest first. A call that was refused without an accepted key is not among them:
    anyone could push the others out.
    """

    def __init__(
        self,
        service: str,
        registry: CollectorRegistry,
        writer: TopicWriter | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self.newest: deque[AuditRecord] = deque(maxlen=NEWEST)
        self._service = service
        self._writer = writer
        self._cluster = cluster
        self._waiting: asyncio.Queue[AuditRecord] = asyncio.Queue(WAITING)
        self._lost = Counter("audit_records_lost", "Audit records that were not written.", registry=registry)

    def note(self, scope: Scope, status: int) -> None:
        """Note the end of a call, if it was an operator action or a deletion; a `status` of 0: nothing was answered."""
        route: Any = scope.get("route_handler")
        is_deletion, is_safe = scope.get("method") == DELETE, scope.get("method") in SAFE_METHODS
        is_action = route is not None and route.opt.get(ROLE) == OPERATE and not is_safe
        if not is_action and (route is None or not is_deletion):
            return
        done = AuditRecord(
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            service=self._service,
            who=key_name.get(),
            action=DELETE.lower() if is_deletion else str(scope["path"]).rsplit("/", 1)[-1],
            parameters=_deleted_by(scope) if is_deletion else _parameters_of(scope),
            outcome=_outcome_of(status),
            status=status,
            request_id=request_id.get(),
        )
        if is_action and done.outcome != "done":
            why = "the request is invalid" if status in INVALID else scope.get(ANSWERED, "the caller has gone")
            stream = done.parameters.get("stream", "all streams")
            details = {"action": done.action, "stream": stream}
            log.info("an operator asked for %s of %s: %s: %s", done.action, stream, done.outcome, why, extra=details)
        if done.who is not None or done.outcome != "refused":
            self.newest.appendleft(done)
        if self._writer is not None:
            try:
                self._waiting.put_nowait(done)
            except asyncio.QueueFull:
                self._lost.inc()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Write records in the background; at the end, wait a moment for the last ones."""
        if self._writer is None or self._cluster is None:
            yield
            return
        background = Background()
        async with self._cluster.open(), self._writer.open(), background.open():
            background.start(self._write(self._writer), "the writing of audit records")
            yield
            await self._wait_for_last_records()

    async def _wait_for_last_records(self) -> None:
        try:
            async with asyncio.timeout(LAST_RECORDS_S):
                await self._waiting.join()
        except TimeoutError:
            log.error("the last audit records were not written: Kafka did not take them in time")  # noqa: TRY400 - one line says it

    async def _write(self, writer: TopicWriter) -> None:
        """Write record after record, each until Kafka has it."""
        reported = ""
        while True:
            record = await self._waiting.get()
            while True:
                try:
                    await writer.write_to({0: [(None, msgspec.json.encode(record), [])]})
                    break
                except (*KAFKA_ERRORS, Unusable) as error:
                    if reported != (reported := one_line(error)):
                        log.error("audit records wait until %s takes them: %s", writer.topic, reported)  # noqa: TRY400 - one line says it
                    await asyncio.sleep(RETRY_S)
            self._waiting.task_done()


def audit_of(
    settings: Settings, service: str, options: ClientOptions, kafka: Kafka, registry: CollectorRegistry
) -> Audit:
    """Return the audit of a service, with a writer to `AUDIT_TOPIC` if that is set."""
    if settings.audit_topic is None:
        return Audit(service, registry)
    own, replication = for_purpose(options, "audit"), max(of.replication for of in settings.by_stream.values())
    topic = Topic(settings.audit_topic, 1, replication, permission="write", kind="audit topic")
    cluster = kafka.cluster(own, [topic])
    writer = TopicWriter(own, topic.name, cluster, kafka.producer, prepare=cluster.ensure_topics)
    return Audit(service, registry, writer, cluster)


def _outcome_of(status: int) -> Literal["done", "refused", "failed", "unknown"]:
    if status == 0:
        return "unknown"
    if status in REFUSED:
        return "refused"
    return "done" if status < 400 else "failed"  # noqa: PLR2004 - HTTP's own line between success and error


def _parameters_of(scope: Scope) -> Mapping[str, Any]:
    """Return the parameters of a call, of its query and its body, without what may be a part of a record."""
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    body = msgspec.to_builtins(scope.get(DECODED_BODY) or {})
    given = {name: value for name, value in [*query, *body.items()] if value is not None}
    return {
        name: value if name in PLAIN and SHORT.fullmatch(str(value)) else _hash_of(value)
        for name, value in given.items()
    }


def _deleted_by(scope: Scope) -> Mapping[str, Any]:
    """Return the stream of a deletion, and the hash of the key: the last two segments of the path."""
    _, stream, key = str(scope["path"]).rsplit("/", 2)
    return {"stream": stream, "key": _hash_of(key)}


def _hash_of(text: object) -> str:
    return "sha256:" + sha256(str(text).encode("utf-8", "surrogatepass")).hexdigest()
