"""The services as they ship, with the streams of `contracts`; all other tests give them a stream of their own."""

import pytest
from services import Pipeline, wait_until

from contracts import STREAMS
from contracts.stream import Stream


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_records_of_each_stream_are_made_consumed_and_shown(stream: Stream[object], pipeline: Pipeline) -> None:
    prefix = stream.variables("topic")[0].removesuffix("_TOPIC")
    with (
        pipeline.shipped("producer", prefix, STREAMS=stream.name) as producer,
        pipeline.shipped("consumer", prefix, STREAMS=stream.name) as consumer,
    ):
        producer.until_healthy()
        consumer.until_healthy()
        made = producer.post(f"/producers/{stream.name}/generate?number=20")
        assert len(producer.post("/producers/basic_producer")) == 10
        assert consumer.until_consumed(30)["dead_lettered_count"] == 0
        shown = [message["value"] for message in consumer.messages(limit=30)]
        assert all(one in shown for one in made)
        wait_until(lambda: pipeline.committed() == 30)
