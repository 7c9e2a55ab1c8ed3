import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from services import PATIENCE, Pipeline, Raw, Record, Service, divided, event, value_of, wait_until

PARTITIONS = 3
BAD = [Raw(b"not json", b"bad"), Raw(None, b"tombstone"), Raw(b"\xff", None, (("h", None), ("h", b"\xfe")))]


class Event(NamedTuple):
    """A server-sent event."""

    kind: str
    id: str
    data: Any


@pytest.fixture
def pipeline(pipeline: Pipeline) -> Pipeline:
    pipeline.create_topic(PARTITIONS)
    return pipeline


@pytest.fixture
def consumer(pipeline: Pipeline) -> Iterator[Service]:
    with pipeline.consumer() as consumer:
        yield consumer.until_healthy()


def write_events(pipeline: Pipeline, count: int, name: str = "Ada") -> list[Record]:
    """Write events to the partitions in turn."""
    raws = [Raw(value_of(one), one["id"].encode()) for one in (event(text=f"{name} {n}") for n in range(count))]
    return pipeline.write_to([(raw, n % PARTITIONS) for n, raw in enumerate(raws)])


def newest(service: Service, **parameters: Any) -> list[tuple[int, int]]:  # noqa: ANN401 - of a query
    answer = service.get("/consumers/messages", scope="topic", **parameters)
    return [(one["partition"], one["offset"]) for one in answer["messages"]]


def places(records: list[Record]) -> list[tuple[int, int]]:
    return [(record.partition, record.offset) for record in records]


def as_time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1_000, UTC).isoformat()


@contextmanager
def watching(service: Service, last: str | None = None, **parameters: str | int) -> Iterator[Iterator[Event]]:
    """Open the live tail; the events end when nothing comes for 30 s."""
    headers = {} if last is None else {"Last-Event-ID": last}
    with service.http.stream("GET", "/consumers/messages/stream", params=parameters, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = lines_of(answer)
        assert next(lines).startswith("retry:")
        yield events_of(lines)


def lines_of(answer: httpx.Response) -> Iterator[str]:
    rest = b""
    for piece in answer.iter_raw():
        *lines, rest = (rest + piece).split(b"\n")
        yield from map(bytes.decode, lines)


def events_of(lines: Iterator[str]) -> Iterator[Event]:
    kind, last, data = "message", "", ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "id":
            last = value
        elif name == "data":
            data = value
        elif not line and data:
            yield Event(kind, last, json.loads(data))
            kind, data = "message", ""


def of_records(events: list[Event]) -> list[tuple[int, int]]:
    return [(event.data["partition"], event.data["offset"]) for event in events]


def test_the_newest_of_the_whole_topic_are_the_same_whichever_instance_is_asked(pipeline: Pipeline) -> None:
    written = write_events(pipeline, 30)
    with pipeline.consumer() as one, pipeline.consumer() as other:
        for service in (one, other):
            service.until_healthy()
            assert newest(service, limit=20) == places(written[-20:])
            assert newest(service, limit=1_000) == places(written)


def test_records_are_found_by_key_text_partition_and_time(consumer: Service, pipeline: Pipeline) -> None:
    written = write_events(pipeline, 12)
    (marked,) = pipeline.write([Raw(value_of(event("k1", text="Grace Höpper")), b"k1")], partition=1)
    later = write_events(pipeline, 6)
    assert newest(consumer, key="k1") == [(1, marked.offset)]
    assert newest(consumer, q="Grace Höpper") == [(1, marked.offset)]
    assert newest(consumer, q="nobody has this name") == []
    assert newest(consumer, partition=2) == [place for place in places([*written, *later]) if place[0] == 2]
    assert newest(consumer, **{"from": as_time(marked.timestamp), "limit": 100}) == places(
        [r for r in [*written, marked, *later] if r.timestamp >= marked.timestamp]
    )
    assert newest(consumer, to=as_time(marked.timestamp), limit=100) == places(
        [r for r in written if r.timestamp < marked.timestamp]
    )
    assert newest(consumer, **{"from": "2999-01-01T00:00:00Z"}) == []
    assert newest(consumer, to="1969-01-01T00:00:00Z") == []


def test_a_time_divides_records_whose_times_do_not_grow_with_their_offsets(
    consumer: Service, pipeline: Pipeline
) -> None:
    now = time.time_ns() // 1_000_000
    for at in (now, now + 3, now + 1, now + 2, now + 4, -1):  # -1 stands for none
        pipeline.write_batch(Raw(value_of(event())), timestamp=at)
    assert newest(consumer, **{"from": as_time(now + 2)}) == [(0, 1), (0, 3), (0, 4)]
    assert newest(consumer, to=as_time(now + 2)) == [(0, 0), (0, 2), (0, 5)]
    assert newest(consumer, to=as_time(now + 2), **{"from": as_time(now + 1)}) == [(0, 2)]


def test_what_is_no_event_is_shown_as_what_it_is(consumer: Service, pipeline: Pipeline) -> None:
    written = pipeline.write(BAD, partition=0)
    broken, tombstone, binary = consumer.get("/consumers/messages", scope="topic")["messages"]
    assert (broken["value"], broken["content"], broken["key"]) == (None, {"text": "not json"}, {"text": "bad"})
    assert "malformed" in broken["error"]
    assert (tombstone["value"], tombstone["content"]) == (None, None)
    assert "tombstone" in tombstone["error"]
    assert (binary["key"], binary["content"]) == (None, {"base64": "/w=="})
    assert binary["headers"] == [{"name": "h", "value": None}, {"name": "h", "value": {"base64": "/g=="}}]
    assert consumer.get(f"/consumers/messages/0/{written[1].offset}") == tombstone


def test_what_this_instance_never_consumed_is_shown_too_and_found_by_its_offset(
    consumer: Service, pipeline: Pipeline
) -> None:
    consumer.post("/consumers/stop")
    one = event("one")
    (written,) = pipeline.write([Raw(value_of(one), b"one", (("trace", b"1"),))], partition=2)
    assert newest(consumer) == [(2, written.offset)]
    assert consumer.messages() == []
    assert consumer.get(f"/consumers/messages/2/{written.offset}") == {
        "topic": pipeline.topic,
        "partition": 2,
        "offset": written.offset,
        "timestamp": written.timestamp,
        "key": {"text": "one"},
        "value": one,
        "content": None,
        "headers": [{"name": "trace", "value": {"text": "1"}}],
        "error": None,
        "deleted": False,
    }


def test_where_no_record_is_the_answer_says_why(consumer: Service, pipeline: Pipeline) -> None:
    def why(partition: int, offset: int) -> tuple[str, int | None]:
        answer = consumer.http.get(f"/consumers/messages/{partition}/{offset}")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.json()["detail"], answer.json()["next"]

    asyncio.run(write_in_transactions(pipeline))  # offset 0 committed, its mark 1, 2 aborted, its mark 3
    wait_until(lambda: pipeline.end_offsets()[0] == 4)  # Kafka answers before it writes a mark
    pipeline.write([Raw(b"behind")], partition=0)
    assert why(PARTITIONS, 0) == (f"{pipeline.topic} has no partition 3, but 0 to 2", None)
    assert why(0, 5) == ("nothing was written there yet: the next record will have offset 5", None)
    assert why(0, 10**19)[0].startswith("nothing was written there yet")
    for none in ("0/-1", "0/+1", "0/1_0", "0/\u0661", "-0/1", "0/x"):
        answer = consumer.http.get(f"/consumers/messages/{none}")
        assert (answer.status_code, answer.json()["detail"]) == (404, "Not Found")
    assert why(0, 1) == ("no record: it was compacted away, or is the mark of a transaction's end", 4)
    assert why(0, 2) == ("its transaction was aborted: it counts as never written", 4)
    assert newest(consumer, partition=0) == [(0, 0), (0, 4)]
    pipeline.delete_before({0: 4})
    assert why(0, 0) == ("deleted: the records of partition 0 begin at offset 4", 4)
    assert newest(consumer, partition=0) == [(0, 4)]


def test_of_a_record_behind_an_open_transaction_the_answer_says_that_it_waits(
    consumer: Service, pipeline: Pipeline
) -> None:
    async def look() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=pipeline.bootstrap_servers, transactional_id=pipeline.group)
        async with producer, producer.transaction():
            await producer.send_and_wait(pipeline.topic, b"uncommitted", partition=0)
            await asyncio.to_thread(pipeline.write, [Raw(b"behind")])
            for offset in (0, 1):
                answer = await asyncio.to_thread(consumer.http.get, f"/consumers/messages/0/{offset}")
                assert answer.json()["detail"] == "it waits for the end of a transaction that began at offset 0"
            answer = await asyncio.to_thread(consumer.http.get, "/consumers/messages/0/2")
            assert answer.json()["detail"] == "nothing was written there yet: the next record will have offset 2"

    asyncio.run(look())


async def write_in_transactions(pipeline: Pipeline) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=pipeline.bootstrap_servers, transactional_id=pipeline.group)
    async with producer:
        async with producer.transaction():
            await producer.send_and_wait(pipeline.topic, b"committed", partition=0)
        await producer.begin_transaction()
        await producer.send_and_wait(pipeline.topic, b"aborted", partition=0)
        await producer.abort_transaction()


def test_the_live_tail_shows_each_record_once_as_it_comes(consumer: Service, pipeline: Pipeline) -> None:
    write_events(pipeline, 3, "before")
    with watching(consumer) as events:
        written = write_events(pipeline, 9)
        bad = pipeline.write(BAD, partition=1)
        seen = list(islice(events, 12))
    assert sorted(of_records(seen)) == sorted(places(written + bad))
    assert seen[0].data["value"]["text"].startswith("Ada")
    assert seen[-1].id == "_".join(f"{partition}-{at}" for partition, at in sorted(pipeline.end_offsets().items()))


def test_the_live_tail_goes_on_behind_any_event_on_any_instance_and_after_a_restart(pipeline: Pipeline) -> None:
    with pipeline.consumer() as one, pipeline.consumer() as other:
        one.until_healthy()
        other.until_healthy()
        with watching(one) as events:
            written = write_events(pipeline, 20)
            seen = list(islice(events, 8))
        written += write_events(pipeline, 20)
        with watching(other, seen[-1].id) as events:
            seen += list(islice(events, 12))
        one.kill()
    with pipeline.consumer() as restarted:
        restarted.until_answers("/consumers/messages?scope=topic", 200)
        with watching(restarted, seen[-1].id) as events:
            written += write_events(pipeline, 10)
            seen += list(islice(events, 30))
    assert sorted(of_records(seen)) == sorted(places(written))
    for partition in range(PARTITIONS):
        offsets = [offset for number, offset in of_records(seen) if number == partition]
        assert offsets == sorted(offsets)


def test_a_request_for_what_cannot_be_read_is_answered_so(consumer: Service, pipeline: Pipeline) -> None:
    write_events(pipeline, 3)
    pipeline.write_what_only_java_decompresses(value_of(event()), 1)
    for path in ("/consumers/messages/1/1", "/consumers/messages?scope=topic"):
        answer = consumer.http.get(path)
        assert answer.status_code == 502, answer.text
        problem = answer.json()
        assert (problem["type"], problem["title"]) == ("/problems/unreadable", "A record cannot be read")
        assert f"{pipeline.topic}-1 offset 1 cannot be read" in problem["detail"]
    assert newest(consumer, partition=0) == [(0, 0)]
    assert consumer.get("/consumers/messages/1/0")["key"]


def test_records_that_were_deleted_in_between_are_reported_as_a_gap(consumer: Service, pipeline: Pipeline) -> None:
    with watching(consumer) as events:
        write_events(pipeline, 3)
        last = list(islice(events, 3))[-1]
    pipeline.write([Raw(b"x")] * 5, partition=0)
    pipeline.delete_before({0: 4})
    with watching(consumer, last.id) as events:
        gap, *records = islice(events, 3)
    assert (gap.kind, gap.data) == ("gap", {"partition": 0, "from": 1, "to": 4, "reason": "deleted"})
    assert of_records(records) == [(0, 4), (0, 5)]


def test_what_cannot_be_read_is_reported_once_as_a_gap_and_the_tail_goes_on_behind_it(
    consumer: Service, pipeline: Pipeline
) -> None:
    with watching(consumer) as events:
        written = write_events(pipeline, 30)
        pipeline.write_what_only_java_decompresses(value_of(event()), 1)
        live = list(islice(events, 31))
        written += write_events(pipeline, 30)
        live += list(islice(events, 30))
    with watching(consumer, "0-0_1-0_2-0") as events:
        again = list(islice(events, 61))
        written += write_events(pipeline, 6)
        again += list(islice(events, 6))
    for seen, count in ((live, 60), (again, 66)):
        records = [event for event in seen if event.kind == "message"]
        assert sorted(of_records(records)) == sorted(places(written[:count]))
        (gap,) = (event.data for event in seen if event.kind == "gap")
        assert "the compressed records are damaged" in gap.pop("reason")
        assert gap == {"partition": 1, "from": 10, "to": 11}


def test_who_comes_from_a_topic_that_was_recreated_learns_that(consumer: Service, pipeline: Pipeline) -> None:
    pipeline.write([Raw(b"x")], partition=1)
    with watching(consumer, "0-0_1-500_2-0") as events:
        gap, record = islice(events, 2)
    assert gap.data == {"partition": 1, "from": 500, "to": 0, "reason": "the topic was recreated"}
    assert of_records([record]) == [(1, 0)]


def test_who_does_not_read_is_cut_off_and_nobody_else_waits(consumer: Service, pipeline: Pipeline) -> None:
    with socket.socket() as silent, watching(consumer) as events:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        silent.settimeout(PATIENCE)
        silent.connect(("127.0.0.1", consumer.port))
        silent.sendall(b"GET /consumers/messages/stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert silent.recv(1)
        pipeline.fill(40_000, partition=0)
        assert len(list(islice(events, 40_000))) == 40_000
        last = b""
        while received := silent.recv(2**20):
            last = (last + received)[-1_000:]
    assert b"event: cut-off" in last
    consumer.until_consumed(40_000)


def test_a_service_that_ends_lets_those_who_watch_go(consumer: Service) -> None:
    with watching(consumer) as events:
        consumer.terminate()
        assert list(events) == []
    assert consumer.exit_status(10) == 0


def test_the_group_shows_who_has_which_partition_and_how_far_it_is(pipeline: Pipeline) -> None:
    with pipeline.consumer() as one, pipeline.consumer() as other:
        one.until_healthy()
        other.until_healthy()
        wait_until(lambda: divided(one, other, partitions=PARTITIONS))
        write_events(pipeline, 6)
        wait_until(lambda: pipeline.committed() == 6)
        own = {service.status()["member_id"]: service for service in (one, other)}
        assert one.get("/consumers/group") == other.get("/consumers/group")
        group = one.get("/consumers/group")
        assert (group["group_id"], group["state"]) == (pipeline.group, "Stable")
        assert {member["member_id"] for member in group["members"]} == set(own)
        for partition in group["partitions"]:
            assert (partition["committed"], partition["end"], partition["lag"]) == (2, 2, 0)
            assert partition["partition"] in own[partition["owner"]].partitions()
        for service in (one, other):
            service.post("/consumers/stop")
        wait_until(lambda: not [p for p in one.get("/consumers/group")["partitions"] if p["owner"]])
