from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from services import Pipeline, Raw, Service, assert_end_well, event, value_of, wait_until


class Failing(NamedTuple):
    """A topic of two partitions, its consumer, the file that puts its handler out of order, and its ledger."""

    pipeline: Pipeline
    consumer: Service
    outage: Path
    ledger: Path

    def write(self, names: Sequence[str], start: int = 0, partition: int = 0) -> None:
        """Write events of these names, each with its number as id and key."""
        events = [event(f"{partition}-{start + number:05}", text=name) for number, name in enumerate(names)]
        self.pipeline.write([Raw(value_of(one), one["id"].encode()) for one in events], partition)

    def handled(self) -> list[str]:
        return self.ledger.read_text().split() if self.ledger.exists() else []

    def lettered(self) -> set[str]:
        return {(record.key or b"").decode() for record in self.pipeline.records(self.pipeline.dead_letter_topic)}

    def state(self) -> str:
        return str(self.consumer.status()["state"])


@pytest.fixture
def stage(pipeline: Pipeline, tmp_path: Path) -> Iterator[Failing]:
    outage, ledger = tmp_path / "outage", tmp_path / "ledger"
    pipeline.create_topic(2)
    with pipeline.consumer("failing", OUTAGE=str(outage), LEDGER=str(ledger)) as consumer:
        yield Failing(pipeline, consumer.until_healthy(), outage, ledger)


def test_poison_is_dead_lettered_alone_whatever_the_handler_raises_and_an_outage_costs_nothing(stage: Failing) -> None:
    names = ["good"] * 1_000
    for number, name in {3: "poison", 400: "exit", 401: "poison", 777: "cancel"}.items():
        names[number] = name
    stage.write(names)
    stage.consumer.until_consumed(1_000)
    poison = {"0-00003", "0-00400", "0-00401", "0-00777"}
    assert stage.lettered() == poison
    assert set(stage.handled()) == {f"0-{number:05}" for number in range(1_000)} - poison
    assert stage.consumer.process.poll() is None
    assert stage.consumer.status()["restarts"] == 0

    stage.outage.touch()
    committed = stage.pipeline.committed()
    stage.write(["good"] * 500, start=1_000)
    stage.consumer.until_answers("/health-check", 503)
    wait_until(lambda: stage.state() == "retrying")
    assert "retrying" in stage.consumer.http.get("/health-check").json()["detail"]
    assert 'consumer_state{state="retrying",stream="events"} 1.0' in stage.consumer.http.get("/metrics").text
    assert stage.pipeline.committed() == committed
    stage.outage.unlink()
    stage.consumer.until_consumed(1_500)
    assert stage.lettered() == poison
    assert len(stage.handled()) == len(set(stage.handled())) == 1_496
    stage.consumer.until_healthy()

    assert {stage.consumer.status()[name] for name in ("failing_record", "failing_since")} == {None}

    stage.write(["poison"], start=1_500)
    wait_until(lambda: stage.state() == "retrying")
    failing = stage.consumer.status()["failing_record"]
    assert (failing["partition"], failing["offset"]) == (0, 1_500)
    assert datetime.fromisoformat(stage.consumer.status()["failing_since"]) < datetime.now(UTC)
    assert stage.consumer.status()["last_error"] == f"{stage.pipeline.topic}-0 offset 1500: {failing['error']}"
    stage.write(["good"], partition=1)
    stage.consumer.until_consumed(1_502)
    assert stage.lettered() == poison | {"0-01500"}
    stage.consumer.until_healthy()

    stage.write(["poison"], start=1_501)
    wait_until(lambda: stage.state() == "retrying")
    stage.consumer.post("/consumers/start", json={"accept": True})
    stage.consumer.until_consumed(1_503)
    assert stage.lettered() == poison | {"0-01500", "0-01501"}

    stage.write(["good"], start=1_502)  # nothing is accepted any more
    stage.consumer.until_consumed(1_504)
    stage.write(["poison"], start=1_503)
    wait_until(lambda: stage.state() == "retrying")
    stage.pipeline.delete_before({0: 1_504})
    stage.consumer.until_healthy()
    assert stage.state() == "running"
    stage.write(["good"], start=1_504)
    stage.consumer.until_consumed(1_505)
    assert stage.handled()[-1] == "0-01504"


def test_poison_is_recognized_by_a_newer_record_however_much_of_its_own_key_stands_between(stage: Failing) -> None:
    hot = [event("hot", text="poison"), *(event("hot", text="x" * 50_000) for _ in range(80))]
    stage.pipeline.write([Raw(value_of(one), b"hot") for one in hot])
    stage.write(["good"])
    stage.consumer.until_consumed(82)
    assert stage.lettered() == {"hot"}
    assert stage.handled().count("hot") == 80
    stage.consumer.until_healthy()


def test_what_was_accepted_ends_with_what_waited_and_a_later_outage_or_a_wrong_deploy_costs_nothing(
    stage: Failing,
) -> None:
    stage.pipeline.write([Raw(b"not json", b"bad")] * 120)
    wait_until(lambda: stage.state() == "halted")
    stage.consumer.post("/consumers/start", json={"accept": True})
    stage.consumer.until_consumed(120)
    stage.consumer.until_healthy()
    stage.outage.touch()
    for partition in (0, 1):  # neither has had a good record since
        stage.write(["good"] * 10, partition=partition)
    wait_until(lambda: stage.state() == "retrying")
    wait_until(lambda: stage.consumer.status()["failures"] > 4)
    assert stage.lettered() == {"bad"}
    stage.outage.unlink()
    stage.consumer.until_consumed(140)
    assert stage.lettered() == {"bad"}
    stage.pipeline.write([Raw(b"not json", b"bad")] * 120, partition=1)
    wait_until(lambda: stage.state() == "halted")


def test_a_seek_a_stop_and_a_signal_break_off_a_long_call_and_what_was_done_before_is_committed(stage: Failing) -> None:
    names = ["good"] * 200
    names[50], names[150] = "poison", "slow"
    stage.consumer.post("/consumers/stop")  # so that all of them are handed to the handler as one batch
    stage.write(names)
    stage.consumer.post("/consumers/start")
    wait_until(lambda: len(stage.handled()) >= 100, what="for the handler to be stuck")
    answer = stage.consumer.http.post("/consumers/seek", json={"partition": 1, "offset": 0})
    assert answer.status_code == 200
    wait_until(lambda: stage.pipeline.committed() >= 100, what="for what was done to be committed")
    wait_until(lambda: stage.consumer.status()["dead_lettered_count"] == 1)
    assert_end_well(stage.consumer)
    assert 100 <= stage.pipeline.committed() <= 150
    assert stage.lettered() == {"0-00050"}
