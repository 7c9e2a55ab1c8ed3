import json
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from apps.chassis.settings import Settings
from tools.call import main


class Answering(BaseHTTPRequestHandler):
    """Answers with what stands in the path: `/STATUS/BODY`."""

    def answer(self) -> None:
        status, body = self.path[1:].split("/", 1)
        content = {
            "10": json.dumps([*range(10)]).encode(),
            "json": b'{"method": "%s", "caf\xc3\xa9": [1]}' % self.command.encode(),
            "text": b"plain \xff text",
        }
        self.send_response(int(status))
        self.end_headers()
        self.wfile.write(content.get(body, b""))

    do_GET = do_POST = answer  # noqa: N815 - the names that http.server looks for

    def log_message(self, *_: object) -> None:
        pass


class SpeakingNoHttp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1_000)
        self.request.sendall(b"\x00\x01\x02 hello\r\n\r\n")


class HangingUp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1_000)


@contextmanager
def listening(server: socketserver.TCPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.__struct_encode_fields__:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["producer", "consumer"])
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def port_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    def set_port(service: str, port: int) -> None:
        other = {"producer": "CONSUMER", "consumer": "PRODUCER"}[service]
        monkeypatch.setenv(f"{service.upper()}_PORT", str(port))
        monkeypatch.setenv(f"{other}_PORT", "1")

    return set_port


@pytest.fixture
def answering(port_of: Callable[[str, int], None], service: str) -> Iterator[str]:
    """A service that answers with what stands in the path; its name."""
    with listening(ThreadingHTTPServer(("127.0.0.1", 0), Answering)) as port:
        port_of(service, port)
        yield service


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_answer_is_printed_as_formatted_json(
    method: str, answering: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(answering, method, "/200/json") == 0
    out, err = capsys.readouterr()
    assert out == f'{{\n  "method": "{method}",\n  "café": [\n    1\n  ]\n}}\n'
    assert err == ""


@pytest.mark.parametrize("status", [400, 404, 422, 500, 503])
def test_an_error_of_the_service_is_shown_and_ends_with_another_status(
    status: int, answering: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(answering, "POST", f"/{status}/json") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {"method": "POST", "café": [1]}


@pytest.mark.parametrize("status", [201, 207])
def test_every_kind_of_success_ends_with_status_0(status: int, answering: str) -> None:
    assert main(answering, "POST", f"/{status}/json") == 0


def test_of_a_long_list_the_last_values_are_printed_and_how_many_there_are(
    answering: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(answering, "GET", "/200/10") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == [7, 8, 9]
    assert err == "the last 3 of 10:\n"


def test_an_answer_that_is_no_json_is_printed_as_it_is(answering: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(answering, "GET", "/200/text") == 0
    assert capsys.readouterr().out == "plain \ufffd text\n"


def assert_no_answer(service: str, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Call a service that does not answer on this port: one line says so."""
    assert main(service, "GET", "/livez") == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"the {service} does not answer on port {port}" in err


def test_when_nothing_listens_one_line_says_so(
    service: str, port_of: Callable[[str, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else takes the port, nobody answers
        port_of(service, port := taken.getsockname()[1])
        assert_no_answer(service, port, capsys)


@pytest.mark.parametrize("handler", [SpeakingNoHttp, HangingUp], ids=["speaks no HTTP", "hangs up"])
def test_when_something_else_listens_one_line_says_so(
    handler: type[socketserver.BaseRequestHandler],
    port_of: Callable[[str, int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with listening(socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)) as port:
        port_of("producer", port)
        assert_no_answer("producer", port, capsys)


def test_a_service_that_listens_everywhere_is_called_on_this_machine(
    answering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST", "0.0.0.0")  # noqa: S104 - listens only as far as the test goes
    assert main(answering, "GET", "/200/json") == 0


def test_a_wrong_setting_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRODUCER_PORT", "http")
    assert main("producer", "GET", "/livez") == 1
    err = capsys.readouterr().err
    assert err.startswith("PRODUCER_PORT: ")
    assert err.count("\n") == 1


def test_an_output_that_is_closed_early_ends_it_without_a_word(answering: str) -> None:
    command = [sys.executable, "-m", "tools.call", answering, "GET", "/200/json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as call:
        assert call.stdout
        assert call.stderr
        call.stdout.close()
        assert call.stderr.read() == b""
    assert call.returncode == 0
