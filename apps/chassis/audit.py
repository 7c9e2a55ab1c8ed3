"""Audit: who asked for which operator action or deletion, with which parameters, and how it ended.

Every refused or failed action, and every deletion of a record, is a log line here; routes log what was done. With
`AUDIT_TOPIC` each of them is a record too. Neither holds a value or a key: of a text that may be one there is a hash.
The newest are kept in memory.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import parse_qsl

import msgspec
from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError
from litestar.types import Scope
from litestar.utils import normalize_path
from prometheus_client import CollectorRegistry, Counter

from apps.chassis.background import Background
from apps.chassis.http.authentication import SAFE_METHODS
from apps.chassis.http.problems import ANSWERED
from apps.chassis.http.request_body import DECODED_BODY
from apps.chassis.http.roles import OPERATE, ROLE
from apps.chassis.kafka.clients import client_options, for_purpose
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.errors import KAFKA_ERRORS
from apps.chassis.kafka.kafka import Kafka
from apps.chassis.kafka.topic_settings import Topic, Unusable
from apps.chassis.kafka.topic_writer import Content, TopicWriter
from apps.chassis.observability.logs import key_name, one_line, request_id
from apps.chassis.settings import Settings

log = logging.getLogger(__name__)

PLAIN = frozenset(
    {"limit", "partition", "offset", "from", "to", "before", "after", "accept", "dry_run", "retired_group"}
)
"""Parameters that are no part of a record."""
HASHED = frozenset({"key", "reason"})
"""Parameters that may be a part of a record. Of names that no action has, nothing is kept."""
DELETE = "DELETE"
"""The method of calls that delete a record."""
SHORT = re.compile(r"[A-Za-z0-9:.+_-]{1,64}")
NEWEST, NEWEST_REFUSED = 100, 20
"""Records that are kept in memory, and how many of them may be of refused calls: these push out no others."""
AUDIT = "audit"
"""The key of an application's state that holds its `Audit`."""
WAITING = 1_000
"""Records of callers that wait for Kafka; of more, the newest are lost, and counted."""
REFUSED_WAITING = 100
"""Records of refused calls, and of those without an accepted key, that may wait besides."""
STRANGERS = 20
"""Calls without an accepted key that are logged and recorded each minute; the others are counted."""
MINUTE_S = 60.0
ALL = "all streams"
"""Stands for the name of a stream where a call names none."""
UNKNOWN = "(unknown)"
"""Stands for the name of a stream that is not served."""
BATCH = 100
"""Records that are written at once."""
LAST_RECORDS_S = 1.0
"""Seconds for the last records to be written at the end."""
RETRY_S = 1.0
"""Seconds between two attempts to write a record."""
REFUSED, INVALID = frozenset({401, 403, 421, 429}), frozenset({400, 413, 415})
"""Statuses of calls that may not be made, and of those that make no sense: why not may quote a value."""
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
"""Errors of a record that Kafka will never take."""


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

    `newest` are the last ones, the newest first, and only some of them refused. A call of a stranger, without the key
    that it needs, is not among them. So nobody who may do nothing can push out what was done. `keys_needed` is whether
    calls need keys, `streams` are the served ones, and `route_of` finds the route of a call that was refused before.
    """

    keys_needed = False
    streams: Collection[str] = ()

    def __init__(
        self,
        service: str,
        registry: CollectorRegistry,
        writer: TopicWriter | None = None,
        cluster: Cluster | None = None,
        strangers: int = STRANGERS,
    ) -> None:
        self.newest: deque[AuditRecord] = deque()
        self.route_of: Callable[[Scope], Any] = lambda _: None
        self._service = service
        self._writer = writer
        self._cluster = cluster
        self._waiting: asyncio.Queue[AuditRecord] = asyncio.Queue(WAITING + REFUSED_WAITING)
        self._lost = Counter("audit_records_lost", "Audit records that were not written.", registry=registry)
        self._background = Background()
        self._waits_for = ""
        self._strangers = 0
        self._max_strangers = strangers

    @property
    def trouble(self) -> str:
        """Why records are not written now; empty while they are."""
        return self._background.failure or self._waits_for

    def note(self, scope: Scope, status: int) -> None:
        """Note the end of a call, if it was an operator action or a deletion; a `status` of 0: nothing was answered."""
        if scope.get("method") in SAFE_METHODS:
            return
        route: Any = scope.get("route_handler") or (self.route_of(scope) if status in REFUSED | INVALID else None)
        is_deletion = scope.get("method") == DELETE
        if route is None or not (is_deletion or route.opt.get(ROLE) == OPERATE):
            return
        who, outcome = key_name.get(), _outcome_of(status)
        is_stranger = who is None and (self.keys_needed or outcome == "refused")
        if is_stranger and not self._has_room_for_stranger():
            return
        done = AuditRecord(
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            service=self._service,
            who=who and who.encode("utf-8", "backslashreplace").decode(),
            action=DELETE.lower() if is_deletion else _path_of(scope).rsplit("/", 1)[-1],
            parameters=self._parameters_of(scope, is_kept=status not in REFUSED | INVALID),
            outcome=outcome,
            status=status,
            request_id=request_id.get(),
        )
        if is_deletion or outcome != "done":
            _log(done, "the request is invalid" if status in INVALID else scope.get(ANSWERED, "the caller has gone"))
        if not is_stranger:
            self._keep(done)
        if self._writer is None:
            return
        gives_way = is_stranger or outcome == "refused"
        if self._waiting.full() or (gives_way and self._waiting.qsize() >= REFUSED_WAITING):
            self._lost.inc()
        else:
            self._waiting.put_nowait(done)

    def _keep(self, done: AuditRecord) -> None:
        self.newest.appendleft(done)
        refused = [one for one in self.newest if one.outcome == "refused"]
        if len(refused) > NEWEST_REFUSED:
            self.newest.remove(refused[-1])
        if len(self.newest) > NEWEST:
            self.newest.pop()

    def _has_room_for_stranger(self) -> bool:
        """Count a call of a stranger; return whether it is among the first of its minute."""
        self._strangers += 1
        if self._strangers == 1:  # the line that counts the others belongs to no request, so it gets no request id
            asyncio.get_running_loop().call_later(MINUTE_S, self._report_strangers, context=Context())
        return self._strangers <= self._max_strangers

    def _report_strangers(self) -> None:
        left_out, self._strangers = self._strangers - self._max_strangers, 0
        if left_out > 0:
            log.warning("more actions without an accepted key, neither logged nor recorded one by one: %d", left_out)

    def _parameters_of(self, scope: Scope, *, is_kept: bool) -> Mapping[str, Any]:
        """Return the parameters of a call that are kept, without what may be a part of a record."""
        kept = {"stream"} | (PLAIN | HASHED if is_kept else set())
        return {name: self._shown(name, value) for name, value in _given_to(scope).items() if name in kept}

    def _shown(self, name: str, value: object) -> object:
        if name == "stream":
            return value if value in self.streams else UNKNOWN
        return value if name in PLAIN and SHORT.fullmatch(str(value)) else hash_of(value)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Write records in the background; at the end, wait a moment for the last ones."""
        if self._writer is None or self._cluster is None:
            yield
            return
        async with self._cluster.open(), self._writer.open(), self._background.open():
            self._background.start(self._write(self._writer), "the writing of audit records")
            yield
            await self._wait_for_last_records()

    async def _wait_for_last_records(self) -> None:
        try:
            async with asyncio.timeout(LAST_RECORDS_S):
                await self._waiting.join()
        except TimeoutError:
            log.error("the last audit records were not written: Kafka did not take them in time")  # noqa: TRY400 - one line says it

    async def _write(self, writer: TopicWriter) -> None:
        """Write what waits in batches, and the records of a batch that is too large one by one."""
        while True:
            records = [await self._waiting.get()]
            while len(records) < BATCH and not self._waiting.empty():
                records.append(self._waiting.get_nowait())
            if not await self._took(writer, records):
                for record in records:
                    if len(records) == 1 or not await self._took(writer, [record]):
                        log.error("an audit record is lost: it is too large for %s: %s", writer.topic, record.action)
                        self._lost.inc()
            for _ in records:
                self._waiting.task_done()

    async def _took(self, writer: TopicWriter, records: Sequence[AuditRecord]) -> bool:
        """Write records, however long Kafka is out of reach; return False when it will never take them."""
        values: list[Content] = [(None, msgspec.json.encode(record), []) for record in records]
        while True:
            try:
                await writer.write_to({0: values})
            except TOO_LARGE:
                return False
            except (*KAFKA_ERRORS, Unusable) as error:
                before, self._waits_for = self._waits_for, f"{writer.topic} takes no audit records: {one_line(error)}"
                if self._waits_for != before:
                    log.error("audit records wait: %s", self._waits_for)  # noqa: TRY400 - one line says it
                await asyncio.sleep(RETRY_S)
            else:
                self._waits_for = ""
                return True


def audit_of(
    settings: Settings, service: str, kafka: Kafka, registry: CollectorRegistry, *, is_written: bool = True
) -> Audit:
    """Return the audit of a service; if `is_written`, with a writer to `AUDIT_TOPIC` where that is set."""
    strangers = settings.share_of(STRANGERS)
    if settings.audit_topic is None or not is_written:
        return Audit(service, registry, strangers=strangers)
    own, replication = (
        for_purpose(client_options(settings, service), "audit"),
        max(of.replication for of in settings.by_stream.values()),
    )
    topic = Topic(settings.audit_topic, 1, replication, permission="write", kind="audit topic")
    cluster = kafka.cluster(own, [topic])
    writer = TopicWriter(own, topic.name, cluster, kafka.producer, prepare=cluster.ensure_topics)
    return Audit(service, registry, writer, cluster, strangers)


def _log(done: AuditRecord, why: object) -> None:
    who, stream = "a caller" if done.action == DELETE.lower() else "an operator", done.parameters.get("stream", ALL)
    key = f", key {done.parameters['key']}" if "key" in done.parameters else ""
    ended = done.outcome if done.outcome == "done" else f"{done.outcome}: {why}"
    details = {"action": done.action, "stream": stream}
    log.info("%s asked for %s of %s%s: %s", who, done.action, stream, key, ended, extra=details)


def _outcome_of(status: int) -> Literal["done", "refused", "failed", "unknown"]:
    if status == 0:
        return "unknown"
    if status in REFUSED:
        return "refused"
    return "done" if status < 400 else "failed"  # noqa: PLR2004 - HTTP's own line between success and error


def _given_to(scope: Scope) -> Mapping[str, Any]:
    """Return the parameters of a call, of its query and its body; of a deletion, those of its path too."""
    segments = _path_of(scope).split("/", 3)[2:] if scope.get("method") == DELETE else ()
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    body = msgspec.to_builtins(scope.get(DECODED_BODY) or {})
    given = *query, *body.items(), *zip(("stream", "key"), segments, strict=False)
    return {name: value for name, value in given if value is not None}


def _path_of(scope: Scope) -> str:
    """Return the path of a call without a slash at its end: Litestar has not seen a refused one."""
    return normalize_path(scope["path"])


def hash_of(text: object) -> str:
    """Return what a record or a log line has instead of a text that may be a key of a record."""
    return "sha256:" + sha256(str(text).encode("utf-8", "surrogatepass")).hexdigest()
