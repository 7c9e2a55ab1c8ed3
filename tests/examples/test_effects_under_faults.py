"""Consumers and the database fail again and again while people are sent: at the end each record has one effect.

The course of the faults depends on EFFECTS_SEED. The run is short by default; a long one takes half an hour:

    EFFECTS_FAULTS=100 EFFECTS_RECORDS=200000 just test tests/examples/test_effects_under_faults.py
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
from services import Service, wait_until
from stage import POISON, Stage, person, staged

KEYS = 5_000
LIST = 500
"""People of a request."""
TAKES_S = 120.0
"""Seconds for the records of a step to be consumed on a busy machine."""


def setting(name: str, default: int) -> int:
    return int(os.environ.get(f"EFFECTS_{name}", default))


class Members:
    """The consumers that run; one at least."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._running: list[tuple[Service, ExitStack]] = []
        self.join()

    @property
    def first(self) -> Service:
        return self._running[0][0]

    def are_failing(self) -> bool:
        return any(one.status()["failures"] for one, _ in self._running)

    def join(self) -> None:
        """Start one more: the partitions are divided again."""
        stack = ExitStack()
        self._running.append((stack.enter_context(self._stage.consumer()), stack))

    def leave(self, *, crash: bool = False) -> None:
        """End the oldest, as a deployment does or as a crash does; another one takes over."""
        if len(self._running) == 1:
            self.join()
        service, stack = self._running.pop(0)
        if crash:
            service.kill()
        stack.close()

    def leave_all(self) -> None:
        while self._running:
            self._running.pop()[1].close()


@pytest.fixture(params=["sqlite", "postgres"])
def stage(request: pytest.FixtureRequest, bootstrap_servers: str, logs: Path, tmp_path: Path) -> Iterator[Stage]:
    with staged(request.param, bootstrap_servers, logs, tmp_path) as stage:
        yield stage


def test_each_record_has_one_effect_after_many_faults(stage: Stage) -> None:
    faults, records, seed = setting("FAULTS", 6), setting("RECORDS", 6_000), setting("SEED", 1)
    chance = Random(seed)
    members = Members(stage)
    poison = 0
    try:
        stage.database.refuse(POISON)
        for number in range(faults):
            for _ in range(max(1, records // faults // LIST)):
                first = len(stage.sent)
                stage.send_these([_anyone(chance, first + one) for one in range(LIST)])
            stage.send_these([person(f"poison-{number}", "refused city", POISON)])
            poison += 1
            fault = chance.choice(["crash", "leave", "join", "outage", "read again"])
            if fault == "crash":
                members.leave(crash=True)
            elif fault == "leave":
                members.leave()
            elif fault == "join":
                members.join()
                members.leave()
            elif fault == "outage":
                with stage.database.outage():
                    stage.send_these([person(f"in-an-outage-{number}", "an outage")])
                    wait_until(members.are_failing, what="for an outage to be noticed")
            else:
                _read_again(members.first)
        wait_until(lambda: _has_letters(stage, poison), TAKES_S, "for the dead letters")
        wait_until(lambda: stage.origins() == len(stage.sent) - poison, TAKES_S, "for every other record")
        stage.database.accept()
        while members.first.redrive(limit=1_000):
            pass
        wait_until(lambda: stage.origins() == len(stage.sent), TAKES_S, "for what was redriven")
        stage.until_consumed(members.first)
        stage.expect_one_effect_each()
    finally:
        members.leave_all()


def _anyone(chance: Random, number: int) -> dict[str, Any]:
    return person(f"id-{chance.randrange(KEYS)}", f"city {number % 13}")


def _has_letters(stage: Stage, number: int) -> bool:
    """Look for dead letters; send another person, whose success shows that the database is not at fault."""
    stage.send_these([person("a-later-one", "a later city")])
    return len(stage.dead_letters()) == number


def _read_again(consumer: Service) -> None:
    """Have some hundred records redelivered: go back in a partition, and never ahead."""
    partition = next((one for one in consumer.status()["partitions"] if one["committed"]), None)
    if partition is not None:
        target = {"partition": partition["partition"], "offset": max(0, partition["committed"] - 500)}
        answer = consumer.http.post("/consumers/seek", json=target)
        assert answer.is_success or answer.status_code == 409, answer.text  # another instance may have it by now
