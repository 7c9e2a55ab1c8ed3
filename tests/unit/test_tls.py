import asyncio
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import trustme
from samples import LONG, until
from serving import ON_UVLOOP, closed, hello, serving

from apps.chassis.http import tls
from apps.chassis.http.connection_limits import BREAK_OFF
from apps.chassis.http.tls import ServerTls
from apps.chassis.kafka.security import TlsContext, Unreadable
from apps.chassis.service import check_anonymous
from apps.chassis.setting_reading import read_settings
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings

AUTHORITY = trustme.CA()


def issue(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a certificate and its key, and return both files."""
    issued, files = AUTHORITY.issue_cert(name, "localhost"), (folder / "tls.crt", folder / "tls.key")
    issued.cert_chain_pems[0].write_to_path(files[0])
    issued.private_key_pem.write_to_path(files[1])
    return files


async def names_shown(server: asyncio.Server, context: ssl.SSLContext) -> list[str]:
    """Connect, and return the names in the certificate of the server."""
    port = server.sockets[0].getsockname()[1]
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    certificate = writer.get_extra_info("peercert")
    writer.close()
    return [name for _, name in certificate["subjectAltName"]]


@pytest.mark.anyio
async def test_a_renewed_certificate_is_used_for_the_next_connection_and_one_without_its_key_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = issue(tmp_path, "first.example")
    context, trusted = ServerTls(str(certificate), str(key)), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(trusted)
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context) as server:
        assert await names_shown(server, trusted) == ["first.example", "localhost"]
        of_first = key.read_bytes()
        issue(tmp_path, "second.example")
        of_second = key.read_bytes()
        key.write_bytes(of_first)
        assert await names_shown(server, trusted) == ["first.example", "localhost"]
        assert "the certificate read before stays in use: SSL_KEYFILE:" in caplog.text
        key.write_bytes(of_second)
        assert await names_shown(server, trusted) == ["second.example", "localhost"]
        certificate.unlink()
        assert await names_shown(server, trusted) == ["second.example", "localhost"]


@pytest.mark.anyio
async def test_a_renewed_certificate_that_could_not_be_read_is_used_once_its_permissions_are_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = issue(tmp_path, "first.example")
    context, trusted = ServerTls(str(certificate), str(key)), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(trusted)
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context) as server:
        issue(tmp_path, "second.example")
        with monkeypatch.context() as unreadable:  # root may read every file
            unreadable.setattr(tls, "load_own", Mock(side_effect=Unreadable("permission denied")))
            assert await names_shown(server, trusted) == ["first.example", "localhost"]
        key.chmod(0o640)
        assert await names_shown(server, trusted) == ["second.example", "localhost"]


@pytest.mark.anyio
async def test_a_caller_with_an_older_tls_than_1_2_is_refused(tmp_path: Path) -> None:
    context, trusted = ServerTls(*map(str, issue(tmp_path, "first.example"))), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(trusted)
    trusted.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        trusted.minimum_version = trusted.maximum_version = ssl.TLSVersion.TLSv1_1
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await names_shown(server, trusted)


def test_kafka_is_never_talked_to_with_an_older_tls_than_1_2() -> None:
    assert TlsContext("", "", "").minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("environment", "wrong"),
    [
        ({"SSL_KEYFILE": "key.pem"}, "SSL_CERTFILE: is missing, but SSL_KEYFILE is set"),
        ({"ALLOW_ANONYMOUS": "perhaps"}, "ALLOW_ANONYMOUS: expected true or false, got 'perhaps'"),
    ],
)
def test_wrong_settings_of_the_transport_stop_the_start(environment: dict[str, str], wrong: str) -> None:
    with pytest.raises(WrongSetting) as raised:
        read_settings(environment)
    assert str(raised.value) == wrong


def test_beyond_this_machine_a_service_needs_a_key_or_permission_to_have_none() -> None:
    open_to_all = Settings(host="0.0.0.0")  # noqa: S104 - it is this that is tested
    for address in ("0.0.0.0", "::", "192.0.2.1"):  # noqa: S104 - likewise
        with pytest.raises(WrongSetting, match=r"^HOST: .*API_KEY, .*ALLOW_ANONYMOUS=true"):
            check_anonymous(open_to_all, address)
        check_anonymous(Settings(allow_anonymous=True), address)
        check_anonymous(Settings(api_key="a-key-of-operators"), address)
    for address in ("127.0.0.1", "127.0.0.2", "::1"):
        check_anonymous(open_to_all, address)


@pytest.mark.anyio
@ON_UVLOOP
async def test_what_is_no_http_is_refused_over_tls_too_and_the_connection_is_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context, trusted = ServerTls(*map(str, issue(tmp_path, "first.example"))), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(trusted)
    async with serving(hello, tls=context) as connect:
        reader, writer = await connect(ssl=trusted, server_hostname="localhost")
        writer.write(b"no HTTP\r\n\r\n")
        assert (await closed(reader)).startswith(b"HTTP/1.1 400 ")
    assert not [record for record in caplog.records if record.exc_info]


async def broken_off(scope: Any, _: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
    """Answer a part."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"one of two\n", "more_body": True})
    scope[BREAK_OFF]()


def answer_to(connect: Any, trusted: ssl.SSLContext | None) -> bytes:  # noqa: ANN401 - a partial
    """Return a whole answer; raise `OSError` where its end cannot be told from a broken connection."""
    with socket.create_connection(connect.args, timeout=LONG) as connection:
        asking: Any = connection
        if trusted is not None:
            asking = trusted.wrap_socket(connection, server_hostname="localhost", suppress_ragged_eofs=False)
        asking.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        return b"".join(iter(partial(asking.recv, 65_536), b""))


@pytest.mark.anyio
@ON_UVLOOP
@pytest.mark.parametrize("encrypted", [False, True])
async def test_an_answer_without_a_length_that_breaks_off_never_ends_like_a_whole_one(
    tmp_path: Path, *, encrypted: bool
) -> None:
    context = ServerTls(*map(str, issue(tmp_path, "first.example"))) if encrypted else None
    trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if encrypted else None
    if trusted is not None:
        AUTHORITY.configure_trust(trusted)
    async with serving(broken_off, tls=context) as connect:
        with pytest.raises(OSError, match=r"(?i)reset|EOF"):
            await asyncio.to_thread(answer_to, connect, trusted)


def silent_caller(connect: Any, trusted: ssl.SSLContext) -> ssl.SSLSocket:  # noqa: ANN401 - as above
    """Return a connection after a whole answer; it does not notice when the service closes it."""
    connection = socket.create_connection(connect.args, timeout=LONG)
    asking = trusted.wrap_socket(connection, server_hostname="localhost")
    asking.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    while not asking.recv(65_536).endswith(b"hello"):
        pass
    return asking


@pytest.mark.anyio
@ON_UVLOOP
async def test_a_service_that_stops_waits_for_no_good_bye_of_idle_callers_over_tls(tmp_path: Path) -> None:
    context, trusted = ServerTls(*map(str, issue(tmp_path, "first.example"))), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(trusted)
    connections: set[Any] = set()
    async with serving(hello, connections, tls=context) as connect:
        idle = await asyncio.to_thread(silent_caller, connect, trusted)
        for one in list(connections):
            one.shutdown()
        await until(lambda: not connections)
        idle.close()


@pytest.mark.anyio
@ON_UVLOOP
async def test_a_quarter_of_the_connections_may_wait_when_they_have_tls(tmp_path: Path) -> None:
    context, trusted = ServerTls(*map(str, issue(tmp_path, "first.example"))), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(trusted)
    async with serving(hello, tls=context, max_without_request=12) as connect:
        idle = [await connect(ssl=trusted, server_hostname="localhost") for _ in range(4)]
        assert await closed(idle[0][0]) == b""
        idle[1][1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await idle[1][0].readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
