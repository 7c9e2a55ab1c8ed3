from concurrent.futures import ThreadPoolExecutor, wait

import httpx
import pytest
from overload import LOOK_EVERY_S, MAX_MEMORY_BYTES, memory_of, refuses_in_time_and_stays_small, statuses_of_many
from services import Pipeline, event


@pytest.mark.alone
def test_under_twenty_times_its_load_a_producer_refuses_in_time_and_stays_small(pipeline: Pipeline) -> None:
    body = b"[" + b",".join([httpx.Request("POST", "/", json=event(text="a" * 200)).read()] * 40_000) + b"]"
    with pipeline.producer() as producer:
        producer.until_healthy()
        refuses_in_time_and_stays_small(producer, "/producers/events", body)
        assert producer.post("/producers/events", json=event())["delivered"] == 1


@pytest.mark.alone
def test_under_many_searches_a_consumer_stays_small_and_goes_on_consuming(pipeline: Pipeline) -> None:
    with pipeline.consumer() as consumer, ThreadPoolExecutor(1) as pool:
        consumer.until_healthy()
        pipeline.fill(150_000)
        search = "/consumers/messages?scope=topic&limit=1000&q=nobody"
        calls = pool.submit(statuses_of_many, consumer, "GET", search)
        peak = 0
        while wait([calls], LOOK_EVERY_S).not_done:
            assert consumer.get("/livez") == {"status": "alive"}
            peak = max(peak, memory_of(consumer))
        assert calls.result() == {200, 503}
        assert peak < MAX_MEMORY_BYTES
        consumer.until_consumed(150_000)
