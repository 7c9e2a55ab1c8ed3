"""What people try first: `producer --help`, `--version` and `--check`, and an argument that does not exist."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apps.chassis.command_line import MEANINGS, run
from apps.chassis.settings import BY_STREAM, Settings
from apps.consumer.app import create_app
from apps.consumer.consuming.resource import resource, settings_of
from contracts import STREAMS
from contracts.stream import Stream, variables_of

SETTINGS_PAGE = Path(__file__).parents[2] / "docs/reference/settings.md"


def ended(monkeypatch: pytest.MonkeyPatch, *arguments: str, **environment: str) -> object:
    """Return the status, or the line, that the command line of a consumer ends with."""
    monkeypatch.setattr("sys.argv", ["consumer", *arguments])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        run("consumer", "Reads records.", create_app)
    return end.value.code


def prefix_of(stream: Stream[Any]) -> str:
    return stream.variables("topic")[0].removesuffix("TOPIC")


def test_help_lists_each_setting_with_its_default_and_its_meaning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, "--help") == 0
    listed = dict(re.findall(r"^  ([A-Z_]+)=\S* +(\S.*)$", capsys.readouterr().out, re.MULTILINE))
    own = {name for stream in STREAMS for name in variables_of(stream) if name.startswith(prefix_of(stream))}
    assert listed.keys() == {*Settings.__struct_encode_fields__, *own} - {BY_STREAM}
    explained = SETTINGS_PAGE.read_text()
    assert [name for name in listed if name not in own and name not in explained] == []
    assert MEANINGS["window_size"] in listed["WINDOW_SIZE"]


class SinkSettings(Settings, kw_only=True, frozen=True):
    database_url: str
    pool_size: int = 4


def test_help_lists_what_the_handlers_need_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sinks = [resource(lambda settings: settings, SinkSettings) for _ in range(2)]
    monkeypatch.setattr("sys.argv", ["consumer", "--help"])
    with pytest.raises(SystemExit):
        run("consumer", "Reads records.", create_app, settings_of([*sinks, print]))
    listed = re.findall(r"^  ([A-Z_]+=\S*) +(.*of a handler.*)$", capsys.readouterr().out, re.MULTILINE)
    assert listed == [("DATABASE_URL=", "of a handler, which needs it"), ("POOL_SIZE=4", "of a handler")]


def test_the_version_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(monkeypatch, "--version") == 0
    assert re.fullmatch(r"consumer \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_an_unknown_argument_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(monkeypatch, "--port", "80") == 2
    assert "unrecognized arguments: --port 80" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("WINDOW_SIZE", "many", "WINDOW_SIZE: expected a whole number"),
        ("HOST", "0.0.0.0", "HOST: on 0.0.0.0 anyone who can reach the service"),  # noqa: S104 - refused
        ("SSL_CERTFILE", "missing.pem", "SSL_CERTFILE: "),
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1", "Kafka at 127.0.0.1:1 is out of reach"),
    ],
)
def test_a_check_ends_with_the_line_that_a_start_would_end_with_or_why_kafka_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, line: str
) -> None:
    assert str(ended(monkeypatch, "--check", **{variable: value})).startswith(line)


MISSPELT = {
    "KAFKA_BOOTSTRAP_SERVER": "KAFKA_BOOTSTRAP_SERVERS",
    "PRODUCER_PROT": "PRODUCER_PORT",
    f"{prefix_of(STREAMS[0])}TOPICS": f"{prefix_of(STREAMS[0])}TOPIC",
    "DEAD_LETTER_RETENTIONS": "DEAD_LETTER_RETENTION",
    "DATABASE_URI": "DATABASE_URL",
}
OF_OTHERS = {
    "SSL_CERT_FILE": "/etc/ssl/cert.pem",
    "SSL_CERT_DIR": "/etc/ssl/certs",
    "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://localhost:4318",
    "OTEL_EXPORTER_OTLP_HEADERS": "a=b",
    "KAFKA_HOME": "/opt/kafka",
    "AWS_REGION": "eu-west-1",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "PRODUCERS_PORT": "tcp://10.0.0.2:80",
    "PRODUCER_SERVICE_PORT": "80",
    "PRODUCER_PORT_80_TCP_PORT": "80",
    "HOSTS": "a",
}


def test_a_misspelt_setting_is_named_with_the_one_that_was_meant_and_no_variable_of_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**dict.fromkeys(MISSPELT, "1"), **OF_OTHERS, "WINDOW_SIZE": "many"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["consumer", "--check"])
    with pytest.raises(SystemExit):
        run("consumer", "Reads records.", create_app, [SinkSettings])
    assert (
        dict(
            re.findall(
                r"^(\w+): no setting is called so.* did you mean (\w+)\?$", capsys.readouterr().err, re.MULTILINE
            )
        )
        == MISSPELT
    )


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_a_socket_takes_the_place_of_no_standard_stream_that_is_closed(closed: str, tmp_path: Path) -> None:
    number = tmp_path / "number"
    start = f"""
import socket
import sys
from pathlib import Path

from apps.chassis import command_line

sys.argv = ["producer"]
command_line.serve = lambda *_, **__: Path("{number}").write_text(str(socket.socket().fileno()))
command_line.run("producer", "Takes records.", None)
"""
    root = Path(__file__).parents[2]
    subprocess.run(["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, start], check=True, cwd=root)
    assert int(number.read_text()) > 2
