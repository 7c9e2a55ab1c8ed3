"""In every state, health, status, group, metrics and Kafka itself say the same of a consumer."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import DeleteGroupsRequest
from aiokafka.protocol.group import LeaveGroupRequest
from prometheus_client.parser import text_string_to_metric_families
from services import Pipeline, Raw, Service, divided, event, value_of, wait_until

PARTITIONS = 3
AGREED_WITHIN_S = 10.0


class Steered:
    """A consumer whose handler does what `steer` says; a topic and a group of its own."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self.pipeline = pipeline
        self._file = folder / "steer"
        self.steer("work")
        self.service = self.another()

    def another(self) -> Service:
        """Start one more instance."""
        variables = {"STEER": str(self._file), "SLOW_BATCH_SECONDS": "1", "EVENTS_PARTITIONS": str(PARTITIONS)}
        return self.pipeline.consumer("steered", **variables)

    def steer(self, order: str) -> None:
        """Have the handler `work`, `fail` or `wait`, in one piece."""
        new = self._file.with_suffix(".new")
        new.write_text(order)
        new.rename(self._file)

    def write(self, number: int, partition: int = 0) -> None:
        """Write so many events."""
        self.pipeline.fill(number, partition)

    def until_quiet(self) -> None:
        """Run, have nothing left to do, and say so everywhere."""
        self.steer("work")
        self.service.post("/consumers/start")
        self.service.post("/consumers/resume")
        agreed(self, lambda kafka: kafka.lag == 0)


class Truth(NamedTuple):
    """What Kafka itself says of a group and its topic, and what it adds up to."""

    committed: dict[int, int | None]
    first: dict[int, int]
    end: dict[int, int]
    owners: dict[int, str]

    @property
    def lags(self) -> dict[int, int]:
        return {
            p: end - (self.first[p] if self.committed[p] is None else self.committed[p] or 0)
            for p, end in self.end.items()
        }

    @property
    def lag(self) -> int:
        return sum(self.lags.values())


def truth(pipeline: Pipeline) -> Truth:
    """Return what Kafka says now."""
    tps = [TopicPartition(pipeline.topic, partition) for partition in range(PARTITIONS)]

    async def look(admin: AIOKafkaAdminClient) -> Truth:
        offsets = await admin.list_consumer_group_offsets(pipeline.group, partitions=tps)
        (described,) = (await admin.describe_consumer_groups([pipeline.group]))[0].groups
        async with AIOKafkaConsumer(bootstrap_servers=pipeline.bootstrap_servers) as client:
            first, end = await client.beginning_offsets(tps), await client.end_offsets(tps)
        return Truth(
            {tp.partition: offsets[tp].offset if offsets[tp].offset >= 0 else None for tp in tps},
            {tp.partition: offset for tp, offset in first.items()},
            {tp.partition: offset for tp, offset in end.items()},
            {partition: member[0] for member in described[5] for partition in partitions_in(member[4])},
        )

    return pipeline.ask(look)


def partitions_in(assignment: bytes) -> list[int]:
    from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment  # noqa: PLC0415 - here alone

    given = ConsumerProtocolMemberAssignment.decode(assignment).partitions() if assignment else []
    return [tp.partition for tp in given]


def group_lag(service: Service) -> int:
    """Return the lag of the whole group, as the service says."""
    return sum(partition["lag"] for partition in service.get("/consumers/group")["partitions"])


def metrics(service: Service) -> dict[tuple[str, str], float]:
    """Return each sample by its name and its partition, state or reason."""
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(service.http.get("/metrics").text):
        for sample in family.samples:
            labels = [
                sample.labels[name] for name in ("partition", "state", "reason", "error") if name in sample.labels
            ]
            found[sample.name, " ".join(labels)] = sample.value
    return found


def claims(kafka: Truth, services: Sequence[Service]) -> Iterator[tuple[str, object, object]]:
    """Yield what the services say of the group, with what Kafka, or another page of the same service, says of it."""
    statuses = [service.status() for service in services]
    wanted = {p: (kafka.committed[p], kafka.end[p], kafka.lags[p]) for p in kafka.end}
    shown = {p["partition"]: (p["committed"], p["end"], p["lag"]) for s in statuses for p in s["partitions"]}
    yield "partitions of the status", shown, wanted
    yield "lag of the status", sum(status["lag"] or 0 for status in statuses), kafka.lag
    for service, status in zip(services, statuses, strict=True):
        group, measured, health = service.get("/consumers/group"), metrics(service), service.http.get("/health-check")
        shown = {p["partition"]: (p["committed"], p["end"], p["lag"]) for p in group["partitions"]}
        yield "partitions of the group", shown, wanted
        yield "owners", {p["partition"]: p["owner"] for p in group["partitions"] if p["owner"]}, kafka.owners
        lags = {int(label): lag for (name, label), lag in measured.items() if name == "consumer_lag_records"}
        yield "lag of the metrics", lags, {p["partition"]: p["lag"] for p in status["partitions"]}
        yield "health of the metrics", measured["service_healthy", ""], health.status_code == 200
        yield "Kafka of the metrics", measured["kafka_connected", ""], health.json()["kafka"] == "connected"
        yield "state of the metrics", measured["consumer_state", status["state"]], 1
        yield "consumed", measured["consumer_records_consumed_total", ""], status["messages_consumed_count"]
        for kind in ("skipped", "dead_lettered"):
            counted = sum(value for (name, _), value in measured.items() if name == f"consumer_records_{kind}_total")
            yield kind, counted, status[f"{kind}_count"]


def disagreement(steered: Steered, kafka: Truth, *services: Service) -> list[str]:
    """Return where one of the services says something else than Kafka, or than itself."""
    return [
        f"{what}: {said}, not {wanted}"
        for what, said, wanted in claims(kafka, services or (steered.service,))
        if said != wanted
    ]


def agreed(steered: Steered, is_quiet: Callable[[Truth], bool], *services: Service) -> Truth:
    """Wait for a quiet point; then all must say the same, at once."""
    wait_until(
        lambda: is_quiet(truth(steered.pipeline)) and steered.service.status()["lag"] == truth(steered.pipeline).lag
    )
    until = time.monotonic() + AGREED_WITHIN_S
    while found := disagreement(steered, kafka := truth(steered.pipeline), *services):
        assert time.monotonic() < until, found
        time.sleep(0.3)  # Kafka's own answers are some requests, and may be of two moments
    return kafka


@pytest.fixture(scope="module")
def running(bootstrap_servers: str, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    with Pipeline(bootstrap_servers, logs) as pipeline:
        pipeline.create_topic(PARTITIONS)
        steered = Steered(pipeline, tmp_path_factory.mktemp("steered"))
        with steered.service:
            steered.service.until_healthy()
            yield steered


@pytest.fixture
def steered(running: Steered) -> Steered:
    """A consumer with nothing left to do."""
    running.until_quiet()
    return running


@asynccontextmanager
async def transaction(pipeline: Pipeline, number: int, partition: int = 0) -> AsyncIterator[AIOKafkaProducer]:
    """Write so many events in a transaction that is aborted at the end."""
    options = {
        "bootstrap_servers": pipeline.bootstrap_servers,
        "transactional_id": f"{pipeline.name}-{time.monotonic_ns()}",
    }
    async with AIOKafkaProducer(**options) as producer:
        await producer.begin_transaction()
        for _ in range(number):
            await producer.send(pipeline.topic, value_of(event()), partition=partition)
        await producer.flush()
        yield producer
        await producer.abort_transaction()


def abort(pipeline: Pipeline, number: int, partition: int = 0) -> None:
    async def run() -> None:
        async with transaction(pipeline, number, partition):
            pass

    asyncio.run(run())


def test_under_load_no_counter_runs_ahead_of_what_is_committed(steered: Steered) -> None:
    before = steered.service.status()["messages_consumed_count"]
    committed = sum(offset or 0 for offset in truth(steered.pipeline).committed.values())
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: deque(map(steered.write, [10_000] * PARTITIONS, range(PARTITIONS))))
        while not writing.done():
            status, counted = steered.service.status(), metrics(steered.service)
            now = truth(steered.pipeline)
            done = sum(offset or 0 for offset in now.committed.values()) - committed
            assert status["messages_consumed_count"] - before <= done
            assert counted["consumer_records_consumed_total", ""] - before <= done
            assert status["lag"] >= 0
            assert all(partition["lag"] >= 0 for partition in status["partitions"])
    agreed(steered, lambda kafka: kafka.lag == 0)
    assert steered.service.status()["messages_consumed_count"] == before + PARTITIONS * 10_000


def test_of_a_paused_consumer_all_say_the_same(steered: Steered) -> None:
    steered.service.post("/consumers/pause")
    steered.write(300)
    agreed(steered, lambda kafka: kafka.lag == 300)
    assert steered.service.status()["lag_seconds"] > 0


def test_while_the_handler_fails_what_it_failed_for_is_lag(steered: Steered) -> None:
    steered.steer("fail")
    steered.write(40)
    wait_until(lambda: steered.service.status()["state"] == "retrying")
    wait_until(lambda: steered.service.status()["failures"] >= 3)
    kafka = truth(steered.pipeline)
    assert kafka.lag == steered.service.status()["lag"] == group_lag(steered.service) == 40
    assert steered.service.answers("/health-check", 503)


def test_a_batch_that_does_not_end_is_lag_has_an_age_and_makes_the_service_unfit(steered: Steered) -> None:
    steered.steer("wait")
    steered.write(500)
    wait_until(lambda: "SLOW_BATCH_SECONDS is 1" in steered.service.http.get("/health-check").text)
    assert steered.service.answers("/health-check", 503)
    agreed(steered, lambda kafka: kafka.lag == 500)
    status = steered.service.status()
    assert status["batch_age_seconds"] > 1
    assert status["lag_seconds"] > 0
    assert metrics(steered.service)["consumer_batch_age_seconds", ""] > 1
    steered.until_quiet()
    assert steered.service.status()["batch_age_seconds"] == 0


def put_out(steered: Steered) -> None:
    """Have the only member of the group leave it, without its knowledge."""

    async def leave(admin: AIOKafkaAdminClient) -> None:
        coordinator, member = (
            await admin.find_coordinator(steered.pipeline.group),
            steered.service.status()["member_id"],
        )
        await admin._send_request(LeaveGroupRequest(steered.pipeline.group, member), coordinator)

    steered.pipeline.ask(leave)


def test_a_batch_whose_member_was_put_out_of_the_group_is_neither_committed_nor_counted(steered: Steered) -> None:
    before = steered.service.status()
    steered.steer("wait")
    steered.write(50)
    wait_until(lambda: steered.service.status()["batch_age_seconds"] > 0)
    put_out(steered)
    steered.steer("work")
    steered.until_quiet()
    after = steered.service.status()
    assert after["commit_failures"] == before["commit_failures"] + 1
    assert after["messages_consumed_count"] == before["messages_consumed_count"] + 50
    assert metrics(steered.service)["consumer_commit_failures_total", "CommitFailedError"] == after["commit_failures"]
    assert "a commit failed" in steered.service.log.read_text()


def test_an_offset_that_another_tool_commits_while_a_batch_is_in_flight_of_a_lost_session_stays(
    steered: Steered,
) -> None:
    steered.write(40)
    agreed(steered, lambda kafka: kafka.lag == 0)
    end = truth(steered.pipeline).end[0]
    steered.steer("wait")
    steered.write(50)
    wait_until(lambda: steered.service.status()["batch_age_seconds"] > 0)
    put_out(steered)
    wait_until(lambda: not steered.service.status()["member_id"])  # once a heartbeat was refused
    alter(steered, {0: end - 30})
    steered.until_quiet()
    assert moved(steered)[-1] == (0, "altered", end, end - 30, 0)


def test_behind_an_aborted_transaction_the_lag_falls_to_nothing(steered: Steered) -> None:
    abort(steered.pipeline, 200)
    kafka = agreed(steered, lambda kafka: kafka.lag == 0)
    assert kafka.committed[0] == kafka.end[0]
    steered.service.post("/consumers/stop")
    abort(steered.pipeline, 200, partition=1)
    agreed(steered, lambda kafka: kafka.lag == 201)
    status = steered.service.status()
    assert (status["lag"], status["lag_seconds"], status["waiting_for_transaction"]) == (201, 0, 0)


def test_what_waits_behind_an_open_transaction_is_lag_and_named_as_such(steered: Steered) -> None:
    async def look() -> dict[str, Any]:
        async with transaction(steered.pipeline, 6):
            await asyncio.to_thread(steered.write, 5_000)
            await asyncio.to_thread(agreed, steered, lambda kafka: kafka.lag == 5_006)
            return await asyncio.to_thread(steered.service.status)

    status = asyncio.run(look())
    assert (status["lag"], status["waiting_for_transaction"]) == (5_006, 5_006)
    assert [p["waiting_for_transaction"] for p in status["partitions"]] == [5_006, 0, 0]
    assert status["lag_seconds"] > 0
    agreed(steered, lambda kafka: kafka.lag == 0)


def moved(steered: Steered) -> list[tuple[int, str, int, int, int]]:
    return [
        (m["partition"], m["reason"], m["before"], m["after"], m["skipped"]) for m in steered.service.status()["moves"]
    ]


@pytest.mark.parametrize("held_up", ["stop", "pause"])
def test_records_that_are_deleted_before_they_are_consumed_are_said_to_be_skipped(
    steered: Steered, held_up: str
) -> None:
    at, skipped = truth(steered.pipeline).end[1], steered.service.status()["skipped_count"]
    steered.service.post(f"/consumers/{held_up}")
    steered.write(100, partition=1)
    steered.pipeline.delete_before({1: at + 90})
    agreed(steered, lambda kafka: kafka.lag == 100)
    before = steered.service.status()["messages_consumed_count"]
    steered.until_quiet()
    status = steered.service.status()
    assert status["messages_consumed_count"] == before + 10
    assert status["skipped_count"] == skipped + 90
    assert moved(steered)[-1] == (1, "deleted", at, at + 90, 90)
    assert metrics(steered.service)["consumer_records_skipped_total", "1 deleted"] == status["skipped_count"]
    assert (
        f"the position of partition 1 moved from {at} to {at + 90}, 90 records were skipped"
        in steered.service.log.read_text()
    )


def test_records_of_which_none_is_left_are_skipped_and_the_lag_falls_to_nothing(steered: Steered) -> None:
    steered.service.post("/consumers/stop")
    at, skipped = truth(steered.pipeline).end[2], steered.service.status()["skipped_count"]
    steered.write(70, partition=2)
    steered.pipeline.delete_before({2: at + 70})
    steered.until_quiet()
    assert steered.service.status()["skipped_count"] == skipped + 70


def alter(steered: Steered, offsets: dict[int, int]) -> None:
    """Commit offsets as `kafka-consumer-groups --reset-offsets` does: Kafka allows it while the group is empty."""

    async def commit() -> None:
        options = {"bootstrap_servers": steered.pipeline.bootstrap_servers, "group_id": steered.pipeline.group}
        async with AIOKafkaConsumer(**options, enable_auto_commit=False) as client:
            tps = {TopicPartition(steered.pipeline.topic, partition): offset for partition, offset in offsets.items()}
            client.assign(list(tps))
            await client.commit(tps)

    asyncio.run(commit())


def test_an_offset_that_another_tool_committed_is_reported_as_altered(steered: Steered) -> None:
    steered.write(40)
    agreed(steered, lambda kafka: kafka.lag == 0)
    steered.service.post("/consumers/stop")
    end = truth(steered.pipeline).end
    steered.write(25, partition=1)
    alter(steered, {0: end[0] - 30, 1: end[1] + 25})
    steered.until_quiet()
    assert sorted(moved(steered)[-2:]) == [
        (0, "altered", end[0], end[0] - 30, 0),
        (1, "altered", end[1], end[1] + 25, 25),
    ]


def test_a_group_that_was_deleted_is_consumed_from_the_beginning_and_said_to_be_forgotten(steered: Steered) -> None:
    steered.write(30)
    agreed(steered, lambda kafka: kafka.lag == 0)
    steered.service.post("/consumers/stop")
    before, kafka = steered.service.status(), truth(steered.pipeline)

    async def delete(admin: AIOKafkaAdminClient) -> None:
        coordinator = await admin.find_coordinator(steered.pipeline.group)
        answer = await admin._send_request(DeleteGroupsRequest([steered.pipeline.group]), coordinator)
        assert answer.results == [(steered.pipeline.group, 0)]

    steered.pipeline.ask(delete)
    agreed(steered, lambda kafka: set(kafka.committed.values()) == {None})
    steered.until_quiet()
    forgotten = [
        (p, "forgotten", kafka.committed[p], kafka.first[p], 0)
        for p in range(PARTITIONS)
        if kafka.committed[p] != kafka.first[p]
    ]
    assert sorted(moved(steered)[-len(forgotten) :]) == forgotten
    assert steered.service.status()["messages_consumed_count"] > before["messages_consumed_count"]


def test_two_members_and_the_one_that_is_left_say_the_same(steered: Steered) -> None:
    with steered.another() as other:
        wait_until(lambda: divided(steered.service, other, partitions=PARTITIONS))
        for partition in range(PARTITIONS):
            steered.write(100, partition)
        wait_until(lambda: truth(steered.pipeline).lag == 0)
        wait_until(lambda: not disagreement(steered, truth(steered.pipeline), steered.service, other))
    wait_until(lambda: divided(steered.service, partitions=PARTITIONS))
    steered.until_quiet()


def test_a_halted_consumer_and_its_group_say_the_same(steered: Steered) -> None:
    steered.service.post("/consumers/stop")
    before = steered.service.status()["dead_lettered_count"]
    steered.pipeline.write([Raw(b"not json %d" % number) for number in range(120)], partition=2)
    steered.service.post("/consumers/start")
    wait_until(lambda: steered.service.status()["state"] == "halted")
    wait_until(lambda: not truth(steered.pipeline).owners)
    agreed(steered, lambda kafka: kafka.lag == 120)
    steered.service.post("/consumers/start", json={"accept": True})
    steered.until_quiet()
    assert steered.service.status()["dead_lettered_count"] == before + 120


def test_a_recreated_topic_is_reported_as_such(steered: Steered) -> None:
    steered.write(30)
    agreed(steered, lambda kafka: kafka.lag == 0)
    steered.pipeline.delete_topic(steered.pipeline.topic)
    wait_until(
        lambda: any(
            move[1] in {"recreated", "forgotten", "out_of_range"} and move[3] == 0 for move in moved(steered)[-3:]
        )
    )
    steered.write(20)
    steered.until_quiet()
