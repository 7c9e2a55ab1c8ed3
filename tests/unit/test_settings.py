import os
import socket
from functools import partial

import pytest
from aiokafka.conn import get_ip_port_afi
from hypothesis import given
from hypothesis import strategies as st

from apps.chassis.service import listen
from apps.chassis.setting_reading import read_settings as read_settings_of
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import BY_STREAM, Settings
from contracts.stream import FIELDS, variables_of
from tests.event import EVENTS

read_settings = partial(read_settings_of, streams=[EVENTS])
NAMES = [*(name for name in Settings.__struct_encode_fields__ if name != BY_STREAM), *variables_of(EVENTS)]
DEFAULTS = {
    "KAFKA_BOOTSTRAP_SERVERS": "localhost:9092",
    "EVENTS_TOPIC": "events",
    "EVENTS_PARTITIONS": 6,
    "EVENTS_REPLICATION": 1,
    "EVENTS_DEAD_LETTER_TOPIC": "events-dlt",
    "EVENTS_GROUP_ID": "events-consumer",
    "HOST": "127.0.0.1",
    "PRODUCER_PORT": 8000,
    "CONSUMER_PORT": 8001,
    "WINDOW_SIZE": 10_000,
    "SLOW_BATCH_SECONDS": 300,
    "PRODUCER_URL": None,
    "CORS_ORIGINS": "",
    "ALLOWED_HOSTS": "",
    "ROOT_PATH": "",
}
NO_ORIGINS = [
    "localhost:8000",
    "//localhost:8000",
    "ftp://localhost",
    "http://",
    "http://localhost:",
    "http://localhost:0",
    "http://localhost:65536",
    "http://localhost/",
    "http://localhost/events",
    "http://user@localhost",
    "http://Localhost",
    "http://local host",
    "http://localhost;script-src *",
    "http://localhost\nX-Header: 1",
    "http://*.example",
    "null",
    "*",
]

WRONG = [
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://localhost:4317"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:65536"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:password@a:port"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[a"),
    ("KAFKA_BOOTSTRAP_SERVERS", "localhost"),
    ("KAFKA_BOOTSTRAP_SERVERS", "a..b:9092"),
    ("KAFKA_BOOTSTRAP_SERVERS", ".a:9092"),
    ("KAFKA_BOOTSTRAP_SERVERS", "a" * 64 + ":9092"),
    ("KAFKA_BOOTSTRAP_SERVERS", "localhost:"),
    ("KAFKA_BOOTSTRAP_SERVERS", ":9092"),
    ("KAFKA_BOOTSTRAP_SERVERS", "localhost:kafka"),
    ("KAFKA_BOOTSTRAP_SERVERS", "a:9092,"),
    ("KAFKA_BOOTSTRAP_SERVERS", "a:9092,,b:9092"),
    ("KAFKA_BOOTSTRAP_SERVERS", "a:9092 b:9092"),
    ("KAFKA_BOOTSTRAP_SERVERS", "kafka://a:9092"),
    ("KAFKA_BOOTSTRAP_SERVERS", "a:9092,b:0"),
    ("KAFKA_BOOTSTRAP_SERVERS", "a:9092,b:65536"),
    ("KAFKA_BOOTSTRAP_SERVERS", "a:9092\nb:9092"),
    ("KAFKA_BOOTSTRAP_SERVERS", "::1:9092"),
    ("KAFKA_BOOTSTRAP_SERVERS", "[::1]"),
    ("KAFKA_BOOTSTRAP_SERVERS", "[::1:9092"),
    ("KAFKA_BOOTSTRAP_SERVERS", "[kafka]:9092"),
    ("EVENTS_TOPIC", "events and others"),
    ("EVENTS_TOPIC", "."),
    ("EVENTS_TOPIC", ".."),
    ("EVENTS_TOPIC", "__consumer_offsets"),
    ("EVENTS_TOPIC", "x" * 250),
    ("EVENTS_TOPIC", "leute-größe"),
    ("EVENTS_PARTITIONS", "0"),
    ("EVENTS_PARTITIONS", "six"),
    ("EVENTS_PARTITIONS", "1.5"),
    ("EVENTS_PARTITIONS", "10001"),
    ("EVENTS_REPLICATION", "0"),
    ("EVENTS_REPLICATION", "-1"),
    ("EVENTS_REPLICATION", "101"),
    ("EVENTS_DEAD_LETTER_TOPIC", "dead/letters"),
    ("EVENTS_DEAD_LETTER_TOPIC", "events"),
    ("EVENTS_DEAD_LETTER_TOPIC", "x" * 241),
    ("EVENTS_GROUP_ID", "g" * 256),
    ("EVENTS_GROUP_ID", "no UTF-8: \udcff"),
    ("KAFKA_SASL_PASSWORD", "no UTF-8: \udcff"),
    ("HOST", "no UTF-8: \udcff"),
    ("PRODUCER_PORT", "0"),
    ("PRODUCER_PORT", "65536"),
    ("PRODUCER_PORT", "http"),
    ("CONSUMER_PORT", "0"),
    ("LIVENESS_PORT", "65536"),
    ("LIVENESS_PORT", "on"),
    ("CONSUMER_PORT", "8001.5"),
    ("WINDOW_SIZE", "0"),
    ("SLOW_BATCH_SECONDS", "0"),
    ("WINDOW_SIZE", "many"),
    ("WINDOW_SIZE", "1e4"),
    ("WINDOW_SIZE", "10000.0"),
    ("WINDOW_SIZE", "1_000"),
    ("WINDOW_SIZE", "9" * 30),
    ("WINDOW_SIZE", "1000001"),
    *(
        ("PRODUCER_URL", origin)
        for origin in NO_ORIGINS
        if origin not in {"http://localhost/", "http://localhost/events"}
    ),
    ("PRODUCER_URL", "/"),
    ("PRODUCER_URL", "producer"),
    ("PRODUCER_URL", "http://a/events?x"),
    ("PRODUCER_URL", "http://a//b"),
    ("PRODUCER_URL", "http://a/../b"),
    ("PRODUCER_URL", "http://a:0/b"),
    ("PRODUCER_URL", "http://a/b;script-src *"),
    ("ROOT_PATH", "kafka"),
    ("ROOT_PATH", "//kafka"),
    ("ROOT_PATH", "/kafka//a"),
    ("ROOT_PATH", "/kafka/.."),
    ("ROOT_PATH", "/kaf ka"),
    ("ROOT_PATH", "/kafka?x"),
    ("ROOT_PATH", "http://a/kafka"),
    ("ALLOWED_HOSTS", "http://a"),
    ("ALLOWED_HOSTS", "a:8001"),
    ("ALLOWED_HOSTS", "a,"),
    ("ALLOWED_HOSTS", "a b"),
    ("ALLOWED_HOSTS", "*example"),
    ("ALLOWED_HOSTS", "a.*"),
    ("ALLOWED_HOSTS", "a/b"),
    *(("CORS_ORIGINS", origin) for origin in NO_ORIGINS),
    ("PRODUCER_URL", "http://a,http://b"),
    ("CORS_ORIGINS", "http://a,"),
    ("CORS_ORIGINS", "http://a http://b"),
    ("CORS_ORIGINS", "http://a,*"),
    ("DEAD_LETTER_RETENTION", "30"),
    ("EVENTS_DEAD_LETTER_RETENTION", "for ever"),
    ("LOG_LEVEL", "LOUD"),
    ("LOG_LEVEL", "info"),
    ("LOG_FORMAT", "xml"),
    ("COMPRESSION", "lzma"),
    ("CLIENT_RACK", "r" * 256),
]


def setting(settings: Settings, variable: str) -> object:
    """Return what a variable sets."""
    for field in FIELDS:
        if variable in EVENTS.variables(field):
            return getattr(settings.of(EVENTS), field)
    return getattr(settings, variable.lower())


@pytest.mark.parametrize(("variable", "value"), DEFAULTS.items())
def test_a_variable_that_is_not_set_takes_the_default_for_a_laptop(variable: str, value: object) -> None:
    assert setting(read_settings({"PATH": "/bin", "UNRELATED": ""}), variable) == value


@pytest.mark.parametrize(
    "variable", [*DEFAULTS, "LOG_LEVEL", "LOG_FORMAT", "COMPRESSION", "CLIENT_RACK", "OTEL_EXPORTER_OTLP_ENDPOINT"]
)
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_means_its_default(variable: str, empty: str) -> None:
    assert read_settings({variable: empty}) == read_settings({})


@pytest.mark.parametrize(
    ("own", "common", "seconds"),
    [("", "", None), ("", "30d", 2_592_000), ("12h", "30d", 43_200), ("unlimited", "30d", None), ("12h", "", 43_200)],
)
def test_a_stream_keeps_dead_letters_as_long_as_its_own_variable_says_or_the_common_one(
    own: str, common: str, seconds: int | None
) -> None:
    settings = read_settings({"EVENTS_DEAD_LETTER_RETENTION": own, "DEAD_LETTER_RETENTION": common})
    assert settings.of(EVENTS).dead_letter_retention_s == seconds


def test_dead_letters_must_not_be_deleted_before_they_are_sent_back() -> None:
    with pytest.raises(WrongSetting, match=r"^DEAD_LETTER_RETENTION: must be longer .* REDRIVE_AFTER, got '1h' for ev"):
        read_settings({"EVENTS_DEAD_LETTER_RETENTION": "1h", "REDRIVE_AFTER": "10m,60m"})


@pytest.mark.parametrize(("variable", "value"), WRONG)
def test_a_wrong_value_stops_the_start_with_one_line_that_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(WrongSetting) as stopped:
        read_settings({variable: value})
    line = str(stopped.value)
    assert line.startswith(f"{variable}: ")
    assert "\n" not in line
    others = set(Settings.__struct_encode_fields__) - {"EVENTS_TOPIC"}
    assert not [name for name in others if name in line and name not in variable]


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("EVENTS_PARTITIONS", "x", "a whole number from 1 to 10000, got 'x'"),
        ("WINDOW_SIZE", "1e4", "a whole number from 1 to 1000000, got '1e4'"),
        ("LOG_LEVEL", "LOUD", "one of CRITICAL, DEBUG, ERROR, INFO, WARNING, got 'LOUD'"),
        ("EVENTS_GROUP_ID", "g" * 256, "text of 1 to 255 characters, got "),
        ("CLIENT_RACK", "r" * 256, "text of 0 to 255 characters, got "),
        ("EVENTS_TOPIC", "a b", "a topic's name "),
        ("EVENTS_DEAD_LETTER_TOPIC", "x" * 241, "a topic's name (1 to 240 "),
        ("PRODUCER_URL", "ftp://x", "an address like http://localhost:8000 or https://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "x", "an address like http://localhost:4318, got 'x'"),
        ("KAFKA_BOOTSTRAP_SERVERS", "::1:9092", "host:port, several with commas"),
    ],
)
def test_the_line_says_what_is_expected_in_plain_words(variable: str, value: str, expected: str) -> None:
    with pytest.raises(WrongSetting) as stopped:
        read_settings({variable: value})
    assert str(stopped.value).startswith(f"{variable}: expected {expected}")


@pytest.mark.parametrize(
    ("variable", "value", "read"),
    [
        ("ROOT_PATH", "/kafka/", "/kafka"),
        ("ROOT_PATH", "/a.b/c_d~e/f-1", "/a.b/c_d~e/f-1"),
        ("ROOT_PATH", "/", ""),
        ("PRODUCER_URL", "http://localhost/", "http://localhost"),
        ("PRODUCER_URL", "https://events.example:8443/kafka/producer/", "https://events.example:8443/kafka/producer"),
        ("PRODUCER_URL", "/kafka/producer", "/kafka/producer"),
        (
            "ALLOWED_HOSTS",
            "Events.example, *.svc,10.1.2.3,[::1],::1,a_b",
            "Events.example, *.svc,10.1.2.3,[::1],::1,a_b",
        ),
        ("ALLOWED_HOSTS", "*", "*"),
    ],
)
def test_hosts_and_paths_are_taken_as_operators_write_them(variable: str, value: str, read: str) -> None:
    assert getattr(read_settings({variable: value}), variable.lower()) == read


@pytest.mark.parametrize("server", ["[::1]:9092", "[fe80::1]:9093", "[::ffff:10.0.0.1]:1"])
def test_a_broker_at_an_ipv6_address_is_asked_as_the_client_understands_it(server: str) -> None:
    settings = read_settings({"KAFKA_BOOTSTRAP_SERVERS": f"{server}, b.example:9092"})
    assert settings.bootstrap_servers == [server, "b.example:9092"]
    host, port, family = get_ip_port_afi(server)
    assert (f"[{host}]:{port}", family) == (server, socket.AF_INET6)


@pytest.mark.parametrize("variable", ["EVENTS_TOPIC", "HOST", "EVENTS_GROUP_ID"])
def test_no_text_takes_its_value_from_another_variable(variable: str) -> None:
    settings = read_settings({variable: "other"})
    assert {name for name in NAMES if setting(settings, name) == "other"} >= {variable}
    assert {setting(settings, name) for name in DEFAULTS.keys() - {variable}} == set(DEFAULTS.values()) - {
        DEFAULTS[variable]
    }


def test_every_value_given_is_taken() -> None:
    given = {
        "KAFKA_BOOTSTRAP_SERVERS": "kafka:9093",
        "EVENTS_TOPIC": "events",
        "EVENTS_PARTITIONS": "12",
        "EVENTS_REPLICATION": "3",
        "EVENTS_DEAD_LETTER_TOPIC": "events.dead_1",
        "EVENTS_GROUP_ID": "group of ours",
        "HOST": "::1",
        "PRODUCER_PORT": "1",
        "CONSUMER_PORT": "65535",
        "WINDOW_SIZE": "1000000",
        "PRODUCER_URL": "https://producer.example:8443",
        "CORS_ORIGINS": "http://[::1]:8001,https://page.example",
        "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": "json",
        "CLIENT_RACK": "use1-az1",
    }
    settings = read_settings({**given, "WINDOW_SIZE": " 1000000 "})
    assert {name: str(setting(settings, name)) for name in given} == given


def test_the_brokers_are_a_list_in_the_order_given() -> None:
    settings = read_settings({"KAFKA_BOOTSTRAP_SERVERS": "b.example:9092, a.example:9093 ,10.0.0.1:1"})
    assert settings.bootstrap_servers == ["b.example:9092", "a.example:9093", "10.0.0.1:1"]


def test_the_origins_that_may_call_the_producer_are_a_list_in_the_order_given() -> None:
    settings = read_settings({"CORS_ORIGINS": "http://localhost:8001, http://127.0.0.1:8001 ,https://page.example"})
    assert settings.allowed_origins == ["http://localhost:8001", "http://127.0.0.1:8001", "https://page.example"]
    assert read_settings({}).allowed_origins == []


def test_events_and_dead_letters_must_not_share_a_topic() -> None:
    with pytest.raises(WrongSetting, match=r"EVENTS_DEAD_LETTER_TOPIC: .*EVENTS_TOPIC.*'same'"):
        read_settings({"EVENTS_TOPIC": "same", "EVENTS_DEAD_LETTER_TOPIC": "same"})
    with pytest.raises(WrongSetting, match="EVENTS_DEAD_LETTER_TOPIC"):
        read_settings({"EVENTS_TOPIC": "events-dlt"})


VARIABLES = st.sampled_from(NAMES)
VALUES = (
    st.text()
    | st.integers().map(str)
    | st.sampled_from([value for _, value in WRONG])
    | st.tuples(st.text(), st.integers()).map(lambda pair: f"{pair[0]}:{pair[1]}")
)


@given(st.dictionaries(VARIABLES | st.text(), VALUES, max_size=8))
def test_any_environment_gives_settings_or_one_line_that_names_a_variable(environment: dict[str, str]) -> None:
    found = settings_or_line(environment)
    if isinstance(found, Settings):
        assert all(":" in server for server in found.bootstrap_servers)
        assert found.of(EVENTS).topic != found.of(EVENTS).dead_letter_topic
    else:
        variable, colon, _ = found.partition(": ")
        assert (colon, variable in NAMES) == (": ", True)
        assert len(found.splitlines()) == 1


def settings_or_line(environment: dict[str, str]) -> Settings | str:
    try:
        return read_settings(environment)
    except WrongSetting as error:
        return str(error)


@pytest.mark.parametrize("host", ["a..b", "a" * 64, ".."])
def test_what_cannot_be_a_host_name_is_a_wrong_host(host: str) -> None:
    with pytest.raises(WrongSetting, match=r"HOST: cannot listen on .*: "):
        listen(host, 0, "PRODUCER_PORT")


def test_an_address_of_another_machine_is_a_wrong_host() -> None:
    with pytest.raises(WrongSetting, match=r"HOST: cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 0, "PRODUCER_PORT")  # of nobody (RFC 5737)


def test_a_port_that_is_taken_is_a_wrong_port() -> None:
    with listen("127.0.0.1", 0, "PRODUCER_PORT") as taken:
        port = taken.getsockname()[1]
        holder = rf"by .* \(process {os.getpid()}\)"
        with pytest.raises(WrongSetting, match=f"PRODUCER_PORT: cannot listen on 127.0.0.1:{port}: .*, {holder}$"):
            listen("127.0.0.1", port, "PRODUCER_PORT")
