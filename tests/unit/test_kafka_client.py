"""Every client of aiokafka is watched: against brokers that answer as the test says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import aiokafka.client
import aiokafka.consumer.consumer
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import (
    KafkaConnectionError,
    NodeNotReadyError,
    NotLeaderForPartitionError,
    RequestTimedOutError,
    UnknownTopicOrPartitionError,
)
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import JoinGroupRequest, SyncGroupRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.structs import BrokerMetadata, TopicPartition
from faststream.kafka import KafkaBroker
from samples import LONG, everything_else_has_run

from apps.chassis.internals import kafka_client
from apps.chassis.internals.kafka_client import Throttled, WatchedClient, watch_kafka_clients
from apps.chassis.internals.record_fetching import read_fetched_fast
from apps.chassis.kafka import connection
from apps.chassis.kafka.client_journal import ClientId
from tests.fakes import Clock
from tools.ports import free_ports

pytestmark = pytest.mark.anyio
PRODUCE = ProduceRequest(None, -1, 1_000, [("events", [(0, b"")])])
FETCH = FetchRequest(1, 1, 1, 0, [])
NODE = 1
Answer = Callable[[], Any]


@pytest.fixture
async def client() -> AsyncIterator[WatchedClient]:
    made = WatchedClient(bootstrap_servers=f"127.0.0.1:{free_ports(1)[0]}", client_id=ClientId("consumer"))
    yield made
    await made.close()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What brokers answer to one request after the other: an answer, or an error that is raised."""
    given: list[Any] = []

    async def send(*_: Any, **__: Any) -> Any:  # noqa: ANN401 - of aiokafka
        await asyncio.sleep(0)
        answer = given.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(AIOKafkaClient, "send", send)
    return given


def produced(code: int = 0, message: str | None = None, of_record: str | None = None, throttle_ms: int = 0) -> Any:  # noqa: ANN401 - an answer
    partition = (0, code, 0, 0, 0, [(0, of_record)] if of_record else [], message)
    return SimpleNamespace(throttle_time_ms=throttle_ms, API_VERSION=8, topics=[("events", [partition])])


def test_what_is_reached_for_looks_as_expected_and_all_clients_are_watched() -> None:
    watch_kafka_clients()
    watch_kafka_clients()
    assert aiokafka.consumer.consumer.AIOKafkaClient is WatchedClient
    assert errors.for_code(87).__name__ == "InvalidRecordError"
    assert not errors.for_code(87).retriable


async def test_a_request_that_failed_is_reported_with_its_broker_until_one_succeeds(
    client: WatchedClient, answers: list[Any]
) -> None:
    answers += [RequestTimedOutError(), SimpleNamespace(throttle_time_ms=0, error_code=0)]
    with pytest.raises(RequestTimedOutError):
        await client.send(NODE, FETCH)
    assert str(client.journal.last_failure()).startswith("reading records from broker 1 failed: ")
    await client.send(NODE, FETCH)
    assert client.journal.last_failure() is None


async def test_a_request_that_failed_while_a_quota_held_it_up_is_reported_with_the_quota(
    client: WatchedClient, answers: list[Any]
) -> None:
    client.journal.throttled(NODE, 0.01)
    answers.append(RequestTimedOutError())
    with pytest.raises(RequestTimedOutError):
        await client.send(NODE, FETCH)
    assert str(client.journal.last_failure()).endswith("; Kafka throttles this client by its quota")
    client.cluster._brokers = {NODE: BrokerMetadata(NODE, "127.0.0.1", 1, None)}
    answers.append(RequestTimedOutError())
    with pytest.raises(RequestTimedOutError):
        await client.coordinator_lookup(CoordinationType.GROUP, "group")
    found = client.journal.reason_of(("coordinator", "group"))
    assert str(found).endswith("RequestTimedOutError; Kafka throttles this client by its quota")


async def test_a_broker_that_cannot_be_reached_is_reported_with_its_address(client: WatchedClient) -> None:
    (port,) = free_ports(1)
    broker = BrokerMetadata(NODE, "127.0.0.1", port, None)
    client.cluster._brokers = {NODE: broker}
    watch_kafka_clients()
    with pytest.raises(NodeNotReadyError):
        await client.send(NODE, FETCH)
    address = f"broker 1 at 127.0.0.1:{port}"
    assert client.journal.reason_of(("connection", NODE)) == f"{address} cannot be reached: connection refused"
    assert client.journal.last_failure() == f"{address} cannot be reached: connection refused"


async def test_an_answer_with_an_error_is_a_failure_of_its_request(client: WatchedClient, answers: list[Any]) -> None:
    answers.append(SimpleNamespace(throttle_time_ms=0, error_code=15, error_message=None))
    await client.send(NODE, FETCH)
    assert client.journal.last_failure() == "reading records from broker 1 failed: GroupCoordinatorNotAvailableError"


@pytest.mark.parametrize(("code", "setting"), [(23, "GROUP_ID"), (26, "session_timeout_s"), (81, "group.max.size")])
async def test_a_group_that_takes_no_member_is_reported_with_the_setting_to_change(
    client: WatchedClient, answers: list[Any], code: int, setting: str
) -> None:
    answers.append(SimpleNamespace(throttle_time_ms=0, error_code=code))
    await client.send(NODE, JoinGroupRequest("group", 1, 1, "", None, "consumer", []))
    reason = str(client.journal.last_failure())
    assert reason.startswith("joining the group at broker 1 failed: it")
    assert setting in reason


async def test_a_member_waits_for_its_rebalance_until_it_is_given_its_partitions(
    client: WatchedClient, answers: list[Any]
) -> None:
    join = JoinGroupRequest("group", 1, 1, "", None, "consumer", [])
    sync = SyncGroupRequest("group", 1, "member", None, [])
    for code, waits in ((79, True), (0, True)):
        answers.append(SimpleNamespace(throttle_time_ms=0, error_code=code))
        await client.send(NODE, join)
        assert (client.journal.awaited_rebalance(after_s=-1) is not None) == waits
    for code, waits in ((27, True), (0, False)):
        answers.append(SimpleNamespace(throttle_time_ms=0, error_code=code))
        await client.send(NODE, sync)
        assert (client.journal.awaited_rebalance(after_s=-1) is not None) == waits


async def test_a_group_that_no_member_gets_into_is_reported_until_one_is_given_its_partitions(
    client: WatchedClient, answers: list[Any]
) -> None:
    client.journal._now = clock = Clock()

    async def ask(request: JoinGroupRequest | SyncGroupRequest, code: int, node: int = NODE) -> None:
        answers.append(SimpleNamespace(throttle_time_ms=0, error_code=code))
        await client.send(node, request)

    join = JoinGroupRequest("group", 1, 1, "", None, "consumer", [])
    sync = SyncGroupRequest("group", 1, "member", None, [])
    for _ in range(2):
        await ask(join, 0)
        clock.now += 5
        await ask(sync, 15)
    reason = "joining the group at broker 1 failed: GroupCoordinatorNotAvailableError"
    for request, code in ((join, 79), (join, 0), (sync, 27), (join, 0)):
        clock.now += 6
        await ask(request, code)
        assert client.journal.lasting_failure() == reason
    await ask(sync, 0, node=2)
    assert client.journal.lasting_failure() is None


async def test_an_answer_may_take_as_long_as_the_rebalance_it_waits_for(
    client: WatchedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = client._conns[NODE, ConnectionGroup.DEFAULT] = OpenConnection()
    patience: list[float] = []

    async def send(*_: object, **__: object) -> Any:  # noqa: ANN401 - an answer
        patience.append(connection._request_timeout)
        return SimpleNamespace(throttle_time_ms=0, error_code=0)

    monkeypatch.setattr(AIOKafkaClient, "send", send)
    join = JoinGroupRequest("group", 45_000, 30_000, "", None, "consumer", [])
    for request in (join, SyncGroupRequest("group", 1, "member", None, []), FETCH):
        await client.send(NODE, request)
    assert patience == [35.0, 35.0, 20.0]
    assert connection._request_timeout == 20.0


async def test_commits_and_the_end_of_a_member_pass_by_the_rebalance_it_waits_for(
    client: WatchedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker answers nothing else on the connection of a request that waits."""
    client._conns[NODE, ConnectionGroup.COORDINATION] = OpenConnection()
    left = asyncio.Event()
    sent: list[tuple[str, ConnectionGroup]] = []

    async def send(_: object, __: int, request: Any, *, group: ConnectionGroup) -> Any:  # noqa: ANN401 - as aiokafka has it
        sent.append((type(request).__name__, group))
        if isinstance(request, JoinGroupRequest):
            await left.wait()
        return SimpleNamespace(throttle_time_ms=0, error_code=0)

    monkeypatch.setattr(AIOKafkaClient, "send", send)
    commit = OffsetCommitRequest("group", 1, "member", -1, [])
    join = JoinGroupRequest("group", 45_000, 30_000, "member", None, "consumer", [])
    joining = asyncio.create_task(client.send(NODE, join, group=ConnectionGroup.COORDINATION))
    await everything_else_has_run()
    await client.send(NODE, commit, group=ConnectionGroup.COORDINATION)
    await client.rebalance.end(client.send)
    left.set()
    await joining
    await client.rebalance.end(client.send)
    await client.send(NODE, commit, group=ConnectionGroup.COORDINATION)
    assert sent == [
        ("JoinGroupRequest", ConnectionGroup.COORDINATION),
        ("OffsetCommitRequest", ConnectionGroup.DEFAULT),
        ("LeaveGroupRequest", ConnectionGroup.DEFAULT),
        ("OffsetCommitRequest", ConnectionGroup.COORDINATION),
    ]


async def test_a_member_whose_batch_kept_it_from_joining_leaves_when_it_is_closed(
    client: WatchedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It joined once its handler was cancelled, and the group waited for it up to 45 s after its SIGTERM."""
    client._conns[NODE, ConnectionGroup.COORDINATION] = OpenConnection()
    sent: list[str] = []

    async def send(_: object, __: int, request: Any, **_options: object) -> Any:  # noqa: ANN401 - as aiokafka has it
        sent.append(type(request).__name__)
        return SimpleNamespace(throttle_time_ms=0, error_code=25)

    monkeypatch.setattr(AIOKafkaClient, "send", send)
    join = JoinGroupRequest("group", 45_000, 30_000, "member", None, "consumer", [])
    await client.rebalance.end(client.send)
    await client.send(NODE, join, group=ConnectionGroup.COORDINATION)
    assert sent == ["LeaveGroupRequest", "JoinGroupRequest"]


async def test_a_stop_that_is_cut_off_leaves_no_client_open(monkeypatch: pytest.MonkeyPatch) -> None:
    watch_kafka_clients()
    broker = KafkaBroker()
    subscriber = broker.subscriber("events", batch=True, group_id="group")
    consumer = subscriber.consumer = AIOKafkaConsumer(client_id=ClientId("consumer"))
    consumer._closed = True  # its stop has begun

    async def hang() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(broker, "stop", hang)
    monkeypatch.setattr(connection, "STOP_TIMEOUT_S", 0.0)
    await connection.close(broker)
    assert consumer._client._closing.done()


async def test_the_brokers_words_about_a_refused_batch_are_kept(client: WatchedClient, answers: list[Any]) -> None:
    answers.append(produced(32, "rejected", "Timestamp 5 is out of range"))
    await client.send(NODE, PRODUCE)
    assert client.journal.take_message("events", 0) == "rejected - Timestamp 5 is out of range"


async def test_records_wait_for_a_quota_that_lets_them_pass_soon(client: WatchedClient, answers: list[Any]) -> None:
    answers += [produced(throttle_ms=300), produced()]
    await client.send(NODE, PRODUCE)
    assert client.journal.throttled_for(NODE) > 0
    await client.send(NODE, PRODUCE)
    assert client.journal.throttled_for(NODE) == 0
    assert answers == []


async def test_records_that_would_wait_long_for_a_quota_are_not_sent(client: WatchedClient, answers: list[Any]) -> None:
    answers += [produced(throttle_ms=60_000), produced()]
    await client.send(NODE, PRODUCE)
    with pytest.raises(Throttled, match="quota"):
        await client.send(NODE, PRODUCE)
    assert len(answers) == 1
    assert not Throttled.retriable


async def test_records_that_may_have_been_written_are_never_said_to_be_unsent(
    client: WatchedClient, answers: list[Any]
) -> None:
    answers.append(RequestTimedOutError())
    with pytest.raises(RequestTimedOutError):
        await client.send(NODE, PRODUCE)
    client.journal.throttled(NODE, 60.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.send(NODE, PRODUCE), 0.05)  # it waits instead


async def test_records_that_a_leader_answered_with_an_error_are_never_said_to_be_unsent(
    client: WatchedClient, answers: list[Any]
) -> None:
    answers += [produced(NotLeaderForPartitionError.errno), produced(), produced()]
    await client.send(NODE, PRODUCE)
    client.journal.throttled(NODE, 60.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.send(NODE, PRODUCE), 0.05)  # the followers may have it: it waits
    client.journal._throttled_until.clear()
    await client.send(NODE, PRODUCE)
    client.journal.throttled(NODE, 60.0)
    with pytest.raises(Throttled):
        await client.send(NODE, PRODUCE)


class FakeConnection:
    """Answers with the metadata of a cluster."""

    _writer = None

    def __init__(self, brokers: list[tuple[int, str, int, str | None]]) -> None:
        self.closed = False
        self._brokers = brokers

    async def send(self, _: object) -> Any:  # noqa: ANN401 - an answer
        return SimpleNamespace(brokers=self._brokers, topics=[], API_VERSION=1, controller_id=NODE)

    def close(self) -> None:
        self.closed = True


async def test_a_client_closes_though_a_broker_does_not_confirm_the_end_of_its_encrypted_connection(
    client: WatchedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_client, "GOODBYE_S", 0.01)
    client._conns[NODE, ConnectionGroup.DEFAULT] = OpenConnection(is_slow=True)
    await asyncio.wait_for(client.close(), 10)


async def test_a_client_whose_brokers_are_all_gone_asks_the_bootstrap_servers_again(
    client: WatchedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: object, **__: object) -> AIOKafkaConnection:
        raise ConnectionRefusedError

    elsewhere = FakeConnection([(NODE, "elsewhere", 9092, None)])

    async def reached(*_: object, **__: object) -> FakeConnection:
        return elsewhere

    client.cluster._brokers = {NODE: BrokerMetadata(NODE, "gone", 9092, None)}
    monkeypatch.setattr(kafka_client, "create_conn", gone)
    assert await client._metadata_update(client.cluster, []) is False
    assert client.cluster.broker_metadata(NODE).host == "gone"
    monkeypatch.setattr(kafka_client, "create_conn", reached)
    monkeypatch.setattr(client, "_bootstrapped_again", -LONG)
    monkeypatch.setattr(AIOKafkaClient, "_get_conn", _no_connection)
    assert await client._metadata_update(client.cluster, []) is True
    assert client.cluster.broker_metadata(NODE).host == "elsewhere"
    assert elsewhere.closed


async def _no_connection(*_: object, **__: object) -> None:
    return None


async def test_bootstrapping_again_is_not_tried_all_the_time(
    client: WatchedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def gone(host: str, *_: object, **__: object) -> AIOKafkaConnection:
        tried.append(host)
        raise KafkaConnectionError

    monkeypatch.setattr(kafka_client, "create_conn", gone)
    for _ in range(5):
        await client._metadata_update(client.cluster, [])
    assert tried == ["127.0.0.1"]


class OpenConnection:
    """A connection that closes when the test says so, or at once, or whose peer has reset it."""

    def __init__(self, *, is_reset: bool = False, is_slow: bool = False) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not is_slow:
            self.ended.set_result(None)
        self.closed_for: list[CloseReason] = []
        self._request_timeout = 20.0
        self._writer = SimpleNamespace(is_closing=lambda: is_reset, transport=SimpleNamespace(abort=self.abort))

    def connected(self) -> bool:
        return not self.closed_for

    def abort(self) -> None:
        self.ended.set_result(None)

    def close(self, reason: CloseReason) -> "asyncio.Future[None]":
        self.closed_for.append(reason)
        return self.ended


async def test_a_connection_that_was_reset_is_not_used_again_before_its_reader_has_noticed(
    client: WatchedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    async def opens(*_: object, **__: object) -> OpenConnection:
        opened.append(OpenConnection())
        return opened[-1]

    monkeypatch.setattr(aiokafka.client, "create_conn", opens)
    client.cluster._brokers = {NODE: BrokerMetadata(NODE, "here", 9092, None)}
    reset = client._conns[NODE, ConnectionGroup.DEFAULT] = OpenConnection(is_reset=True)
    found = await client._get_conn(NODE)
    assert [found] == opened
    assert reset.closed_for == [CloseReason.CONNECTION_BROKEN]
    assert await client._get_conn(NODE) is found


async def test_a_client_can_be_closed_again_after_a_close_that_was_cut_off(client: WatchedClient) -> None:
    connection = client._conns[NODE, ConnectionGroup.DEFAULT] = OpenConnection(is_slow=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.close(), 0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.close(), 0.01)
    connection.ended.set_result(None)
    await client.close()


async def test_a_consumer_closes_while_a_fetch_waits_to_be_tried_again(
    client: WatchedClient, answers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.cluster, "leader_for_partition", lambda _: NODE)
    partitions = SubscriptionState()
    partitions.assign_from_user({events := TopicPartition("events", 0)})
    partitions.seek(events, 0)
    read_fetched_fast()
    answers.append(KafkaConnectionError())
    fetcher = Fetcher(client, partitions, retry_backoff_ms=int(LONG * 1_000))
    await everything_else_has_run()
    assert answers == []
    async with asyncio.timeout(LONG):
        await fetcher.close()


async def test_a_batch_for_a_new_partition_is_sent_once_the_client_has_asked_for_it() -> None:
    known, sent = {0}, []

    async def partitions_for(_: str) -> set[int]:
        return known

    async def look() -> None:
        known.add(1)

    async def send_batch(_: object, batch: str, topic: str, *, partition: int) -> None:
        sent.append((batch, topic, partition))

    producer = SimpleNamespace(partitions_for=partitions_for, client=SimpleNamespace(force_metadata_update=look))
    send = kafka_client._to_new_partitions(send_batch)
    await send(producer, "batch", "events", partition=1)
    with pytest.raises(UnknownTopicOrPartitionError, match="no partition 2 of topic events"):
        await send(producer, "batch", "events", partition=2)
    assert sent == [("batch", "events", 1)]
    watch_kafka_clients()
    assert hasattr(AIOKafkaProducer.send_batch, "__wrapped__")
