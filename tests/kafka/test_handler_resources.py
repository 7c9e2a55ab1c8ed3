"""Handlers with something open, on a real Kafka."""

from pathlib import Path

from services import Pipeline, Raw, event, value_of, wait_until

from contracts.partitioning import partitions_of


def test_records_wait_for_what_their_handler_needs_and_what_it_publishes_is_on_the_other_topic(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    outage = tmp_path / "outage"
    outage.touch()
    copies = f"{pipeline.name}-copies"
    with pipeline.consumer("copying", OUTAGE=str(outage), COPIES=copies) as consumer:
        wait_until(lambda: consumer.answers("/health-check", 503) and consumer.status()["state"] == "retrying")
        events = [event(f"event-{number}") for number in range(300)]
        pipeline.write([Raw(value_of(one), one["id"].encode()) for one in events])
        wait_until(lambda: consumer.status()["lag"] == 300)
        health = consumer.http.get("/health-check")
        assert health.status_code == 503
        assert "the resource of the handler cannot be opened" in health.json()["detail"]
        assert consumer.status()["last_error"] == "ConnectionRefusedError: no database"
        outage.unlink()
        consumer.until_consumed(300)
        consumer.until_healthy()
        assert consumer.status()["dead_lettered_count"] == 0
        written = pipeline.records(copies)
        keys = [one["id"].encode() for one in events]
        assert {one.key: (one.value, one.partition) for one in written} == {
            key: (value_of(one), partition)
            for key, one, partition in zip(keys, events, partitions_of(keys, 6), strict=True)
        }
        assert len(written) == 300
        assert all(one.headers == (("copied", b"yes"), ("null", None)) for one in written)
    pipeline.delete_topic(copies)
