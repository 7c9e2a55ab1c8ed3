"""A Kafka with TLS, passwords, tokens and rights, and the certificates and users that go with it.

Its plain listener is open to its administrators (the tests); the others are what services are given.
"""

import hashlib
import json
import os
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest, DescribeAclsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactArray, CompactBytes, CompactString, Int8, Int16, Int32, Schema, TaggedFields
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from services import ask, wait_until

from tools.local_kafka import LocalKafka
from tools.ports import free_ports

TOPIC, GROUP, TRANSACTIONAL_ID = 2, 3, 5
OPERATIONS = {"read": 3, "write": 4, "create": 5, "describe": 8, "describe configs": 10}
ALLOW = 3
LITERAL = 3
ITERATIONS = 4_096
MECHANISMS = {"SCRAM-SHA-256": (1, "sha256"), "SCRAM-SHA-512": (2, "sha512")}
TEXT = CompactString("utf-8")

PASSWORD_DOOR, CERTIFICATE_DOOR, EXPIRED_DOOR, STRANGE_DOOR = "SASL_SSL", "SSL", "EXPIRED", "STRANGE"
"""Listeners: for passwords and tokens, for client certificates; with a certificate that is over, or of another host."""
NARROW_DOOR = "NARROW"
"""A listener for SCRAM-SHA-512 and tokens only, and for 2 s only: then a client must authenticate again."""
DOORS = (PASSWORD_DOOR, CERTIFICATE_DOOR, EXPIRED_DOOR, STRANGE_DOOR, NARROW_DOOR)
LOGIN = "org.apache.kafka.common.security"


class ScramAnswer(Response):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = 51
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            CompactArray(("user", TEXT), ("error_code", Int16), ("error_message", TEXT), ("tags", TaggedFields)),
        ),
        ("tags", TaggedFields),
    )


class ScramQuestion(RequestStruct):  # type: ignore[misc]  # as above
    """AlterUserScramCredentials, which aiokafka does not have."""

    FLEXIBLE_VERSION = True
    API_KEY = 51
    API_VERSION = 0
    RESPONSE_TYPE = ScramAnswer
    SCHEMA = Schema(
        ("deletions", CompactArray(("name", TEXT), ("mechanism", Int8), ("tags", TaggedFields))),
        (
            "upsertions",
            CompactArray(
                ("name", TEXT),
                ("mechanism", Int8),
                ("iterations", Int32),
                ("salt", CompactBytes),
                ("salted_password", CompactBytes),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class SetPassword(Request[ScramQuestion]):  # type: ignore[misc]  # as above
    API_KEY = 51

    def __init__(self, user: str, password: str, mechanism: str) -> None:
        number, hash_name = MECHANISMS[mechanism]
        salt = os.urandom(16)
        salted = hashlib.pbkdf2_hmac(hash_name, password.encode(), salt, ITERATIONS)
        self._upsertion: tuple[object, ...] = (user, number, ITERATIONS, salt, salted, {})

    def build(self, kind: type[ScramQuestion]) -> ScramQuestion:
        return kind([], [self._upsertion], {})


class SecuredKafka:
    """One broker. `ca` is whom services should trust; `folder` holds all files."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.cafile = str(folder / "ca.pem")
        self.folder = folder
        self._ports = dict(zip(DOORS, free_ports(len(DOORS)), strict=True))
        self.ca.cert_pem.write_to_path(self.cafile)
        for door in DOORS:
            self.certify(door)
        self.certify(EXPIRED_DOOR, not_after=yesterday())
        self.certify(STRANGE_DOOR, "kafka.example.com")
        self.broker = LocalKafka(settings=self._settings())

    @contextmanager
    def running(self) -> Iterator["SecuredKafka"]:
        with self.broker:
            yield self

    @property
    def open_door(self) -> str:
        """Where everyone may do everything."""
        return self.broker.bootstrap_servers[0]

    def address(self, door: str) -> str:
        return f"127.0.0.1:{self._ports[door]}"

    def certify(self, door: str, host: str = "127.0.0.1", **more: Any) -> None:  # noqa: ANN401 - of trustme
        """Give a listener a certificate, which the broker shows from its next start on."""
        cert = self.ca.issue_cert(host, **more)
        key = load_pem_private_key(cert.private_key_pem.bytes(), None)
        pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # Kafka reads nothing else
        chain = b"".join(pem.bytes() for pem in cert.cert_chain_pems)
        self._keystore(door).write_bytes(pkcs8 + chain)

    def certificate(self, name: str, user: str, ca: trustme.CA | None = None, **more: Any) -> str:  # noqa: ANN401 - as above
        """Write a client's certificate with its key, and return the file."""
        path = self.folder / f"{name}.pem"
        cert = (ca or self.ca).issue_cert(f"{user}@example.com", common_name=user, **more)
        cert.private_key_and_cert_chain_pem.write_to_path(str(path))
        return str(path)

    def token(self, name: str, user: str, lifetime: float = 3_600) -> str:
        """Write a token that is valid for so many seconds from now, and return the file."""
        now = time.time()
        parts = ({"alg": "none"}, {"sub": user, "iat": now - 7_200, "exp": now + lifetime})
        text = ".".join(urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
        path = self.folder / f"{name}.token"
        path.write_text(f"{text}.\n")
        return str(path)

    def set_password(self, user: str, password: str, mechanism: str = "SCRAM-SHA-512") -> None:
        (result,) = self._ask(SetPassword(user, password, mechanism)).results
        assert result[1] == 0, result

    def allow(self, user: str, resource: int, name: str, *operations: str) -> None:
        """Give rights, and wait until the broker applies them."""
        for operation in operations:
            acl = _acl(user, resource, name, operation)
            (result,) = self._ask(CreateAclsRequest(*acl)).creation_responses
            assert result[0] == 0, result
            wait_until(lambda acl=acl: self._ask(DescribeAclsRequest(*acl)).resources)  # type: ignore[misc]  # mypy cannot infer it

    def forbid(self, user: str, resource: int, name: str, *operations: str) -> None:
        """Take rights away that were given, and wait until the broker applies that."""
        for operation in operations:
            acl = _acl(user, resource, name, operation)
            (result,) = self._ask(DeleteAclsRequest(*acl)).filter_responses
            assert len(result[2]) == 1, result
            wait_until(lambda acl=acl: not self._ask(DescribeAclsRequest(*acl)).resources)  # type: ignore[misc]  # as above

    def restart(self) -> None:
        self.broker.kill(0)
        self.broker.start(0)

    def _ask(self, question: object) -> Any:  # noqa: ANN401 - any answer
        return ask(self.open_door, lambda admin: admin._send_request(question))

    def _keystore(self, door: str) -> Path:
        return self.folder / f"broker-{door}.pem"

    def _settings(self) -> dict[str, str]:
        settings = {
            "listeners": ",".join(f"{door}://{self.address(door)}" for door in DOORS),
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,"
            "EXPIRED:SASL_SSL,STRANGE:SASL_SSL,NARROW:SASL_SSL",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # a killed broker is not taken back before its lease has ended
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "super.users": "User:ANONYMOUS",
            "listener.name.ssl.ssl.client.auth": "required",
            "ssl.principal.mapping.rules": "RULE:.*CN=([^,]*).*/$1/",
        }
        for door in DOORS:
            listener = f"listener.name.{door.lower()}"
            settings |= {
                f"{listener}.ssl.keystore.type": "PEM",
                f"{listener}.ssl.keystore.location": str(self._keystore(door)),
                f"{listener}.ssl.truststore.type": "PEM",
                f"{listener}.ssl.truststore.location": self.cafile,
            }
            if door != CERTIFICATE_DOOR:
                settings |= {
                    f"{listener}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
                    f"{listener}.scram-sha-256.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
                    f"{listener}.scram-sha-512.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
                    f"{listener}.plain.sasl.jaas.config": f"{LOGIN}.plain.PlainLoginModule required "
                    'user_plain="plain secret";',
                    f"{listener}.oauthbearer.sasl.jaas.config": f"{LOGIN}.oauthbearer.OAuthBearerLoginModule required "
                    'unsecuredLoginStringClaim_sub="broker";',
                }
        narrow = f"listener.name.{NARROW_DOOR.lower()}"
        settings[f"{narrow}.sasl.enabled.mechanisms"] = "SCRAM-SHA-512,OAUTHBEARER"
        settings[f"{narrow}.connections.max.reauth.ms"] = "2000"
        return settings


def yesterday() -> datetime:
    return datetime.now(UTC) - timedelta(days=1)


def _acl(user: str, resource: int, name: str, operation: str) -> tuple[int, str, int, str, str, int, int]:
    return resource, name, LITERAL, f"User:{user}", "*", OPERATIONS[operation], ALLOW
