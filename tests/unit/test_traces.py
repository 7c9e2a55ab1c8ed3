import gzip
import subprocess
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import msgspec
import pytest
from litestar.testing import TestClient
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from samples import Stored, as_json

from apps.chassis.observability.logs import trace_id
from apps.chassis.observability.opentelemetry import MAX_STATE_CHARACTERS, MAX_TRACES, OpenTelemetry, sending_to
from apps.chassis.observability.traces import Traces
from apps.chassis.observability.tracing import traces_of
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings
from apps.producer.publishing.lanes import Limits
from tests.event_services import create_consumer, create_producer

OUT_OF_REACH = Settings(kafka_bootstrap_servers="127.0.0.1:1")
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


class Followed:
    """A service's traces, kept in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.traces = OpenTelemetry("service", SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()


@pytest.fixture
def followed() -> Followed:
    return Followed()


def in_trace(number: int) -> Stored:
    return Stored(offset=number, headers=[("traceparent", f"00-{number:032x}-{SPAN}-01".encode())])


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


@pytest.mark.slow
def test_services_that_send_no_traces_do_not_even_import_what_would() -> None:
    code = (
        "import sys; from apps.chassis.settings import Settings; from apps.producer import app as producer;"
        "from apps.consumer import app as consumer; producer.create_app(Settings()); consumer.create_app(Settings());"
        "sys.exit(any(f'opentelemetry.{part}' in sys.modules for part in ('trace', 'sdk', 'exporter')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_traces_are_off_unless_it_is_set_where_they_go() -> None:
    assert type(traces_of(Settings(), "producer")) is Traces
    where = Settings(otel_exporter_otlp_endpoint="http://127.0.0.1:4318")
    assert isinstance(traces_of(where, "producer"), OpenTelemetry)


def test_traces_without_what_sends_them_are_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "apps.chassis.observability.opentelemetry")
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    with pytest.raises(WrongSetting, match=r"OTEL_EXPORTER_OTLP_ENDPOINT: .*`tracing`"):
        traces_of(Settings(otel_exporter_otlp_endpoint="http://127.0.0.1:4318"), "producer")


def test_a_request_is_followed_in_the_trace_of_its_caller_by_its_route(followed: Followed) -> None:
    with TestClient(create_consumer(OUT_OF_REACH, traces=followed.traces)) as client:
        client.get("/consumers/messages?key=Ada", headers={"traceparent": PARENT})
    (span,) = followed.spans
    assert trace_of(span) == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN
    assert (span.name, span.kind) == ("GET /consumers/messages", SpanKind.SERVER)
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/consumers/messages",
        "http.response.status_code": 200,
    }


def test_a_request_without_a_trace_or_with_a_wrong_one_begins_one_and_probes_are_not_followed(
    followed: Followed,
) -> None:
    with TestClient(create_consumer(OUT_OF_REACH, traces=followed.traces)) as client:
        client.get("/nowhere/Ada")
        client.get("/nowhere/Ada", headers={"traceparent": "not a trace"})
        for path in ("/livez", "/health-check", "/metrics"):
            assert client.get(path).headers["x-request-id"]
    assert [span.name for span in followed.spans] == ["GET", "GET"]
    assert trace_of(followed.spans[0]) != trace_of(followed.spans[1])
    assert all(span.parent is None for span in followed.spans)


def test_a_call_that_cannot_be_served_is_an_error_in_its_trace(
    followed: Followed,
) -> None:
    with TestClient(create_producer(OUT_OF_REACH, limits=Limits(connect_s=0.01), traces=followed.traces)) as client:
        client.post("/producers/events", content=as_json(), headers={"content-type": "application/json"})
    (span,) = followed.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.events == ()


def test_records_of_a_followed_call_are_given_its_trace_and_others_none(followed: Followed) -> None:
    assert followed.traces.headers() is None
    with followed.traces.publishing("events", 1):
        headers = followed.traces.headers()
    assert headers is not None
    assert headers.keys() == {"traceparent"}
    assert headers["traceparent"].split("-")[1] == trace_of(followed.spans[0])


@pytest.mark.parametrize(("length", "kept"), [(MAX_STATE_CHARACTERS, True), (MAX_STATE_CHARACTERS + 1, False)])
def test_the_state_of_a_trace_is_passed_on_unless_it_is_too_long(length: int, *, kept: bool) -> None:
    followed = Followed()
    state = f"a={'x' * 250},b={'y' * 200},c=".encode()
    state += b"z" * (length - len(state))
    record = Stored(headers=[("traceparent", PARENT.encode()), ("tracestate", state)])
    with followed.traces.handling([record]):
        headers = followed.traces.headers()
    assert headers is not None
    assert ("tracestate" in headers) is kept
    assert sum(len(name) + len(value) for name, value in headers.items()) <= OpenTelemetry.header_bytes


def test_a_batch_is_handled_in_the_trace_that_its_records_came_with(followed: Followed) -> None:
    records = [Stored(offset=number, headers=[("traceparent", PARENT.encode())]) for number in (4, 5)]
    with followed.traces.handling(records):
        assert trace_id.get() == TRACE
        current = get_current_span().get_span_context()
    assert trace_id.get() is None
    (span,) = followed.spans
    assert span.context == current
    assert (span.name, span.kind, trace_of(span)) == ("process events", SpanKind.CONSUMER, TRACE)
    assert (span.attributes or {})["messaging.batch.message_count"] == 2
    assert (span.attributes or {})["messaging.kafka.offset"] == 4


def test_of_a_batch_of_many_traces_each_has_a_span_linked_to_that_in_which_it_is_handled(followed: Followed) -> None:
    records = [Stored(), *map(in_trace, (1, 2, 2, 3))]
    with followed.traces.handling(records):
        current = get_current_span().get_span_context()
    counted = {
        int(trace_of(span), 16): (span.attributes or {})["messaging.batch.message_count"] for span in followed.spans
    }
    assert counted == {1: 1, 2: 2, 3: 1}
    linked = {trace_of(span): [link.context for link in span.links] for span in followed.spans}
    assert linked == {f"{1:032x}": [], f"{2:032x}": [current], f"{3:032x}": [current]}


def test_a_batch_of_ever_so_many_traces_makes_no_more_than_some_spans(followed: Followed) -> None:
    with followed.traces.handling([in_trace(number) for number in range(1, 2_001)]):
        pass
    assert len(followed.spans) == MAX_TRACES


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("traceparent", None)],
        [("traceparent", b"\xff\xfe")],
        [("traceparent", b"00-0-0-01")],
        [("tracestate", b"a=b")],
        [("other", None)],
    ],
)
def test_a_batch_without_a_trace_or_with_a_wrong_one_begins_one(
    headers: list[tuple[str, bytes | None]], followed: Followed
) -> None:
    with followed.traces.handling([Stored(headers=headers)]):
        pass
    (span,) = followed.spans
    assert span.parent is None


def test_of_what_a_handler_raises_its_trace_reports_the_type_alone(followed: Followed) -> None:
    with pytest.raises(ValueError, match="Ada"), followed.traces.handling([Stored()]):
        raise ValueError("nobody is called Ada")
    (span,) = followed.spans
    assert (span.attributes or {})["error.type"] == "ValueError"
    assert span.status.status_code is StatusCode.ERROR
    assert "Ada" not in span.to_json()


class Collector(BaseHTTPRequestHandler):
    """Takes traces as a collector does, and remembers them."""

    taken: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        self.taken.append((self.path, gunzipped(self.rfile.read(int(self.headers["content-length"])))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def gunzipped(body: bytes) -> bytes:
    return gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body


def test_the_collector_has_all_spans_when_the_service_has_ended() -> None:
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        collecting = threading.Thread(target=server.serve_forever)
        collecting.start()
        where = f"http://127.0.0.1:{server.server_port}/"
        settings = msgspec.structs.replace(OUT_OF_REACH, otel_exporter_otlp_endpoint=where)
        with TestClient(create_consumer(settings)) as client:
            client.get("/consumers/messages", headers={"traceparent": PARENT})
        server.shutdown()
        collecting.join()
    ((path, spans),) = Collector.taken
    assert path == "/v1/traces"
    assert bytes.fromhex(TRACE) in spans
    assert b"GET /consumers/messages" in spans


def test_a_service_ends_when_nobody_takes_its_traces() -> None:
    traces = sending_to("http://127.0.0.1:1", "consumer")
    with TestClient(create_consumer(OUT_OF_REACH, traces=traces)) as client:
        assert client.get("/consumers/messages").status_code == 200
