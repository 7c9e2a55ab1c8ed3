"""What is shown as the newest does not depend on the timestamps that clients write."""

import time

from services import Pipeline, Raw, event, value_of

HOUR_MS = 60 * 60 * 1_000


def write(pipeline: Pipeline, name: str, times: list[int], partition: int) -> list[str]:
    """Write events with these timestamps; return their ids."""
    ids = [f"{name}-{number}" for number in range(len(times))]
    for one, timestamp in zip(ids, times, strict=True):
        pipeline.write_batch(Raw(value_of(event(one))), partition=partition, timestamp=timestamp)
    return ids


def test_no_timestamp_hides_records_that_came_later(pipeline: Pipeline) -> None:
    pipeline.create_topic(3, message_timestamp_after_max_ms=str(2**62))
    now = time.time_ns() // 1_000_000
    with pipeline.consumer() as consumer:
        consumer.until_healthy()
        write(pipeline, "before", [now - 1_000], 0)
        write(pipeline, "ahead", [now + 50 * 60 * 1_000] * 12, 0)
        write(pipeline, "microseconds", [now * 1_000], 1)
        consumer.until_consumed(14)
        later = write(pipeline, "later", [now + number for number in range(30)], 1)
        consumer.until_consumed(44)
        yesterday = write(pipeline, "yesterday", [now - 24 * HOUR_MS] * 20, 2)
        consumer.until_consumed(64)

        def shown(**parameters: str | int) -> list[str]:
            return [message["value"]["id"] for message in consumer.messages(**parameters)]

        assert shown(limit=50) == [*later, *yesterday]
        assert shown(limit=30, scope="topic") == later
        tomorrow = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now / 1_000 - 23 * 60 * 60))
        assert set(yesterday) <= set(shown(limit=100, scope="topic", to=tomorrow))
        soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now / 1_000 + 2))
        assert set(later) <= set(shown(limit=100, scope="topic", to=soon))
        cursor = consumer.get("/consumers/messages", limit=10)["next"]
    with pipeline.consumer() as consumer:
        consumer.until_healthy()
        answer = consumer.http.get("/consumers/messages", params={"before": cursor})
        assert answer.status_code == 400
        assert "begin again" in answer.json()["detail"]
