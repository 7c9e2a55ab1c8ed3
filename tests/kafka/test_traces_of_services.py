from confidential import MARK, content_in
from litestar.testing import TestClient
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_current_span
from services import Pipeline, event, wait_until

from apps.chassis.observability.opentelemetry import OpenTelemetry
from apps.chassis.settings import Settings, StreamSettings
from apps.consumer.app import create_app as create_consumer
from apps.consumer.consuming.batch import Batch
from apps.producer.app import create_app as create_producer
from tests.event import EVENTS, Event

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_one_trace_leads_from_the_call_over_the_record_to_the_handler_and_quotes_no_record(
    pipeline: Pipeline,
) -> None:
    exporter = InMemorySpanExporter()
    handled_in: list[str] = []

    async def handle(batch: Batch[Event]) -> None:
        handled_in.extend(f"{get_current_span().get_span_context().trace_id:032x}" for _ in batch.values)

    of_events = StreamSettings(
        topic=pipeline.topic, dead_letter_topic=pipeline.dead_letter_topic, group_id=pipeline.group
    )
    settings = Settings(kafka_bootstrap_servers=pipeline.bootstrap_servers, by_stream={"events": of_events})
    producer_app = create_producer(
        settings, streams=[EVENTS], traces=OpenTelemetry("producer", SimpleSpanProcessor(exporter))
    )
    consumer_app = create_consumer(
        settings,
        streams=[EVENTS],
        handlers={EVENTS: handle},
        traces=OpenTelemetry("consumer", SimpleSpanProcessor(exporter)),
    )
    with TestClient(producer_app) as producer, TestClient(consumer_app) as consumer:
        wait_until(lambda: all(client.get("/health-check").is_success for client in (producer, consumer)))
        events = [event(f"{MARK}-{number}") for number in range(5)]
        headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
        answer = producer.post("/producers/events", json=events, headers=headers)
        assert answer.status_code == 201
        wait_until(lambda: len(handled_in) == 5)
    assert handled_in == [TRACE] * 5
    spans = [
        span for span in exporter.get_finished_spans() if span.context and f"{span.context.trace_id:032x}" == TRACE
    ]
    by_name = {span.name: span for span in spans}
    assert by_name.keys() == {"POST /producers/events", f"send {pipeline.topic}", f"process {pipeline.topic}"}
    call = by_name["POST /producers/events"]
    assert call.parent is not None
    assert f"{call.parent.span_id:016x}" == SPAN
    assert {span.resource.attributes["service.name"] for span in spans} == {"producer", "consumer"}
    assert call.context is not None
    for span in spans:
        assert span is call or (span.parent is not None and span.parent.span_id == call.context.span_id)
    for record in pipeline.records():
        assert [name for name, _ in record.headers] == ["traceparent"]
    reported = [
        (span.name, dict(span.attributes or {}), span.events, span.status) for span in exporter.get_finished_spans()
    ]
    assert content_in("\n".join(map(str, reported))) == []
