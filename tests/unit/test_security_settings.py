import asyncio
import json
import ssl
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
import trustme
from aiokafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError
from cryptography.hazmat.primitives import serialization
from faststream.security import SASLScram512

from apps.chassis.http.problems import to_problem
from apps.chassis.kafka.clients import client_options, new_broker
from apps.chassis.kafka.diagnosis import expiry_of
from apps.chassis.kafka.security import TlsContext, TokenFile, Unreadable
from apps.chassis.observability.logs import one_line
from apps.chassis.setting_reading import read_settings
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings

PASSWORD = "a secret, with blanks "  # noqa: S105 - of no one
USER = {"KAFKA_SASL_USERNAME": "events", "KAFKA_SASL_PASSWORD": PASSWORD}
SASL_SSL = {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", **USER}
BY_TOKEN = {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_SASL_MECHANISM": "OAUTHBEARER"}

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates and keys, good and bad."""
    folder = tmp_path_factory.mktemp("files")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca"))
    mine, other = ca.issue_cert("events@example.com"), ca.issue_cert("other@example.com")
    mine.private_key_and_cert_chain_pem.write_to_path(str(folder / "both"))
    mine.cert_chain_pems[0].write_to_path(str(folder / "cert"))
    mine.private_key_pem.write_to_path(str(folder / "key"))
    other.private_key_pem.write_to_path(str(folder / "key of another"))
    key = serialization.load_pem_private_key(mine.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    (folder / "encrypted key").write_bytes(encrypted)
    (folder / "empty").write_bytes(b"")
    (folder / "blank").write_bytes(b" \n")
    (folder / "token").write_bytes(b"one\n")
    (folder / "two tokens").write_bytes(b"one two")
    (folder / "no certificate").write_bytes(b"-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n")
    return folder


def settings_from(environment: dict[str, str], files: Path) -> Settings:
    """Return the settings, the names of files made whole."""
    paths = {name: str(files / value) for name, value in environment.items() if name.endswith("FILE")}
    return read_settings(environment | paths)


def test_without_settings_nothing_is_encrypted_and_nobody_named() -> None:
    options = client_options(Settings(), "producer")
    assert options["security_protocol"] == "PLAINTEXT"
    assert options["ssl_context"] is None
    assert options["sasl_plain_password"] is None


@pytest.mark.parametrize("protocol", ["SSL", "SASL_SSL"])
def test_tls_verifies_the_broker_and_its_host_name(protocol: str) -> None:
    user = USER if protocol == "SASL_SSL" else {}
    context = client_options(read_settings({"KAFKA_SECURITY_PROTOCOL": protocol, **user}), "producer")["ssl_context"]
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_user_and_a_password_go_to_every_client_and_to_faststream_as_they_are() -> None:
    options = client_options(read_settings(SASL_SSL), "producer")
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert options["sasl_plain_username"] == "events"
    assert options["sasl_plain_password"] == PASSWORD
    security = new_broker(options).specification.security
    assert isinstance(security, SASLScram512)
    assert security.password == PASSWORD
    assert security.ssl_context is options["ssl_context"]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", ""])
def test_faststream_connects_as_every_other_client_does(mechanism: str, files: Path) -> None:
    chosen = {"KAFKA_SASL_MECHANISM": mechanism} if mechanism else {"KAFKA_SECURITY_PROTOCOL": "SSL"}
    who = {"": {}, "OAUTHBEARER": {"KAFKA_SASL_TOKEN_FILE": "token"}}.get(mechanism, USER)
    options = client_options(settings_from({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"} | chosen | who, files), "producer")
    given = new_broker(options)._connection_kwargs
    wanted = {name: value for name, value in options.items() if value is not None and name in given}
    assert {name: given[name] for name in wanted} == wanted
    assert {"security_protocol", "ssl_context"} <= set(wanted)


WRONG = [
    ("KAFKA_SECURITY_PROTOCOL", {"KAFKA_SECURITY_PROTOCOL": "TLS"}),
    ("KAFKA_SECURITY_PROTOCOL", {"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", **USER}),
    (
        "KAFKA_ALLOW_PLAINTEXT_PASSWORD",
        {"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_ALLOW_PLAINTEXT_PASSWORD": "perhaps", **USER},
    ),
    ("KAFKA_SASL_MECHANISM", {**SASL_SSL, "KAFKA_SASL_MECHANISM": "GSSAPI"}),
    ("KAFKA_SASL_MECHANISM", {"KAFKA_SASL_MECHANISM": "PLAIN"}),
    ("KAFKA_SASL_MECHANISM", {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SASL_MECHANISM": "PLAIN"}),
    ("KAFKA_SASL_PASSWORD", {"KAFKA_SASL_PASSWORD": PASSWORD}),
    ("KAFKA_SASL_USERNAME", {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}),
    ("KAFKA_SASL_USERNAME", {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_SASL_PASSWORD": PASSWORD}),
    ("KAFKA_SASL_PASSWORD", {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_SASL_USERNAME": "events"}),
    ("KAFKA_SASL_TOKEN_FILE", BY_TOKEN),
    ("KAFKA_SASL_USERNAME", {**BY_TOKEN, "KAFKA_SASL_TOKEN_FILE": "token", **USER}),
    ("KAFKA_SASL_TOKEN_FILE", {**SASL_SSL, "KAFKA_SASL_TOKEN_FILE": "token"}),
    ("KAFKA_SASL_TOKEN_FILE", {**BY_TOKEN, "KAFKA_SASL_TOKEN_FILE": "missing"}),
    ("KAFKA_SASL_TOKEN_FILE", {**BY_TOKEN, "KAFKA_SASL_TOKEN_FILE": "blank"}),
    ("KAFKA_SASL_TOKEN_FILE", {**BY_TOKEN, "KAFKA_SASL_TOKEN_FILE": "two tokens"}),
    ("KAFKA_SASL_TOKEN_FILE", {**BY_TOKEN, "KAFKA_SASL_TOKEN_FILE": "/dev/zero"}),
    ("KAFKA_SSL_CAFILE", {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CAFILE": "/dev/zero"}),
    ("KAFKA_SSL_CAFILE", {"KAFKA_SSL_CAFILE": "ca"}),
    ("KAFKA_SSL_CAFILE", {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CAFILE": "missing"}),
    ("KAFKA_SSL_CAFILE", {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CAFILE": "."}),
    ("KAFKA_SSL_CAFILE", {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CAFILE": "empty"}),
    ("KAFKA_SSL_CAFILE", {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CAFILE": "no certificate"}),
    ("KAFKA_SSL_CAFILE", {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CAFILE": "key"}),
    ("KAFKA_SSL_CERTFILE", {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_KEYFILE": "key"}),
    ("KAFKA_SSL_CERTFILE", {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CERTFILE": "missing"}),
    ("KAFKA_SSL_CERTFILE", {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CERTFILE": "cert"}),
    ("KAFKA_SSL_CERTFILE", {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CERTFILE": "no certificate"}),
    *(
        (
            "KAFKA_SSL_KEYFILE",
            {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CERTFILE": "cert", "KAFKA_SSL_KEYFILE": key},
        )
        for key in ("missing", "empty", "cert", "key of another", "encrypted key")
    ),
]


@pytest.mark.parametrize(("variable", "environment"), WRONG)
def test_what_does_not_go_together_stops_the_start_with_one_line_that_names_the_variable(
    variable: str, environment: dict[str, str], files: Path
) -> None:
    with pytest.raises(WrongSetting) as stopped:
        client_options(settings_from(environment, files), "producer")
    line = str(stopped.value)
    assert line.startswith(f"{variable}: ")
    assert "\n" not in line
    assert PASSWORD.strip() not in line


def test_a_password_without_tls_is_sent_when_that_is_allowed() -> None:
    allowed = {"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_ALLOW_PLAINTEXT_PASSWORD": "true", **USER}
    options = client_options(read_settings(allowed), "producer")
    assert options["security_protocol"] == "SASL_PLAINTEXT"
    assert options["ssl_context"] is None


def test_neither_a_password_nor_a_key_is_ever_shown() -> None:
    settings = read_settings({**SASL_SSL, "API_KEY": " a-key-of-operators "})
    assert settings.kafka_sasl_password == PASSWORD
    assert settings.api_key == "a-key-of-operators"
    for shown in (repr(settings), str(settings), f"{settings}", repr([settings])):
        assert PASSWORD.strip() not in shown
        assert "a-key-of-operators" not in shown
        assert "kafka_sasl_username='events'" in shown
    assert "kafka_sasl_password=''" in repr(Settings())


@pytest.mark.parametrize("names", [{"KAFKA_SSL_CERTFILE": "both"}, {"KAFKA_SSL_CERTFILE": "cert"}])
def test_a_client_certificate_may_come_with_its_key_or_beside_it(names: dict[str, str], files: Path) -> None:
    key = {} if names["KAFKA_SSL_CERTFILE"] == "both" else {"KAFKA_SSL_KEYFILE": "key"}
    environment = {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CAFILE": "ca", **names, **key}
    assert client_options(settings_from(environment, files), "producer")["ssl_context"]


async def test_a_renewed_client_certificate_is_shown_on_the_next_connection(tmp_path: Path) -> None:
    ca, shown = trustme.CA(), []
    own, trusted = str(tmp_path / "own"), str(tmp_path / "ca")
    ca.cert_pem.write_to_path(trusted)
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(serving)
    ca.issue_cert("127.0.0.1").configure_cert(serving)

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown.append(writer.get_extra_info("peercert")["subjectAltName"][0][1])
        writer.close()

    async with await asyncio.start_server(note, "127.0.0.1", 0, ssl=serving) as server:
        port = server.sockets[0].getsockname()[1]
        ca.issue_cert("old@example.com").private_key_and_cert_chain_pem.write_to_path(own)
        context = TlsContext(trusted, own, "")
        for renewed in ("old@example.com", "new@example.com"):
            ca.issue_cert(renewed).private_key_and_cert_chain_pem.write_to_path(own)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            await reader.read()
            writer.close()
        Path(own).write_text("half written")  # noqa: ASYNC240 - a file of some bytes
        with pytest.raises(Unreadable, match="KAFKA_SSL_CERTFILE"):
            await asyncio.open_connection("127.0.0.1", port, ssl=context)
    assert shown == ["old@example.com", "new@example.com"]


async def test_a_renewed_token_is_shown_on_the_next_connection(tmp_path: Path) -> None:
    path = tmp_path / "token"
    tokens = TokenFile(str(path))
    for token in ("one", "two"):
        path.write_text(f" {token}\n")
        assert await tokens.token() == token
    path.unlink()
    with pytest.raises(Unreadable, match="KAFKA_SASL_TOKEN_FILE: cannot read"):
        await tokens.token()


def test_the_expiry_of_a_token_is_read_where_it_says_one() -> None:
    def token(claims: object) -> str:
        return ".".join(urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in ({}, claims, {}))

    assert expiry_of(token({"exp": 1_700_000_000, "sub": "events"})) == 1_700_000_000
    for unknown in (token({}), token([]), token({"exp": "soon"}), "opaque", "a.b.c", "ä.ö.ü"):
        assert expiry_of(unknown) is None


def test_a_missing_right_that_only_kafka_knows_of_is_put_in_words() -> None:
    assert one_line(TopicAuthorizationFailedError("events")).startswith("no permission for the topic (")
    assert "events" in one_line(TopicAuthorizationFailedError("events"))
    assert to_problem(GroupAuthorizationFailedError("events-consumer")).detail.startswith(
        "no permission for the group ("
    )
