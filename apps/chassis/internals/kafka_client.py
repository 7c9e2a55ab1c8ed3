"""aiokafka's client, watched: it keeps a journal, bootstraps again, and respects quotas. A PROTECTION.

Producers, consumers and admin clients of aiokafka create their `AIOKafkaClient` themselves and show little of it.

Lost without it:

- Recovery when all known brokers are gone: Java's clients bootstrap again (KIP-899, KIP-1102).
- The address or the request that failed.
- Quotas: a throttled client looks stuck, and sends on a connection that the broker has muted (KIP-219).
- The broker's message about a refused batch, and error codes newer than 79.
- Work after a reset: uvloop raises `RuntimeError` for a request on a connection that is closing, which ends aiokafka's
  tasks for good. Java's clients reconnect.
- Batches for a new partition: a client learns of it up to 10 s later than an admin client, and fails an assertion.
- A second close, after one that was cut off: aiokafka cancels its caller then.
- A close in time: the end of an encrypted connection to a silent broker is awaited for 30 s.

Reaches for:

- the name `AIOKafkaClient` in three modules; the client's `_get_conn`, `_conns`, `_metadata_update` and options;
- `create_conn`, and the request timeout and the writer of a connection;
- a producer's `send_batch`, a coordinator's `close`;
- the topics and versions of requests; the table `kafka_errors`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

import aiokafka.admin.client
import aiokafka.client
import aiokafka.consumer.consumer
import aiokafka.producer.producer
from aiokafka import AIOKafkaProducer, errors
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, CloseReason, create_conn
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import BrokerResponseError, KafkaError, NodeNotReadyError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.produce import ProduceRequest, ProduceRequest_v8

from apps.chassis.internals.member_commits import refuse_commit_of_another_member
from apps.chassis.internals.producer_epochs import ProducerOfClient
from apps.chassis.internals.rebalance_wait import WAITING, RebalanceWait, leaving
from apps.chassis.kafka.client_journal import (
    FORGOTTEN_AFTER_S,
    REFUSED_MEMBERS,
    ClientId,
    ClientJournal,
    in_words,
    why_unreachable,
)
from apps.chassis.kafka.newer_errors import NEWER_ERRORS
from apps.chassis.observability.logs import one_line

REACHES = (
    "aiokafka.admin.client:AIOKafkaClient",
    "aiokafka.consumer.consumer:AIOKafkaClient",
    "aiokafka.producer.producer:AIOKafkaClient",
    "aiokafka.client:create_conn",
    "aiokafka.client:AIOKafkaClient.__init__ uses _conns, _ssl_context, _security_protocol, _sasl_mechanism",
    "aiokafka.client:AIOKafkaClient._get_conn(node_id, group, no_hint)",
    "aiokafka.client:AIOKafkaClient._metadata_update(cluster_metadata, topics)",
    "aiokafka.client:AIOKafkaClient.close",
    "aiokafka.client:AIOKafkaClient.send(node_id, request, group)",
    "aiokafka.client:AIOKafkaClient.coordinator_lookup(coordinator_type, coordinator_key)",
    "aiokafka.conn:create_conn(request_timeout_ms, on_close, sasl_mechanism, sasl_oauth_token_provider)",
    "aiokafka.conn:AIOKafkaConnection.__init__ uses _request_timeout, _writer",
    "aiokafka.errors:kafka_errors",
    "aiokafka.producer.producer:AIOKafkaProducer.send_batch(batch, topic, partition)",
    "aiokafka.protocol.produce:ProduceRequest._CLASSES",
    "aiokafka.protocol.produce:ProduceRequest.__init__ uses _topics",
    "aiokafka.protocol.produce:ProduceRequest_v8",
)

Untyped = Any
"""A request, an answer or an error code of a broker: aiokafka has no types for them."""
CONNECT_TIMEOUT_MS = 5_000
"""Milliseconds for a broker to accept a connection; a client opens its connections one by one."""
BOOTSTRAP_AGAIN_AFTER_S = 1.0
"""Seconds between two attempts to bootstrap again."""
MAX_THROTTLE_S = 5.0
"""Seconds that unsent records wait for a quota; records that would wait longer fail."""
NOT_A_FAILURE = {0, 27, 79}
"""Error codes of an ordinary join: none, a rebalance in progress, and a member id for the next request."""

JOIN = "join"
"""The failures of JoinGroup and SyncGroup, which end when the group gives the member its partitions."""

GOODBYE_S = 1.0
"""Seconds for brokers to confirm the end of connections: with TLS the event loop would wait 30 s for a silent one."""


class Throttled(KafkaError):  # type: ignore[misc]  # aiokafka ships no types
    """A quota delays records for longer than they may wait; they were not sent."""

    retriable = False


class WatchedClient(AIOKafkaClient):  # type: ignore[misc]  # as above
    """An `AIOKafkaClient` that records its failures and throttling in the journal of its client id."""

    def __init__(self, **options: Untyped) -> None:
        super().__init__(**options)
        client_id = options.get("client_id")
        self.journal = client_id.journal if isinstance(client_id, ClientId) else ClientJournal()
        self._bootstrapped_again = -BOOTSTRAP_AGAIN_AFTER_S
        self._unanswered: set[tuple[str, int]] = set()
        self._closing: asyncio.Task[None] | None = None
        self.rebalance = RebalanceWait(self.journal)
        self._producer = ProducerOfClient(self.journal.epochs)

    async def bootstrap(self) -> None:
        """Ask the bootstrap servers for the brokers. Raises `KafkaConnectionError` when none answers."""
        connecting = _connecting.set((self, None))
        try:
            await super().bootstrap()
        finally:
            _connecting.reset(connecting)

    async def close(self) -> None:
        """Close the connections. It goes on when the caller is cancelled: the next caller waits for the same end."""
        if self._closing is None or self._closing.done():
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        loop, open_ones = asyncio.get_running_loop(), [one for one in self._conns.values() if one._writer is not None]
        cutting = [loop.call_later(GOODBYE_S, one._writer.transport.abort) for one in open_ones]
        try:
            await super().close()
        finally:
            for one in cutting:
                one.cancel()

    async def send(
        self, node_id: Untyped, request: Untyped, *, group: Untyped = aiokafka.client.ConnectionGroup.DEFAULT
    ) -> Untyped:
        """Send a request to a broker, and record how it ended."""
        kind = type(request).__name__.removesuffix("Request")
        if kind in {"Produce", "Fetch"} and self.journal.throttled_for(node_id):
            await self._wait_for_quota(node_id, kind, request)
        elif kind == "OffsetCommit":
            refuse_commit_of_another_member(request)
        group = self.rebalance.connection_for(kind, group)
        connect = partial(self._get_conn, node_id, group=group)
        try:
            async with self.rebalance.patience(kind, node_id, request, connect):
                send = partial(super().send, node_id, group=group)
                if kind in {"Produce", "InitProducerId"}:
                    answer = await self._producer.send(request, send, lambda: self._conns.get((node_id, group)))
                else:
                    answer = await send(request)
        except KafkaError as error:
            if kind == "Produce" and not isinstance(error, NodeNotReadyError):
                self._unanswered |= _partitions_of(request)
            self._record_failure(node_id, kind, error)
            raise
        self._record_answer(node_id, kind, answer)
        return answer

    async def _wait_for_quota(self, node_id: Untyped, kind: str, request: Untyped) -> None:
        """Wait until a broker's quota lets a request pass. Raises `Throttled` for records that would wait too long.

        Records whose earlier request was not answered may have been written: they are never refused here.
        """
        seconds = self.journal.throttled_for(node_id)
        if kind == "Produce" and seconds > MAX_THROTTLE_S and not self._unanswered & _partitions_of(request):
            raise Throttled(f"a quota lets no more records pass for {seconds:.1f} s")
        await asyncio.sleep(seconds)

    def _record_failure(self, node_id: Untyped, kind: str, error: KafkaError) -> None:
        why = self.journal.reason_of(("connection", node_id)) if isinstance(error, NodeNotReadyError) else None
        what = f"{in_words(kind)} {self._name_of(node_id)}"
        self._failed(node_id, kind, why or self.journal.with_quota(f"{what} failed: {one_line(error)}"))

    def _failed(self, node_id: Untyped, kind: str, reason: str) -> None:
        if kind in WAITING:  # a round of both may take long, and the next may have another coordinator
            self.journal.failed(JOIN, reason, ongoing_s=FORGOTTEN_AFTER_S)
        else:
            self.journal.failed((kind, node_id), reason)

    def _record_answer(self, node_id: Untyped, kind: str, answer: Untyped) -> None:
        if milliseconds := getattr(answer, "throttle_time_ms", 0):
            self.journal.throttled(node_id, milliseconds / 1_000)
        if kind == "Produce":
            self._note_written(answer)
            self._keep_messages(answer)
        code = getattr(answer, "error_code", 0)
        is_member = kind == "SyncGroup" and not code
        if kind in WAITING and (code not in NOT_A_FAILURE or is_member):
            self.journal.joined()
        if code in NOT_A_FAILURE:
            self.journal.succeeded(JOIN if is_member else (kind, node_id))
            return
        said = getattr(answer, "error_message", None) or REFUSED_MEMBERS.get(code) or for_code(code).__name__
        self._failed(node_id, kind, f"{in_words(kind)} {self._name_of(node_id)} failed: {said}")

    def _note_written(self, answer: Untyped) -> None:
        """Note which records are surely written: a leader that lost its office may have handed on what it refused."""
        for topic, partitions in answer.topics:
            written = {(topic, partition) for partition, code, *_ in partitions if not code}
            refused = {(topic, partition) for partition, code, *_ in partitions if code}
            self._unanswered = self._unanswered - written | refused

    def _keep_messages(self, answer: Untyped) -> None:
        if answer.API_VERSION < ProduceRequest_v8.API_VERSION:
            return
        for topic, partitions in answer.topics:
            for partition, code, *_, of_records, message in partitions:
                if code:
                    first = next((text for _, text in of_records if text), None)
                    if said := " - ".join(dict.fromkeys(filter(None, (message, first)))):
                        self.journal.refused(topic, partition, said)

    async def coordinator_lookup(self, coordinator_type: Untyped, coordinator_key: str) -> Untyped:
        """Return the coordinator of a group or a transaction; record why none can be found."""
        what = ("coordinator", coordinator_key)
        try:
            found = await super().coordinator_lookup(coordinator_type, coordinator_key)
        except KafkaError as error:
            said = f"the coordinator of {coordinator_key} cannot be found: {one_line(error)}"
            self.journal.failed(what, self.journal.with_quota(said))
            raise
        self.journal.succeeded(what)
        return found

    async def _get_conn(self, node_id: Untyped, **options: Untyped) -> AIOKafkaConnection | None:
        found = self._conns.get((node_id, options.get("group", aiokafka.client.ConnectionGroup.DEFAULT)))
        if found is not None and found.connected():
            if not found._writer.is_closing():
                return found
            found.close(CloseReason.CONNECTION_BROKEN)  # it was reset, and its reader has not noticed yet
        connecting = _connecting.set((self, node_id))
        try:
            return await super()._get_conn(node_id, **options)
        finally:
            _connecting.reset(connecting)

    async def _metadata_update(self, cluster_metadata: Untyped, topics: Untyped) -> bool:
        if await super()._metadata_update(cluster_metadata, topics):
            return True
        if time.monotonic() - self._bootstrapped_again < BOOTSTRAP_AGAIN_AFTER_S:
            return False
        self._bootstrapped_again = time.monotonic()
        return await self._bootstrap_again(cluster_metadata, topics)

    async def _bootstrap_again(self, cluster_metadata: Untyped, topics: Untyped) -> bool:
        """Learn the brokers from the bootstrap servers: the known ones are gone, or have new addresses."""
        for host, port, _ in self.hosts:
            connecting = _connecting.set((self, None))
            try:
                options = self._options_of_connection()
                connection = await _connect(host, port, request_timeout_ms=CONNECT_TIMEOUT_MS, **options)
            except (OSError, KafkaError):  # `_connect` has recorded it
                continue
            finally:
                _connecting.reset(connecting)
            try:
                metadata = await connection.send(MetadataRequest(list(topics) if topics else None))
            except (TimeoutError, KafkaError) as error:
                said = f"{in_words('Metadata')} {host}:{port} failed: {one_line(error)}"
                self.journal.failed(("bootstrap", host, port), said, is_request=False)
                continue
            finally:
                connection.close()
            self.journal.succeeded(("bootstrap", host, port))
            if metadata.brokers:
                cluster_metadata.update_metadata(metadata)
                return True
        return False

    def _options_of_connection(self) -> dict[str, Any]:
        names = ("client_id", "ssl_context", "security_protocol", *SASL_OPTIONS)
        return {name: getattr(self, f"_{name}") for name in names}

    def _name_of(self, node_id: Untyped) -> str:
        broker = self.cluster.broker_metadata(node_id)
        return f"broker {node_id} at {broker.host}:{broker.port}" if broker else f"broker {node_id}"


SASL_OPTIONS = (
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
    "sasl_kerberos_service_name",
    "sasl_kerberos_domain_name",
    "sasl_oauth_token_provider",
)

_connecting: ContextVar[tuple[WatchedClient, Any] | None] = ContextVar("connecting", default=None)
"""The client that opens a connection, and the broker's number. aiokafka drops the reason of a failure."""


async def _connect(host: str, port: int, *, request_timeout_ms: int, **options: Untyped) -> AIOKafkaConnection:
    """Open a connection within 5 s for each step; record in the client's journal whether that worked."""
    client, node_id = _connecting.get() or (None, None)
    what = ("bootstrap", host, port) if node_id is None else ("connection", node_id)
    try:
        timeout = min(CONNECT_TIMEOUT_MS, request_timeout_ms)
        connection = await create_conn(host, port, request_timeout_ms=timeout, **options)
    except (OSError, KafkaError) as error:
        if client is not None:
            broker = "" if node_id is None else f"broker {node_id} at "
            reason = f"{broker}{host}:{port} cannot be reached: {why_unreachable(error)}"
            client.journal.failed(what, reason, is_request=False)
        raise
    if client is not None:
        client.journal.succeeded(what)
    connection._request_timeout = request_timeout_ms / 1_000
    return connection


def _partitions_of(request: Untyped) -> set[tuple[str, int]]:
    topics = request._topics
    return {(topic, partition) for topic, partitions in topics for partition, *_ in partitions}


def _to_new_partitions(send_batch: Callable[..., Awaitable[Untyped]]) -> Callable[..., Awaitable[Untyped]]:
    """Return a producer's `send_batch`, which asks the brokers for a partition that the client does not know."""

    @wraps(send_batch)
    async def send(producer: AIOKafkaProducer, batch: Untyped, topic: str, *, partition: int) -> Untyped:
        if partition not in await producer.partitions_for(topic):
            await producer.client.force_metadata_update()
            if partition not in await producer.partitions_for(topic):
                raise UnknownTopicOrPartitionError(f"the broker knows no partition {partition} of topic {topic}")
        return await send_batch(producer, batch, topic, partition=partition)

    return send


def watch_kafka_clients() -> None:
    """Make aiokafka create watched clients from now on."""
    if aiokafka.client.create_conn is _connect:
        return
    for module in (aiokafka.admin.client, aiokafka.consumer.consumer, aiokafka.producer.producer):
        module.AIOKafkaClient = WatchedClient
    aiokafka.client.create_conn = _connect
    AIOKafkaProducer.send_batch = _to_new_partitions(AIOKafkaProducer.send_batch)
    GroupCoordinator.close = leaving(GroupCoordinator.close)
    if ProduceRequest_v8 not in ProduceRequest._CLASSES:
        ProduceRequest._CLASSES += (ProduceRequest_v8,)
    for code, (name, retriable) in NEWER_ERRORS.items():
        members = {"errno": code, "message": name, "description": "", "retriable": retriable}
        errors.kafka_errors.setdefault(code, type(name, (BrokerResponseError,), members))
