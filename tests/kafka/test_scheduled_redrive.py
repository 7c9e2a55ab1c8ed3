"""Dead letters of the handler's errors are sent back by themselves, after the delays of REDRIVE_AFTER."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from services import Pipeline, Raw, Service, divided, event, value_of, wait_until

from tests.handlers import REFUSED


class Scheduled(Pipeline):
    """A pipeline whose handler fails for poison until it is mended."""

    folder: Path

    def start(self, redrive_after: str) -> Service:
        files = {"LEDGER": str(self.folder / "ledger"), "MENDED": str(self.folder / "mended")}
        return self.consumer("mendable", REDRIVE_AFTER=redrive_after, **files)

    def mend(self) -> None:
        (self.folder / "mended").touch()

    def handled(self, event_id: str) -> int:
        ledger = self.folder / "ledger"
        return ledger.read_text().split().count(event_id) if ledger.exists() else 0

    def write_poison(self, event_id: str, partition: int = 0) -> None:
        self.write([Raw(value_of(event(event_id, text="poison")), event_id.encode())], partition)

    def until(self, happened: Callable[[], object]) -> None:
        """Wait until something has happened, while good records come: they tell poison from an outage."""

        def has_happened() -> object:
            self.write_to([(Raw(value_of(event()), b"good"), partition) for partition in (0, 5)])
            return happened()

        wait_until(has_happened)

    def copies(self) -> Counter[str]:
        """Return how often each record that is not good is on the topic, by its key."""
        keys = ((record.key or b"").decode() for record in self.records())
        return Counter(key for key in keys if key != "good")


@pytest.fixture
def pipeline(bootstrap_servers: str, logs: Path, tmp_path: Path) -> Iterator[Scheduled]:
    with Scheduled(bootstrap_servers, logs) as pipeline:
        pipeline.folder = tmp_path
        yield pipeline


def letters(consumer: Service, key: str) -> list[dict[str, Any]]:
    """Return the dead letters of a key, the oldest first."""
    return [letter for letter in consumer.letters(limit=1_000)[::-1] if letter["key"] == {"text": key}]


def next_at(consumer: Service) -> datetime | None:
    """Return when a consumer says that the next letter is due."""
    at = consumer.status()["next_redrive_at"]
    return None if at is None else datetime.fromisoformat(at)


def sent(consumer: Service) -> int:
    return int(consumer.status()["redriven_by_schedule_count"])


def test_a_record_that_the_handler_fails_for_has_a_round_for_each_delay_and_what_is_refused_has_none(
    pipeline: Scheduled,
) -> None:
    with pipeline.start("2s,3s") as consumer:
        consumer.until_healthy()
        pipeline.write([Raw(b"not json", b"undecodable"), Raw(value_of(event(text=REFUSED)), b"rejected")])
        pipeline.write_poison("poison")
        pipeline.until(lambda: next_at(consumer))
        pipeline.until(lambda: len(letters(consumer, "poison")) == 3)
        first, second, third = letters(consumer, "poison")
        assert [letter["rounds"] for letter in (first, second, third)] == [0, 1, 2]
        assert [letter["redriven"] for letter in (first, second, third)] == [True, True, False]
        assert [letter["held"] for letter in (first, second, third)] == [False, False, True]
        assert {letter["verdict"] for letter in (first, second, third)} == {"poison"}
        assert second["timestamp"] - first["timestamp"] >= 2_000
        assert third["timestamp"] - second["timestamp"] >= 3_000
        for key in ("undecodable", "rejected"):
            (letter,) = letters(consumer, key)
            assert (letter["verdict"], letter["redriven"]) == ("refused", False)
        wait_until(lambda: next_at(consumer) is None)
        assert sent(consumer) == 2
        assert pipeline.copies() == {"poison": 3, "undecodable": 1, "rejected": 1}
        metrics = consumer.http.get("/metrics").text
        assert 'consumer_records_redriven_by_schedule_total{stream="events"} 2.0' in metrics


def test_of_two_instances_the_one_with_the_first_partition_sends_back_each_once_and_another_takes_over(
    pipeline: Scheduled,
) -> None:
    with pipeline.start("2s") as one, pipeline.start("2s") as other:
        for each in (one, other):
            each.until_healthy()
        wait_until(lambda: divided(one, other))
        holder, follower = (one, other) if 0 in one.partitions() else (other, one)
        for partition in range(6):
            pipeline.write_poison(f"poison-{partition}", partition)
        pipeline.until(lambda: sent(holder) == 6)
        assert (sent(follower), next_at(follower)) == (0, None)
        pipeline.until(lambda: follower.status()["dead_lettered_count"] + holder.status()["dead_lettered_count"] == 12)
        assert pipeline.copies() == {f"poison-{partition}": 2 for partition in range(6)}
        holder.terminate()
        holder.exit_status(15)
        pipeline.write_poison("later")
        pipeline.until(lambda: sent(follower) == 1)
        pipeline.until(lambda: len(letters(follower, "later")) == 2)
        assert pipeline.copies() == {f"poison-{partition}": 2 for partition in range(6)} | {"later": 2}


def test_what_is_due_while_no_consumer_runs_is_sent_back_by_the_next_one(pipeline: Scheduled) -> None:
    with pipeline.start("3s") as consumer:
        consumer.until_healthy()
        pipeline.write_poison("poison")
        pipeline.until(lambda: letters(consumer, "poison"))
    assert pipeline.copies() == {"poison": 1}
    pipeline.mend()
    with pipeline.start("3s") as consumer:
        wait_until(lambda: pipeline.handled("poison") == 1)
        assert sent(consumer) == 1
        assert next_at(consumer) is None
    assert pipeline.copies() == {"poison": 2}


def test_while_the_stream_is_paused_nothing_is_sent_back_and_afterwards_it_is(pipeline: Scheduled) -> None:
    with pipeline.start("6s") as consumer:
        consumer.until_healthy()
        pipeline.write_poison("poison")
        pipeline.until(lambda: next_at(consumer))
        consumer.post("/consumers/pause")
        due = next_at(consumer)
        assert due is not None
        wait_until(lambda: datetime.now(UTC) > due + timedelta(seconds=1))
        assert (sent(consumer), pipeline.copies()) == (0, {"poison": 1})
        assert next_at(consumer) == due
        pipeline.mend()
        consumer.post("/consumers/resume")
        wait_until(lambda: pipeline.handled("poison") == 1)
        assert (sent(consumer), pipeline.copies()) == (1, {"poison": 2})
