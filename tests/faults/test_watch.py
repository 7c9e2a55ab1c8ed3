from pathlib import Path

import pytest
from services import Pipeline, person, wait_until


@pytest.mark.parametrize(
    "broken",
    ["LogicSubscriber._run_consume_loop", "GroupCoordinator._coordination_routine", "Fetcher._fetch_requests_routine"],
)
def test_a_consume_loop_that_died_or_wedged_is_replaced_and_nothing_is_lost(
    bootstrap_servers: str, logs: Path, broken: str
) -> None:
    script = str(Path(__file__).with_name("wedged_consumer.py"))
    with (
        Pipeline(bootstrap_servers, logs) as pipeline,
        pipeline.producer() as producer,
        pipeline.running("consumer", script) as consumer,
    ):
        producer.until_healthy()
        consumer.until_healthy()
        producer.post("/producers/people", json=person(name=broken))
        consumer.until_consumed(1)
        made = producer.post("/producers/basic_producer?number_of_people=500")
        wait_until(lambda: consumer.status()["restarts"] >= 1 or consumer.status()["lag"] == 0, 45, broken)
        wait_until(
            lambda: {one["id"] for one in made} <= {m["key"] for m in consumer.messages(limit=1_000)}, 45, broken
        )
        wait_until(lambda: pipeline.committed() == sum(pipeline.end_offsets().values()), 45, broken)
        consumer.until_healthy()
