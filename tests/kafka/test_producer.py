import asyncio
import gzip
import json
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiokafka.partitioner import DefaultPartitioner
from services import ENDED_WITHIN_S, Lines, Pipeline, Record, Service, event, in_time, value_of, wait_until

PARTITIONS = list(range(6))
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module", params=["on", "off"])
def accelerators(request: pytest.FixtureRequest) -> str:
    """All promises hold with the accelerators, and by public means alone with compressed batches."""
    return str(request.param)


@pytest.fixture(scope="module")
def shared(accelerators: str, bootstrap_servers: str, logs: Path) -> Iterator[Pipeline]:  # noqa: ARG001 - a topic for each
    with Pipeline(bootstrap_servers, logs) as shared:
        yield shared


@pytest.fixture(scope="module")
def producer(accelerators: str, shared: Pipeline) -> Iterator[Service]:
    with shared.producer(ACCELERATORS=accelerators, COMPRESSION="lz4" if accelerators == "off" else "none") as service:
        yield service.until_healthy()


def chosen_by_aiokafka(key: str) -> int:
    return int(DefaultPartitioner()(key.encode(), PARTITIONS, PARTITIONS))


def assert_true(
    receipts: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]], records: Sequence[Record]
) -> None:
    """Each receipt names the place and time where the topic really has that event."""
    places = {(record.partition, record.offset): record for record in records}
    assert [receipt["id"] for receipt in receipts] == [one["id"] for one in events]
    for receipt, one in zip(receipts, events, strict=True):
        record = places[receipt["partition"], receipt["offset"]]
        assert record.key == one["id"].encode()
        assert record.value == value_of(one)
        assert record.timestamp == receipt["timestamp"]
        assert record.headers == ()


def one_key_of_partition(partition: int, prefix: str = "") -> str:
    return next(key for n in range(1_000) if chosen_by_aiokafka(key := f"{prefix}{n}") == partition)


def test_a_producer_with_kafka_is_healthy(producer: Service) -> None:
    health = producer.get("/health-check")
    assert health["status"] == "ok"
    assert health["service"] == "producer"
    assert health["kafka"] == "connected"
    assert health["version"]


def test_ten_made_up_events_are_answered_and_stand_on_the_topic_by_default(producer: Service, shared: Pipeline) -> None:
    made = producer.post("/producers/events/generate")
    assert len(made) == 10
    written = {(record.key, record.value): record.partition for record in shared.records()}
    for one in made:
        assert written[one["id"].encode(), value_of(one)] == chosen_by_aiokafka(one["id"])


def test_the_receipt_of_one_event_is_true(producer: Service, shared: Pipeline) -> None:
    one = event()
    answer = producer.http.post("/producers/events", json=one)
    assert answer.status_code == 201
    assert answer.json()["delivered"] == 1
    assert_true(answer.json()["receipts"], [one], shared.records())


def test_the_receipts_of_a_list_are_true_and_in_its_order(producer: Service, shared: Pipeline) -> None:
    events = [event(text=f"Ada {n}") for n in range(500)]
    answer = producer.post("/producers/events", json=events)
    assert answer["delivered"] == 500
    assert_true(answer["receipts"], events, shared.records())


def test_ids_at_the_limits_and_in_any_script_are_delivered(producer: Service, shared: Pipeline) -> None:
    events = [event(event_id) for event_id in ("a", "日" * 64, "🙂" * 64, "é\u0000\n", "x" * 64)]
    events += [event(number=0), event(number=150), event(text="")]
    assert_true(producer.post("/producers/events", json=events)["receipts"], events, shared.records())


def test_records_of_one_key_keep_their_order_in_a_list_of_thousands(producer: Service, shared: Pipeline) -> None:
    events = [event(f"order-{n % 7}", text=str(n)) for n in range(5_000)]
    assert producer.post("/producers/events", json=events)["delivered"] == 5_000
    on_topic: dict[str, list[bytes]] = {}
    for record in shared.records():
        if record.key and record.key.startswith(b"order-"):
            on_topic.setdefault(record.key.decode(), []).append(record.value or b"")
    for n in range(7):
        assert on_topic[f"order-{n}"] == [value_of(one) for one in events if one["id"] == f"order-{n}"]


def test_a_body_of_50_megabytes_is_refused(producer: Service, shared: Pipeline) -> None:
    before = shared.end_offsets()

    async def post() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", producer.port)
        length = 50 * 1024 * 1024
        writer.write(
            b"POST /producers/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {length}\r\n\r\n".encode()
        )
        answer = asyncio.create_task(reader.readuntil(b"}"))
        try:
            for _ in range(length // 2**20):
                writer.write(b" " * 2**20)
                await writer.drain()
        except ConnectionError:  # it need not listen to the end
            pass
        return await answer

    answer = in_time(post())
    assert answer.startswith(b"HTTP/1.1 413"), answer
    assert b"application/problem+json" in answer
    assert shared.end_offsets() == before


async def stream(producer: Service, pieces: Sequence[Sequence[bytes]]) -> list[dict[str, Any]]:
    """Send lines and read their receipts at the same time."""
    async with Lines.opened(producer) as lines:

        async def send() -> None:
            for piece in pieces:
                await lines.send(*piece)
            await lines.end()

        sending = asyncio.create_task(send())
        receipts = [receipt async for receipt in lines.receipts()]
        await sending
        return receipts


def test_twenty_thousand_lines_get_true_receipts_in_order_while_they_are_sent(
    producer: Service, shared: Pipeline
) -> None:
    events = [event(text=str(n)) for n in range(20_000)]
    encoded = [json.dumps(one).encode() for one in events]
    receipts = in_time(stream(producer, [encoded[at : at + 250] for at in range(0, 20_000, 250)]))
    assert_true(receipts, events, shared.records())


def test_a_bad_line_is_reported_by_its_number_and_its_neighbours_are_delivered(
    producer: Service, shared: Pipeline
) -> None:
    events = [event() for _ in range(4)]
    good = [json.dumps(one).encode() for one in events]
    bad = [b"not json", b'{"id": "\xff"}', json.dumps([event()]).encode(), b"[" * 50_000, b"x" * 2_000_000]
    lines = [good[0], bad[0], good[1], b"", bad[1], bad[2], good[2], bad[3], bad[4], good[3]]
    receipts = in_time(stream(producer, [lines]))
    assert [receipt["line"] for receipt in receipts if "line" in receipt] == [2, 5, 6, 8, 9]
    assert all(receipt["outcome"] == "not_written" for receipt in receipts if "line" in receipt)
    assert [receipt.get("id") for receipt in receipts] == [
        events[0]["id"], None, events[1]["id"], None, None, events[2]["id"], None, None, events[3]["id"],
    ]  # fmt: skip
    assert_true([receipt for receipt in receipts if "id" in receipt], events, shared.records())


def test_a_caller_that_leaves_in_the_middle_of_its_lines_harms_nobody(producer: Service, shared: Pipeline) -> None:
    async def leave() -> None:
        async with Lines.opened(producer) as lines:
            await lines.send(*[json.dumps(event()).encode() for _ in range(3_000)])

    in_time(leave())
    one = event()
    assert_true(producer.post("/producers/events", json=one)["receipts"], [one], shared.records())
    assert producer.get("/health-check")["status"] == "ok"


async def answer_to(producer: Service, headers: bytes, *pieces: bytes) -> bytes:
    """Send pieces of a chunked body that never ends, and return all that is answered until the connection closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", producer.port)
    head = b"POST /producers/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
    writer.write(head + headers + b"Transfer-Encoding: chunked\r\n\r\n")
    for piece in pieces:
        writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    answer = await reader.read(-1)
    writer.close()
    return answer


def assert_cut_off(answer: bytes, lines: int) -> None:
    """The answer has begun, its last line says how many lines were taken, and it has no end."""
    assert answer.startswith(b"HTTP/1.1 200"), answer
    last = json.loads(answer.splitlines()[-2])  # behind it stands the end of its chunk
    assert last["outcome"] == "broken_off"
    assert last["lines"] == lines
    assert f"{lines} lines before that were taken" in last["error"]
    assert not answer.endswith(b"0\r\n\r\n")


def test_an_answer_to_lines_that_break_off_does_not_end_as_if_it_were_whole(
    producer: Service, shared: Pipeline
) -> None:
    before = sum(shared.end_offsets().values())
    whole = gzip.compress(b"".join(json.dumps(event()).encode() + b"\n" for _ in range(100)))
    cut = gzip.compress(json.dumps(event()).encode())  # an event, but neither a line break nor the end of the body
    answer = in_time(answer_to(producer, b"Content-Encoding: gzip\r\n", whole, cut, b"no gzip"))
    assert_cut_off(answer, 100)
    assert answer.count(b'"offset"') == 100
    assert sum(shared.end_offsets().values()) - before == 100
    assert "error" not in producer.log.read_text().lower()


def test_the_end_of_a_service_is_not_the_end_of_the_lines_that_it_reads(shared: Pipeline) -> None:
    body = json.dumps(event("last")).encode() + b"\n{"
    with shared.producer() as ending, ThreadPoolExecutor(1) as pool:
        ending.until_healthy()
        answering = pool.submit(in_time, answer_to(ending, b"", body))
        wait_until(lambda: "last" in shared.records_by_key())
        ending.terminate()
        assert_cut_off(answering.result(), 1)
        assert ending.exit_status(ENDED_WITHIN_S) == 0


def test_what_slow_callers_announce_keeps_nobody_else_out(producer: Service) -> None:
    head = b"POST /producers/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/%s\r\n"
    body = b"Content-Length: 16777216\r\n\r\n["
    with ExitStack() as stack:
        for kind in (b"json", b"x-ndjson") * 40:
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", producer.port)))
            slow.sendall(head % kind + body)
        assert producer.post("/producers/events", json=[event() for _ in range(1_000)])["delivered"] == 1_000
        lines = json.dumps(event("among-slow")).encode()
        answer = producer.http.post(
            "/producers/events", content=lines, headers={"content-type": "application/x-ndjson"}
        )
        assert json.loads(answer.text)["id"] == "among-slow"


def test_a_topic_of_small_batches_takes_many_small_events_and_refuses_a_large_one(pipeline: Pipeline) -> None:
    pipeline.create_topic(6, max_message_bytes="2000")
    with pipeline.producer() as producer:
        producer.until_healthy()
        events = [event(text=f"{n}") for n in range(1_000)]
        receipts = producer.post("/producers/events", json=events)["receipts"]
        assert_true(receipts, events, pipeline.records())
        before = pipeline.end_offsets()
        large = [event(), event(text="x" * 2_000)]
        refused = producer.http.post("/producers/events", json=large)
        assert refused.status_code == 400
        assert [fault["path"] for fault in refused.json()["errors"]] == ["$[1]"]
        assert pipeline.end_offsets() == before


def test_what_kafka_refuses_is_reported_as_not_written_and_the_next_request_works(pipeline: Pipeline) -> None:
    with pipeline.producer() as producer:
        producer.until_healthy()
        producer.send(10)
        pipeline.alter_topic(max_message_bytes="1000")
        before = pipeline.end_offsets()
        refused = producer.http.post("/producers/events", json=[event("one") for _ in range(20)])
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        problem = refused.json()
        assert problem["delivered"] == 0
        assert {receipt["outcome"] for receipt in problem["receipts"]} == {"not_written"}
        assert len(problem["receipts"]) == 20
        assert pipeline.end_offsets() == before
        for _ in range(3):
            one = event("one")
            assert_true(producer.post("/producers/events", json=one)["receipts"], [one], pipeline.records())


def test_what_kafka_refuses_of_a_list_is_distinguished_from_what_it_took(pipeline: Pipeline) -> None:
    with pipeline.producer() as producer:
        producer.until_healthy()
        pipeline.alter_topic(max_message_bytes="1000")
        events = [
            event(one_key_of_partition(0, "small-")),
            event(one_key_of_partition(1, "large-"), text="x" * 1_500),
            event(one_key_of_partition(2, "small-")),
        ]
        answer = producer.http.post("/producers/events", json=events)
        assert answer.status_code == 207
        assert answer.json()["delivered"] == 2
        first, refused, last = answer.json()["receipts"]
        assert refused["outcome"] == "not_written"
        assert "MessageSizeTooLarge" in refused["error"]
        assert "offset" not in refused
        assert_true([first, last], [events[0], events[2]], pipeline.records())
        assert events[1]["id"] not in pipeline.records_by_key()
        again = event(events[1]["id"])
        assert_true(producer.post("/producers/events", json=again)["receipts"], [again], pipeline.records())


def test_two_producers_at_once_lose_and_double_nothing(pipeline: Pipeline) -> None:
    with pipeline.producer() as one, pipeline.producer() as other, ThreadPoolExecutor(8) as pool:
        one.until_healthy()
        other.until_healthy()
        calls = [pool.submit(s.send, 2_000) for s in (one, other) * 4]
        made = [one["id"] for call in calls for one in call.result()]
        on_topic = [record.key.decode() for record in pipeline.records() if record.key]
        assert len(made) == 16_000
        assert sorted(on_topic) == sorted(made)


def test_callers_at_the_same_time_each_get_their_own_receipts(producer: Service, shared: Pipeline) -> None:
    lists = [[event(text=f"{caller}-{n}") for n in range(50)] for caller in range(40)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda events: producer.post("/producers/events", json=events), lists))
    records = shared.records()
    for events, answer in zip(lists, answers, strict=True):
        assert_true(answer["receipts"], events, records)
        for partition in PARTITIONS:
            offsets = [receipt["offset"] for receipt in answer["receipts"] if receipt["partition"] == partition]
            assert all(a < b for a, b in pairwise(offsets))
