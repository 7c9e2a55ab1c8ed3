import msgspec
import pytest

from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.topic_settings import Found, Topic, differences
from apps.chassis.kafka.topics import dead_letter_topic, marks_topic, record_topic
from apps.chassis.settings import Settings, StreamSettings

SETTINGS = StreamSettings(topic="events", dead_letter_topic="events-dlt", group_id="events-consumer")
RECORDS, LETTERS, MARKS = record_topic(SETTINGS), dead_letter_topic(SETTINGS), marks_topic(SETTINGS)
RETENTION_MS = "604800000"
PASSING = dead_letter_topic(msgspec.structs.replace(SETTINGS, dead_letter_retention="7d"))


def found(topic: Topic, replication: int = 1, /, **settings: str) -> Found:
    """Return a topic as it was created, but for some settings."""
    changed = {name.replace("_", "."): value for name, value in settings.items()}
    by_default = {"retention.ms": RETENTION_MS, "retention.bytes": "-1"}
    return Found(topic.partitions, replication, by_default | topic.configs | changed)


@pytest.mark.parametrize(
    "topic", [RECORDS, LETTERS, MARKS, PASSING], ids=["events", "dead letters", "marks", "passing"]
)
def test_a_topic_that_a_service_created_is_as_it_is_wanted(topic: Topic) -> None:
    assert differences(topic, found(topic)) == []


@pytest.mark.parametrize(
    ("topic", "settings", "deletes"),
    [
        (RECORDS, {"cleanup_policy": "compact"}, True),
        (RECORDS, {"cleanup_policy": "compact,delete"}, True),
        (RECORDS, {"cleanup_policy": ""}, False),
        (RECORDS, {"retention_ms": "60000"}, True),
        (RECORDS, {"retention_ms": "-1"}, False),
        (RECORDS, {"retention_bytes": "1000000"}, True),
        (LETTERS, {"retention_ms": RETENTION_MS}, True),
        (LETTERS, {"retention_bytes": "1000000"}, True),
        (PASSING, {"retention_ms": "604799999"}, True),
        (PASSING, {"retention_ms": "604800001"}, False),
        (LETTERS, {"cleanup_policy": "compact"}, True),
        (LETTERS, {"cleanup_policy": "delete, compact"}, True),
        (LETTERS, {"cleanup_policy": "", "retention_ms": RETENTION_MS}, False),
        (MARKS, {"cleanup_policy": "delete"}, False),
        (MARKS, {"cleanup_policy": "delete", "retention_ms": RETENTION_MS}, True),
        (MARKS, {"cleanup_policy": "compact,delete", "retention_ms": RETENTION_MS}, True),
        (MARKS, {"cleanup_policy": "delete,compact", "retention_bytes": "1"}, True),
        (MARKS, {"cleanup_policy": "compact,delete"}, False),
        (MARKS, {"retention_ms": RETENTION_MS, "retention_bytes": "1"}, False),
        (MARKS, {"cleanup_policy": ""}, False),
    ],
)
def test_settings_that_have_kafka_delete_what_must_be_kept_are_found(
    topic: Topic, settings: dict[str, str], *, deletes: bool
) -> None:
    differing = differences(topic, found(topic, **settings))
    assert any(difference.deletes for difference in differing) == deletes
    assert all(difference.lost for difference in differing if difference.deletes)


def test_dead_letters_that_are_kept_longer_than_the_settings_say_are_reported() -> None:
    assert PASSING.configs["retention.ms"] == RETENTION_MS
    (difference,) = differences(PASSING, found(PASSING, retention_ms="-1"))
    assert str(difference) == "retention.ms -1, wanted 604800000: records are kept longer than the settings say"


def test_the_segments_of_dead_letters_are_closed_before_their_retention_ends() -> None:
    brief = dead_letter_topic(msgspec.structs.replace(SETTINGS, dead_letter_retention="12h"))
    assert (brief.configs["retention.ms"], brief.configs["segment.ms"]) == ("43200000", "43200000")
    assert "segment.ms" not in LETTERS.configs


def test_a_marks_topic_that_is_not_compacted_is_reported_though_it_keeps_all() -> None:
    assert [str(one) for one in differences(MARKS, found(MARKS, cleanup_policy="delete"))] == [
        "cleanup.policy delete, wanted compact"
    ]


@pytest.mark.parametrize(
    ("settings", "replication", "lost"),
    [
        ({"min_insync_replicas": "1"}, 3, "too few brokers"),
        ({"min_insync_replicas": "3"}, 3, None),
        ({}, 2, "fewer brokers than wanted"),
        ({"unclean_leader_election_enable": "true"}, 3, "lacks acknowledged records"),
    ],
)
def test_settings_that_lose_acknowledged_records_with_a_broker_are_found(
    settings: dict[str, str], replication: int, lost: str | None
) -> None:
    topic = msgspec.structs.replace(RECORDS, replication=3)
    (difference,) = differences(topic, found(topic, replication, **settings))
    assert (difference.lost or "").count(lost or "") == 1 if lost else difference.lost is None
    assert not difference.deletes


def test_a_dead_letter_topic_that_does_not_take_the_largest_record_of_its_topic_is_found() -> None:
    small = found(LETTERS, max_message_bytes="1048588")
    (difference,) = differences(LETTERS, small, source_max_bytes=1_048_588)
    assert "block their partition" in str(difference)
    (difference,) = differences(LETTERS, small, source_max_bytes=1_000_000)
    assert difference.lost is None
    (difference,) = differences(LETTERS, found(LETTERS), source_max_bytes=LETTERS.max_message_bytes)
    assert "block their partition" in str(difference)


def test_topics_that_keep_the_time_of_a_client_are_reported_where_its_wrong_clock_would_have_them_refuse() -> None:
    for topic in (LETTERS, MARKS):
        (difference,) = differences(topic, found(topic, message_timestamp_type="CreateTime"))
        assert str(difference) == (
            "message.timestamp.type CreateTime, wanted LogAppendTime: "
            "records of an instance whose clock is wrong may be refused"
        )
        assert not difference.deletes
    assert differences(RECORDS, found(RECORDS, message_timestamp_type="CreateTime")) == []


def test_a_marks_topic_that_is_too_small_for_its_marks_is_found() -> None:
    (difference,) = differences(MARKS, found(MARKS, max_message_bytes="1000"))
    assert str(difference) == "max.message.bytes 1000, wanted 1048588: its records may not fit"
    (difference,) = differences(MARKS, found(MARKS, max_message_bytes="2000000"))
    assert difference.lost is None


def test_health_reports_which_guarantees_do_not_hold_and_forgets_what_was_mended() -> None:
    cluster = Cluster(client_options(Settings(), "consumer"), [LETTERS])
    cluster._report(LETTERS, differences(LETTERS, found(LETTERS, retention_ms=RETENTION_MS)))
    assert cluster.at_risk("events are consumed") == (
        "events are consumed; topic events-dlt: retention.ms 604800000, wanted -1: "
        "after that time dead letters are deleted"
    )
    assert cluster.reports["events-dlt"] == [
        "retention.ms 604800000, wanted -1: after that time dead letters are deleted"
    ]
    cluster._report(LETTERS, [])
    assert cluster.at_risk("events are consumed") == "events are consumed"
