import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from secured import (
    CERTIFICATE_DOOR,
    EXPIRED_DOOR,
    GROUP,
    NARROW_DOOR,
    PASSWORD_DOOR,
    STRANGE_DOOR,
    TOPIC,
    TRANSACTIONAL_ID,
    SecuredKafka,
    yesterday,
)
from services import PATIENCE, REDRIVE, Pipeline, Raw, Service, event, value_of, wait_until

from apps.chassis.kafka.clients import ClientOptions, client_options, new_broker
from apps.chassis.kafka.diagnosis import diagnosis
from apps.chassis.setting_reading import read_settings

SAID_WITHIN = 10.0
"""Seconds in which a service says what is wrong; its looks at Kafka are 5 s apart when nobody asks."""
PASSWORD = "a secret of many words"  # noqa: S105 - of nobody


@pytest.fixture(scope="module")
def kafka(startable_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    assert startable_kafka is None
    with SecuredKafka(tmp_path_factory.mktemp("secured")).running() as running:
        change_passwords(running, PASSWORD)
        yield running


@pytest.fixture
def pipeline(kafka: SecuredKafka, logs: Path) -> Pipeline:
    """Topics and group that an administrator has made, and the least rights that the two services need."""
    made = Pipeline(kafka.open_door, logs)
    made.create_topics(partitions=2)
    kafka.allow("events-producer", TOPIC, made.topic, "write", "describe configs")
    kafka.allow("events-consumer", TOPIC, made.topic, "read", "describe configs")
    kafka.allow("events-consumer", TOPIC, made.dead_letter_topic, "write", "describe configs")
    kafka.allow("events-consumer", TOPIC, f"{made.dead_letter_topic}-redriven", "describe", "describe configs")
    kafka.allow("events-consumer", GROUP, made.group, "read")
    return made


def allow_redrives(kafka: SecuredKafka, pipeline: Pipeline) -> None:
    """Give the rights that it takes, besides the least, to show dead letters and to send them back."""
    kafka.allow("events-consumer", TOPIC, pipeline.topic, "write")
    kafka.allow("events-consumer", TOPIC, pipeline.dead_letter_topic, "read")
    kafka.allow("events-consumer", TOPIC, f"{pipeline.dead_letter_topic}-redriven", "read", "write")
    kafka.allow("events-consumer", TRANSACTIONAL_ID, f"{pipeline.group}-redrive", "write")


def change_passwords(kafka: SecuredKafka, password: str) -> None:
    for user in ("events-producer", "events-consumer"):
        kafka.set_password(user, password)


def by_password(kafka: SecuredKafka, user: str, password: str = PASSWORD, **more: str) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": kafka.address(PASSWORD_DOOR),
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_USERNAME": user,
        "KAFKA_SASL_PASSWORD": password,
        "KAFKA_SSL_CAFILE": kafka.cafile,
    } | more


def by_token(kafka: SecuredKafka, token_file: str) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": kafka.address(NARROW_DOOR),
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": "OAUTHBEARER",
        "KAFKA_SASL_TOKEN_FILE": token_file,
        "KAFKA_SSL_CAFILE": kafka.cafile,
    }


def by_certificate(kafka: SecuredKafka, **own: str) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": kafka.address(CERTIFICATE_DOOR),
        "KAFKA_SECURITY_PROTOCOL": "SSL",
        "KAFKA_SSL_CAFILE": kafka.cafile,
    } | own


def until_said(service: Service, words: str) -> None:
    """Wait until the health check and the log say it, and a consumer's status."""

    def said() -> bool:
        health = service.http.get("/health-check")
        return health.status_code == 503 and words in health.json()["detail"] and words in service.log.read_text()

    wait_until(said, SAID_WITHIN, f"for {words!r}: {service.http.get('/health-check').text}")
    assert PASSWORD not in service.log.read_text()


def assert_not_written(producer: Service, words: str) -> None:
    answer = producer.http.post("/producers/events", json=event())
    assert answer.status_code == 503
    (receipt,) = answer.json()["receipts"]
    assert receipt["outcome"] == "not_written"
    assert words in receipt["error"]


async def diagnosed(options: ClientOptions) -> str | None:
    """Return what a service says of Kafka, once a busy machine has Kafka answer in time."""
    async with asyncio.timeout(PATIENCE):
        while "no answer in time" in (found := await diagnosis(options) or ""):  # noqa: ASYNC110 - Kafka sets no event of ours
            await asyncio.sleep(0.1)
    return found or None


def test_every_way_to_show_who_one_is_works(kafka: SecuredKafka, pipeline: Pipeline) -> None:
    kafka.set_password("events-producer", PASSWORD, "SCRAM-SHA-256")
    for user in ("plain", "holder", "certified"):
        kafka.allow(user, TOPIC, pipeline.topic, "write")
    own = {"KAFKA_SSL_CERTFILE": kafka.certificate("good", "certified")}
    ways = [
        by_password(kafka, "events-producer"),
        by_password(kafka, "events-producer", KAFKA_SASL_MECHANISM="SCRAM-SHA-256"),
        by_password(kafka, "plain", "plain secret", KAFKA_SASL_MECHANISM="PLAIN"),
        by_token(kafka, kafka.token("good", "holder")),
        by_certificate(kafka, **own),
    ]

    async def send() -> None:
        for way in ways:
            options = client_options(read_settings(way), "producer")
            assert await diagnosed(options) is None
            async with new_broker(options) as broker:
                await broker.start()
                await broker.publish(b"of one who is known", pipeline.topic)

    asyncio.run(send())
    assert len(pipeline.records()) == len(ways)


@pytest.fixture(scope="module")
def cases(kafka: SecuredKafka) -> dict[str, dict[str, str]]:
    """What is said of ways not to be let in; the first of them can be mended without a change of the settings."""
    strangers = str(kafka.folder / "strangers")
    trustme.CA().cert_pem.write_to_path(strangers)
    good = by_password(kafka, "events-producer")
    token = kafka.token("expired", "holder", lifetime=-3_600)
    over = {"KAFKA_SSL_CERTFILE": kafka.certificate("expired", "certified", not_after=yesterday())}
    fine = {"KAFKA_SSL_CERTFILE": kafka.certificate("good", "certified"), "KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}

    def at(door: str, **more: str) -> dict[str, str]:
        return {"KAFKA_BOOTSTRAP_SERVERS": kafka.address(door), **more}

    return {
        "the password or user is refused by Kafka": by_password(kafka, "changed"),
        "the token of KAFKA_SASL_TOKEN_FILE is refused by Kafka: it expired at": by_token(kafka, token),
        "certificate of KAFKA_SSL_CERTFILE is refused by Kafka: it expired at": by_certificate(kafka, **over),
        "the certificate of Kafka is not accepted: certificate has expired": good | at(EXPIRED_DOOR),
        "the certificate of Kafka is not accepted: IP address mismatch": good | at(STRANGE_DOOR),
        "the certificate of Kafka is not accepted: unable": good | {"KAFKA_SSL_CAFILE": strangers},
        "Kafka wants a client certificate": by_certificate(kafka),
        "KAFKA_SASL_MECHANISM PLAIN is not accepted": good | at(NARROW_DOOR, KAFKA_SASL_MECHANISM="PLAIN"),
        "does KAFKA_SECURITY_PROTOCOL PLAINTEXT fit": at(PASSWORD_DOOR),
        "does KAFKA_SECURITY_PROTOCOL SSL fit": by_certificate(kafka) | at(PASSWORD_DOOR),
        "does KAFKA_SECURITY_PROTOCOL SASL_SSL fit": good | {"KAFKA_BOOTSTRAP_SERVERS": kafka.open_door},
        "Kafka takes no password there": good | at(CERTIFICATE_DOOR) | fine,
    }


def test_why_nobody_is_let_in_is_reported_in_words(cases: dict[str, dict[str, str]]) -> None:
    async def ask() -> list[str | None]:
        return [await diagnosed(client_options(read_settings(case), "producer")) for case in cases.values()]

    reported = dict(zip(cases, asyncio.run(ask()), strict=True))
    assert {words: reason for words, reason in reported.items() if words not in (reason or "")} == {}


def test_who_is_not_let_in_says_why_and_is_let_in_once_that_is_mended(
    kafka: SecuredKafka, pipeline: Pipeline, cases: dict[str, dict[str, str]]
) -> None:
    for user in ("holder", "certified", "changed"):
        kafka.allow(user, TOPIC, pipeline.topic, "write", "describe configs")
    with ExitStack() as stack:
        mendable = list(cases.items())[:4]
        services = {words: stack.enter_context(pipeline.producer(**case)) for words, case in mendable}
        for words, service in services.items():
            service.until_answers("/livez", 200)
            until_said(service, words)
            answer = service.http.post("/producers/events", json=event())
            assert answer.status_code == 503
            assert words in answer.json()["detail"]

        kafka.set_password("changed", PASSWORD)
        kafka.token("expired", "holder")
        kafka.certificate("expired", "certified")
        kafka.certify(EXPIRED_DOOR)
        kafka.restart()
        for service in services.values():
            service.until_healthy()
            service.post("/producers/events", json=event())

        refused, by_it = list(services.items())[1]
        kafka.token("expired", "holder", lifetime=-3_600)  # of a service that had been let in
        until_said(by_it, refused)
        kafka.token("expired", "holder")
        by_it.until_healthy()
        by_it.post("/producers/events", json=event())


def test_the_least_rights_are_enough_and_without_one_it_is_named_and_nothing_is_lost_until_it_is_given_back(
    kafka: SecuredKafka, pipeline: Pipeline
) -> None:
    topic, dead, group = pipeline.topic, pipeline.dead_letter_topic, pipeline.group
    with (
        pipeline.producer(**by_password(kafka, "events-producer")) as producer,
        pipeline.consumer(**by_password(kafka, "events-consumer")) as consumer,
    ):
        producer.until_healthy()
        consumer.until_healthy()
        producer.post("/producers/events", json=event())
        consumer.until_consumed(1)

        kafka.forbid("events-producer", TOPIC, topic, "write")
        assert_not_written(producer, "no permission for the topic")
        until_said(producer, f"no permission to write to topic {topic}")
        kafka.allow("events-producer", TOPIC, topic, "write")
        producer.until_healthy()

        for words, resource, name in (
            (f"no permission to read topic {topic}", TOPIC, topic),
            (f"no permission for the group {group}", GROUP, group),
        ):
            consumed = len(pipeline.records())
            kafka.forbid("events-consumer", resource, name, "read")
            producer.post("/producers/events", json=event())
            until_said(consumer, words)
            assert words in consumer.status()["last_error"]
            kafka.allow("events-consumer", resource, name, "read")
            consumer.until_healthy()
            consumer.until_consumed(consumed + 1)
        assert "has not polled" not in consumer.log.read_text(), "health said that all was well, and it was not"

        kafka.forbid("events-consumer", TOPIC, dead, "write")
        pipeline.write([Raw(b"bad"), Raw(value_of(event()))])
        until_said(consumer, f"no permission to write to dead-letter topic {dead}")
        records = len(pipeline.records())
        assert pipeline.committed() == records - 2
        assert consumer.status()["dead_lettered_count"] == 0
        kafka.allow("events-consumer", TOPIC, dead, "write")
        consumer.until_healthy()
        consumer.until_consumed(records)
        wait_until(lambda: pipeline.committed() == records)
        assert [record.value for record in pipeline.records(dead)] == [b"bad"]

        assert "no permission for the topic" in consumer.http.get("/consumers/dead-letters").json()["detail"]
        answer = consumer.http.post(REDRIVE, json={"limit": 1})
        assert answer.status_code == 503
        assert "no permission for the transactional id" in answer.json()["detail"]
        allow_redrives(kafka, pipeline)
        (letter,) = consumer.letters()
        assert letter["value"] == {"text": "bad"}
        assert consumer.redrive(limit=1) == 1
        consumer.until_consumed(records + 1)

        change_passwords(kafka, "changed")
        kafka.restart()
        for service in (producer, consumer):
            until_said(service, "the password or user is refused by Kafka")
        change_passwords(kafka, PASSWORD)
        producer.until_healthy()
        consumer.until_healthy()
        producer.post("/producers/events", json=event())
        consumer.until_consumed(records + 2)
