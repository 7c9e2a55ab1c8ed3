"""The examples on a real Kafka: each record has one effect, although something breaks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from services import Service, wait_until
from stage import POISON, Stage, person, staged


@pytest.fixture(params=["sqlite", "postgres"])
def stage(request: pytest.FixtureRequest, bootstrap_servers: str, logs: Path, tmp_path: Path) -> Iterator[Stage]:
    with staged(request.param, bootstrap_servers, logs, tmp_path) as stage:
        yield stage


def test_each_record_has_one_effect_whatever_is_killed_refused_redriven_and_read_again(stage: Stage) -> None:
    with stage.consumer() as first:
        stage.database.refuse(POISON)
        stage.send(2_000)
        wait_until(stage.origins)
        first.kill()  # some of what has its effect is not committed
    with stage.consumer() as second:
        with stage.consumer():  # a rebalance when it joins, and another one when it leaves
            stage.send(500)
            stage.send_these([person(f"poison-{n}", "refused city", POISON) for n in range(3)])
            stage.send_these([person(f"poison-{n}", "a later city") for n in range(3)])
            stage.send(500)
        wait_until(lambda: len(stage.dead_letters()) + stage.origins() == len(stage.sent))
        with stage.database.outage():
            stage.send(1_000)
            wait_until(lambda: second.status()["state"] == "retrying", what="for an outage to be noticed")
            assert second.http.get("/health-check").status_code == 503
        stage.until_consumed(second)
        second.until_healthy()
        assert stage.dead_letters() == {b"poison-0", b"poison-1", b"poison-2"}
        wait_until(lambda: stage.origins() == len(stage.sent) - 3)  # of all partitions: some were another instance's

        stage.database.accept()
        assert second.redrive(limit=10) == 3
        wait_until(lambda: stage.origins() == len(stage.sent), what="for what was redriven")
        stage.expect_one_effect_each()

        consumed = second.status()["messages_consumed_count"]
        second.post("/consumers/seek", json={"to": "beginning"})  # all of it is redelivered
        wait_until(lambda: second.status()["messages_consumed_count"] >= consumed + len(stage.sent))
        stage.until_consumed(second)
        stage.expect_one_effect_each()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "DATABASE_URL: is missing; the handler needs it"),
        (
            {"DATABASE_URL": "mysql://me:secret@localhost"},
            "DATABASE_URL: expected an address like postgresql://localhost/x, got 'mysql://***@localhost'",
        ),
    ],
)
def test_a_setting_of_a_handler_that_is_missing_or_wrong_stops_the_start_with_one_line(
    given: dict[str, str], said: str, logs: Path
) -> None:
    with Service("consumer", ["-m", "examples", "postgres"], logs, given) as consumer:
        assert consumer.exit_status(60) == 1
        assert consumer.log.read_text().splitlines() == [said]
