from prometheus_client.parser import text_string_to_metric_families
from services import Pipeline, Raw, Service, both, wait_until


def measured(service: Service, name: str, **labels: str) -> float | None:
    """Return one value of events of a scrape; None where there is none."""
    answer = service.http.get("/metrics")
    assert answer.status_code == 200
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    wanted = labels if name.startswith("http_") else {"stream": "events", **labels}
    return next((sample.value for sample in samples if (sample.name, sample.labels) == (name, wanted)), None)


def test_what_was_produced_and_consumed_is_measured(pipeline: Pipeline) -> None:
    with both(pipeline) as (producer, consumer):
        producer.send(300)
        pipeline.write([Raw(b"not json"), Raw(None), Raw(None)], partition=2)
        consumer.until_consumed(303)
        assert measured(producer, "producer_records_total", outcome="delivered") == 300
        assert measured(producer, "producer_records_in_flight") == 0
        assert 1 <= (measured(producer, "producer_acknowledgement_seconds_count") or 0) <= 300
        assert measured(producer, "service_healthy") == 1
        assert measured(producer, "kafka_connected") == 1
        labels = {"method": "POST", "route": "/producers/events", "status": "201"}
        assert measured(producer, "http_requests_total", **labels) == 1
        assert measured(consumer, "consumer_records_consumed_total") == 300
        assert measured(consumer, "consumer_records_dead_lettered_total", reason="DecodeError") == 1
        assert measured(consumer, "consumer_records_dead_lettered_total", reason="Tombstone") == 2
        calls = measured(consumer, "consumer_handler_seconds_count")
        assert calls
        assert measured(consumer, "consumer_handler_attempts_total", result="ok") == calls
        assert measured(consumer, "consumer_rebalances_total") == 1
        assert measured(consumer, "consumer_restarts_total") == 0
        assert measured(consumer, "consumer_partitions") == 6
        assert measured(consumer, "consumer_state", state="running") == 1


def test_lag_is_measured_for_each_partition_while_it_is_stopped_too(pipeline: Pipeline) -> None:
    with both(pipeline) as (producer, consumer):
        wait_until(lambda: measured(consumer, "consumer_lag_records", partition="5") == 0)
        assert measured(consumer, "consumer_lag_seconds", partition="5") == 0
        consumer.post("/consumers/stop")
        producer.send(100)

        def lags() -> list[float]:
            return [measured(consumer, "consumer_lag_records", partition=str(number)) or 0 for number in range(6)]

        wait_until(lambda: sum(lags()) == 100)
        assert all(
            (measured(consumer, "consumer_lag_seconds", partition=str(n)) or 0) > 0
            for n, lag in enumerate(lags())
            if lag
        )
        assert measured(consumer, "consumer_state", state="stopped") == 1
        assert measured(consumer, "service_healthy") == 1
        consumer.post("/consumers/start")
        wait_until(lambda: sum(lags()) == 0)
