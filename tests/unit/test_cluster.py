"""The report of a cluster that cannot be used names what is wrong with it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    InvalidReplicationFactorError,
    KafkaConnectionError,
    NodeNotReadyError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from faststream.kafka import KafkaBroker
from samples import until

from apps.chassis.kafka import cluster as module
from apps.chassis.kafka import diagnosis as diagnosis_module
from apps.chassis.kafka.admin import Admin
from apps.chassis.kafka.client_journal import ClientId, ClientJournal
from apps.chassis.kafka.clients import ClientOptions, client_options
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.connection import Connection
from apps.chassis.kafka.diagnosis import Address, Probe
from apps.chassis.kafka.topic_settings import Difference, Topic, Unusable, create
from apps.chassis.kafka.topics import marks_topic
from apps.chassis.settings import Settings, StreamSettings


@pytest.fixture
def options() -> ClientOptions:
    return client_options(Settings(), "consumer")


def test_a_partition_whose_leader_cannot_be_reached_is_reported_with_the_reason(options: ClientOptions) -> None:
    cluster = Cluster(options, [])
    partition: dict[str, Any] = {"partition": 3, "leader": 2, "replicas": [1, 2], "isr": [1, 2]}
    described = {"topic": "events", "error_code": 0, "partitions": [partition]}
    silent = "topic events: partition 3 has no leader that answers: broker 2 is silent"
    assert cluster._trouble_of(described, {1}) == silent
    led_by_none = described | {"partitions": [partition | {"leader": -1}]}
    assert cluster._trouble_of(led_by_none, {1}) == "topic events: partition 3 has no leader"
    options["client_id"].journal.failed(("connection", 2), "broker:9092 cannot be reached: connection refused")
    assert cluster._trouble_of(described, {1}) == (
        "topic events: partition 3 has no leader that answers: broker:9092 cannot be reached: connection refused"
    )


@pytest.mark.parametrize(
    ("replicas", "in_sync", "trouble"),
    [
        ([1], [1], None),
        ([1, 2, 3], [1, 3], None),
        ([1, 2], [1], "topic events: partition 0 has 1 of 2 in-sync replicas"),
        ([1, 2, 3], [1], "topic events: partition 0 has 1 of 2 in-sync replicas"),
    ],
)
def test_no_more_replicas_need_to_be_in_sync_than_a_partition_has(
    options: ClientOptions, replicas: list[int], in_sync: list[int], trouble: str | None
) -> None:
    cluster = Cluster(options, [])
    cluster.configs["events"] = {"min.insync.replicas": "2"}
    partition: dict[str, Any] = {"partition": 0, "leader": 1, "replicas": replicas, "isr": in_sync}
    described = {"topic": "events", "error_code": 0, "partitions": [partition]}
    assert cluster._trouble_of(described, {1, 2, 3}) == trouble
    assert (0 in cluster.unusable["events"]) == (trouble is not None)


@pytest.mark.anyio
async def test_a_marks_topic_that_takes_no_marks_makes_no_stream_unavailable_and_is_named(
    options: ClientOptions, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_sync = [1]

    class Lacking(Cluster):
        """Its marks topic lacks a replica, and then has it."""

        async def _find(self) -> str | None:
            self.configs["events-dlt-redriven"] = {"min.insync.replicas": "2"}
            partition = {"partition": 0, "leader": 1, "replicas": [1, 2], "isr": in_sync}
            return self._trouble_of(
                {"topic": "events-dlt-redriven", "error_code": 0, "partitions": [partition]}, {1, 2}
            )

    monkeypatch.setattr(module, "FRESH_S", 0.0)
    settings = StreamSettings(topic="events", dead_letter_topic="events-dlt", group_id="events-consumer")
    cluster = Lacking(options, [marks_topic(settings)])
    lacks = "topic events-dlt-redriven: partition 0 has 1 of 2 in-sync replicas (redrives, discards and purges need it)"
    assert await cluster.trouble() is None
    assert await cluster.trouble() is None
    assert list(cluster.limits.values()) == [lacks]
    assert cluster.at_risk("events are consumed") == f"events are consumed; {lacks}"
    assert caplog.messages == [lacks]
    in_sync.append(2)
    assert await cluster.trouble() is None
    assert cluster.at_risk("events are consumed") == "events are consumed"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a:1", "b:1"], "not all brokers of Kafka can be reached (b:1: no answer in time)"),
        (["b:1"], "Kafka at b:1 is out of reach (b:1: no answer in time)"),
        (["a:1"], "Kafka at a:1 answers, but names a broker at b:1 (its advertised.listeners)"),
    ],
)
async def test_an_advertised_address_is_blamed_only_where_it_is_not_itself_given(
    options: ClientOptions, monkeypatch: pytest.MonkeyPatch, given: list[str], said: str
) -> None:
    async def probe(address: Address, _: ClientOptions) -> Probe:
        if address == ("b", 1):
            return Probe(address, unreachable="no answer in time")
        return Probe(address, named=frozenset({("a", 1), ("b", 1)}))

    monkeypatch.setattr(diagnosis_module, "_probe", probe)
    options["bootstrap_servers"] = given
    assert str(await diagnosis_module.diagnosis(options)).startswith(said)


@pytest.mark.anyio
async def test_where_every_broker_lets_us_in_the_request_that_failed_is_reported(
    options: ClientOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing_wrong(_: ClientOptions) -> None:
        return None

    monkeypatch.setattr(module, "diagnosis", nothing_wrong)
    cluster = Cluster(options, [])
    says = "Kafka at localhost:9092 answers with an error: "
    assert await cluster._out_of_reach(TimeoutError()) == f"{says}TimeoutError"
    options["client_id"].journal.failed(("Metadata", 1), "no answer to Metadata from broker:9092")
    assert await cluster._out_of_reach(NodeNotReadyError()) == f"{says}no answer to Metadata from broker:9092"


@pytest.mark.anyio
async def test_what_was_found_of_the_topics_holds_while_a_quota_holds_up_the_answers(
    options: ClientOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Delayed(Cluster):
        """Answers once, then too late."""

        async def _find(self) -> str | None:
            if self.reached:
                raise TimeoutError
            self.reached = True
            return None

    async def diagnosis(_: ClientOptions) -> str:
        return "no answer in time"

    monkeypatch.setattr(module, "diagnosis", diagnosis)
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    cluster = Delayed(options, [])
    assert await cluster.trouble() is None
    options["client_id"].journal.throttled(1, 1.0)
    assert (await cluster.trouble(), cluster.reached) == (None, True)
    cluster._journal = ClientJournal()
    assert (await cluster.trouble(), cluster.reached) == ("no answer in time", False)


@pytest.mark.anyio
async def test_trouble_has_lasted_since_it_was_first_found(
    options: ClientOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter(["no leader", "no leader", None, "no leader"])

    class Troubled(Cluster):
        async def _find(self) -> str | None:
            return next(found)

    monkeypatch.setattr(module, "FRESH_S", 0.0)
    cluster, since, last = Troubled(options, []), [], []
    newest = [cluster.trouble_at]
    for _ in range(4):
        await cluster.trouble()
        newest.append(cluster.trouble_at)
        since.append(cluster.trouble_since)
        last.append(cluster.last_trouble)
    first, second, well, anew = since
    assert last == [("no leader", first)] * 3 + [("no leader", anew)]
    assert first is not None
    assert (second, well) == (first, None)
    assert anew is not None
    assert anew > first
    before, at_first, at_second, while_well, at_last = newest
    assert before < at_first < at_second == while_well < at_last


@pytest.mark.anyio
async def test_a_cluster_that_does_not_answer_in_time_has_a_time_too(
    options: ClientOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(Cluster):
        async def _find(self) -> str | None:
            await asyncio.Event().wait()
            return None

    monkeypatch.setattr(module, "ANSWER_S", 0.0)
    cluster = Silent(options, [])
    async with cluster.open():
        trouble = await cluster.trouble()
        assert cluster.last_trouble == (trouble, cluster.trouble_since)
        assert (trouble is None, cluster.trouble_since is None) == (False, False)
        options["client_id"].journal.throttled(1, 60.0)
        assert await cluster.trouble() == f"{trouble}; Kafka throttles this client by its quota"
        cluster.reached, cluster._found = True, "no leader"
        assert await cluster.trouble() == "no leader; Kafka throttles this client by its quota"


@pytest.mark.anyio
async def test_a_topic_that_is_not_there_yet_at_the_start_is_no_trouble_later(options: ClientOptions) -> None:
    class Starting(Cluster):
        async def _find(self) -> str | None:
            return "topic events: UnknownTopicOrPartitionError"

    cluster = Starting(options, [Topic("events", 6, 1)])
    assert await cluster.trouble()
    assert cluster.last_trouble == (None, None)


@pytest.mark.anyio
async def test_settings_are_checked_while_the_topics_cannot_be_used_because_they_may_be_the_cause(
    options: ClientOptions,
) -> None:
    class Lacking(Cluster):
        """Needs two replicas as long as its settings were not read again."""

        async def trouble(self) -> str | None:
            return None if self.configs else "topic events: partition 0 has 1 of 2 in-sync replicas"

        async def check_settings(self) -> None:
            self.configs["events"] = {"min.insync.replicas": "1"}
            checked.set()

    checked = asyncio.Event()
    cluster = Lacking(options, [Topic("events", 1, 1)])
    watching = asyncio.create_task(cluster.watch(every_s=0.001))
    async with asyncio.timeout(10):
        await checked.wait()
    watching.cancel()
    assert await cluster.trouble() is None


@pytest.mark.anyio
async def test_a_configuration_that_may_no_longer_be_read_is_told_and_hides_no_difference_of_other_topics(
    options: ClientOptions, caplog: pytest.LogCaptureFixture
) -> None:
    denied = {"events"}

    class Denied(Cluster):
        async def _differences(self, topic: Topic, _: AIOKafkaAdminClient) -> list[Difference]:
            if topic.name in denied:
                raise Unusable("no permission to read the configuration")
            return (
                []
                if topic.name == "events"
                else [Difference("cleanup.policy", "compact", "delete", "letters are lost")]
            )

    cluster = Denied(options, [Topic("events", 1, 1), Topic("events-dlt", 1, 1)])
    cluster._admin = cast(Any, SimpleNamespace(ask=lambda ask: ask(None)))
    with pytest.raises(Unusable):
        await cluster.check_settings()
    assert cluster.reports["events"] == ["no permission to read the configuration"]
    assert cluster.reports["events-dlt"]
    assert "no permission to read the configuration" in cluster.at_risk("events are consumed")
    assert "no permission to read the configuration" in caplog.text
    denied.clear()
    await cluster.check_settings()
    assert "no permission" not in cluster.at_risk("events are consumed")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("code", "logged"),
    [(0, ["created topic events: 1 partitions, replication 1"]), (TopicAlreadyExistsError.errno, [])],
)
async def test_a_topic_is_logged_as_created_only_by_the_instance_that_created_it(
    code: int,
    logged: list[str],
    options: ClientOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    use_creators(monkeypatch, Creator(code))
    with caplog.at_level("INFO"):
        assert await create(options, [Topic("events", 1, 1)]) == {"events": None}
    assert caplog.messages == logged


@pytest.mark.anyio
async def test_a_topic_that_kafka_refuses_to_create_is_reported_with_the_reason_and_asked_for_again(
    options: ClientOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = Creator(InvalidReplicationFactorError.errno, "only 1 broker")

    class Lacking(Cluster):
        async def trouble(self) -> str | None:
            return self._journal.with_quota(str(self._trouble_of(missing("events"), set())))

    use_creators(monkeypatch, Creator(), refusing)
    monkeypatch.setattr(module, "describe_topics", all_missing)
    cluster = Lacking(options, [Topic("events", 1, 3)])
    with pytest.raises(Unusable):
        await cluster.ensure_topics()
    assert await cluster.trouble() == "topic events cannot be created: InvalidReplicationFactorError only 1 broker"
    options["client_id"].journal.throttled(1, 60.0)
    watching = asyncio.create_task(cluster.watch(every_s=0.001))
    await until(lambda: len(refusing.created) > 2)
    watching.cancel()


@pytest.mark.anyio
async def test_a_quota_on_the_creation_of_topics_holds_up_no_question_about_them(
    options: ClientOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Settled(Cluster):
        async def _differences(self, topic: Topic, _: object) -> list[Difference]:
            self.configs[topic.name] = {}
            return []

        async def _denied(self, *_: object) -> None: ...

        async def _find(self) -> str | None:
            raise TimeoutError

    monkeypatch.setattr(module, "FRESH_S", 0.0)
    creator, asking = Creator(throttle_s=300.0), Creator()
    use_creators(monkeypatch, asking, creator)
    monkeypatch.setattr(module, "describe_topics", all_missing)
    cluster = Settled(options, [Topic("events", 1, 1), Topic("events-dlt", 1, 1)])
    cluster.reached = True
    options["client_id"].journal.throttled(1, 60.0)  # by another quota
    assert str(await cluster.trouble()).startswith("the topics are not checked yet")
    cluster._found = "topic events: UnknownTopicOrPartitionError"
    assert str(await cluster.trouble()).startswith(cluster._found)
    options["client_id"].journal = ClientJournal()
    await cluster.ensure_topics()
    assert creator.created == [["events", "events-dlt"]], "the second would wait for the quota"
    assert (creator.is_open, asking.is_open) == (False, True)
    assert not options["client_id"].journal.is_held_up()
    assert await cluster.trouble() is None, "they are known to be there"


@pytest.mark.anyio
async def test_a_quota_that_holds_up_answers_is_named_beside_what_it_causes(
    options: ClientOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Delayed(Cluster):
        """Answers no question in time."""

        async def _find(self) -> str | None:
            raise TimeoutError

    async def nothing_wrong(_: ClientOptions) -> None:
        return None

    monkeypatch.setattr(module, "diagnosis", nothing_wrong)
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    cluster = Delayed(options, [])
    assert "quota" not in str(await cluster.trouble())
    options["client_id"].journal.throttled(1, 60.0)
    says = "Kafka at localhost:9092 answers with an error: TimeoutError; Kafka throttles this client by its quota"
    assert await cluster.trouble() == says
    cluster.reached, cluster._found = True, "topic events: UnknownTopicOrPartitionError"
    says = "topic events: UnknownTopicOrPartitionError; Kafka throttles this client by its quota"
    assert [await cluster.trouble() for _ in range(2)] == [says, says]


@pytest.mark.anyio
async def test_a_quota_that_delays_the_first_check_of_the_topics_is_named(
    options: ClientOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    class There(Cluster):
        async def _find(self) -> str | None:
            self.reached = True
            return None

    monkeypatch.setattr(module, "FRESH_S", 0.0)
    cluster = There(options, [Topic("events", 1, 1)])
    assert await cluster.trouble() is None
    options["client_id"].journal.throttled(1, 60.0)
    says = "the topics are not checked yet; Kafka throttles this client by its quota"
    assert await cluster.trouble() == says
    cluster.configs["events"] = {}
    assert await cluster.trouble() is None


@pytest.mark.anyio
async def test_a_quota_that_delays_the_first_connection_is_named() -> None:
    journal = ClientJournal()
    connection = Connection(lambda: cast(KafkaBroker, None), nothing, journal)
    assert connection.trouble() == "not connected yet"
    journal.throttled(1, 60.0)
    assert connection.trouble() == "not connected yet; Kafka throttles this client by its quota"
    why = connection._why_not_started(TimeoutError("no connection within 45 s"), "localhost:9092")
    assert why == "TimeoutError: no connection within 45 s; Kafka throttles this client by its quota"


async def nothing() -> None: ...


def missing(topic: str) -> dict[str, Any]:
    return {"topic": topic, "error_code": UnknownTopicOrPartitionError.errno}


async def all_missing(_: object, topics: Sequence[str]) -> list[dict[str, Any]]:
    return [missing(topic) for topic in topics]


class Creator:
    """An admin client that answers a creation with an error code; Kafka then throttles it."""

    def __init__(self, code: int = 0, message: str | None = None, throttle_s: float = 0.0) -> None:
        self.created: list[list[str]] = []
        self.is_open = True
        self.journal = ClientJournal()
        self._said = code, message
        self._throttle_s = throttle_s

    async def start(self) -> None: ...

    async def create_topics(self, topics: Sequence[NewTopic]) -> SimpleNamespace:
        self.created.append([topic.name for topic in topics])
        self.journal.throttled(1, self._throttle_s)
        return SimpleNamespace(topic_errors=[(topic.name, *self._said) for topic in topics])

    async def close(self) -> None:
        self.is_open = False


def use_creators(monkeypatch: pytest.MonkeyPatch, *made: Creator) -> None:
    """Give out these admin clients, one after another; the last again and again."""
    left = list(made)

    def give(client_id: ClientId, **_: object) -> Creator:
        given = left.pop(0) if len(left) > 1 else left[0]
        given.journal = client_id.journal
        return given

    monkeypatch.setattr("apps.chassis.kafka.admin.AIOKafkaAdminClient", give)


class Client:
    """An admin client that answers while it is open; `closing` is called before an answer."""

    def __init__(self, closing: Callable[[], Awaitable[None]] | None = None) -> None:
        self._client, self._closing, self.is_open = self, closing, True

    async def start(self) -> None: ...

    async def close(self) -> None:
        self.is_open = False

    async def send(self, *_: object) -> None:
        if self._closing is not None:
            await self._closing()
        if not self.is_open:
            raise KafkaConnectionError("closed")


@pytest.mark.anyio
async def test_a_broker_answers_although_another_question_closes_the_client_and_a_missing_permission_closes_none(
    options: ClientOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = Admin(options)
    made = [Client(admin.close), Client(), Client()]
    clients = iter(made)
    monkeypatch.setattr("apps.chassis.kafka.admin.AIOKafkaAdminClient", lambda **_: next(clients))
    assert await admin.answers(1, 1.0)

    async def denied(_: object) -> None:
        raise GroupAuthorizationFailedError

    with pytest.raises(GroupAuthorizationFailedError):
        await admin.ask(denied)
    assert [client.is_open for client in made] == [False, True, True]
    made[1].is_open = False  # by its broker: it is still the one that is in use
    assert not await admin.answers(1, 1.0)


@pytest.mark.anyio
async def test_a_quota_explains_the_silence_of_a_broker_and_no_refused_connection(
    options: ClientOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silence() -> None:
        await asyncio.Event().wait()

    client = Client(silence)
    monkeypatch.setattr("apps.chassis.kafka.admin.AIOKafkaAdminClient", lambda **_: client)
    admin = Admin(options)
    assert not await admin.answers(1, 0.01)
    options["client_id"].journal.throttled(1, 60.0)
    assert await admin.answers(1, 0.01)
    client._closing, client.is_open = None, False
    assert not await admin.answers(1, 0.01)
