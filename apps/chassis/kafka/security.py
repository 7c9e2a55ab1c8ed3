"""Authenticate the service to Kafka and Kafka to the service: TLS, passwords and tokens, from the settings.

Files are read again for each connection, so that a renewed certificate or token is used without a restart.
"""

import ssl
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypedDict

from aiokafka.abc import AbstractTokenProvider

from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings


class Security(TypedDict):
    """The authentication of a client, as keyword arguments of any aiokafka client."""

    security_protocol: str
    ssl_context: ssl.SSLContext | None
    sasl_mechanism: str
    sasl_plain_username: str | None
    sasl_plain_password: str | None
    sasl_oauth_token_provider: AbstractTokenProvider | None


class Unreadable(OSError):
    """A file of the settings is missing or invalid; the message is one line that names the variable.

    It is an `OSError`, because the client takes that as a failed connection and retries.
    """


class TlsContext(ssl.SSLContext):
    """Verifies a broker's certificate and host name; reads certificates and key again for each connection.

    Without `cafile` the system's certificate authorities are trusted. Without `certfile` the client has no certificate.
    `keyfile` is needed when the key is not in `certfile`. Raises `Unreadable` for a missing or invalid file.
    """

    def __new__(cls, *_: str) -> Self:
        """Return a context for clients, which verifies certificates."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, cafile: str, certfile: str, keyfile: str) -> None:
        self._cafile = cafile
        self.certfile = certfile
        self._keyfile = keyfile
        self.minimum_version = ssl.TLSVersion.TLSv1_2
        if not cafile:
            self.load_default_certs()
        self._load()

    def wrap_bio(self, *arguments: Any, **more: Any) -> ssl.SSLObject:  # noqa: ANN401 - the signature of the library
        """Begin a connection, as asyncio and uvloop do."""
        self._load()
        return super().wrap_bio(*arguments, **more)

    def expiry(self) -> datetime:
        """Return when the client's certificate expires, as it is in the file now."""
        from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415 - takes 70 ms, and is needed only for a refused certificate

        certificate = _read("KAFKA_SSL_CERTFILE", self.certfile)
        return load_pem_x509_certificates(certificate)[0].not_valid_after_utc

    def _load(self) -> None:
        if self._cafile:
            _load_trusted(self, "KAFKA_SSL_CAFILE", self._cafile)
        if self.certfile:
            load_own(self, "KAFKA_SSL", self.certfile, self._keyfile)


def load_own(context: ssl.SSLContext, prefix: str, certfile: str, keyfile: str) -> None:
    """Load a certificate and its key, from the files that two variables name. Raises `Unreadable`."""
    _load_trusted(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), f"{prefix}_CERTFILE", certfile)
    variable, path = f"{prefix}_CERTFILE", certfile
    if keyfile:
        variable, path = f"{prefix}_KEYFILE", keyfile
        _read(variable, path)
    try:  # without `password` OpenSSL would ask on the terminal for that of an encrypted key
        context.load_cert_chain(certfile, keyfile or None, password="")
    except OSError:
        raise Unreadable(f"{variable}: {path!r} does not hold the unencrypted private key of the certificate") from None


def _load_trusted(context: ssl.SSLContext, variable: str, path: str) -> None:
    _read(variable, path)
    try:
        context.load_verify_locations(path)
    except OSError:
        raise Unreadable(f"{variable}: {path!r} holds no certificate") from None


class TokenFile(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka ships no types
    """Reads the token from a file for each connection, without surrounding blanks. Raises `Unreadable`."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def token(self) -> str:
        """Return the token that the file has now."""
        return self.read()

    def read(self) -> str:
        """Return the token that the file has now."""
        token = _read("KAFKA_SASL_TOKEN_FILE", self._path).strip()
        if not token or not token.isascii() or len(token.split()) > 1:
            raise Unreadable(f"KAFKA_SASL_TOKEN_FILE: {self._path!r} holds no token")
        return token.decode()


def security_of(settings: Settings) -> Security:
    """Return the authentication that the settings describe. Raises `WrongSetting` for a missing or invalid file."""
    protocol, sasl = settings.kafka_security_protocol, settings.uses_sasl
    by_token = sasl and settings.kafka_sasl_mechanism == "OAUTHBEARER"
    try:
        tokens = TokenFile(settings.kafka_sasl_token_file) if by_token else None
        if tokens:
            tokens.read()
        return Security(
            security_protocol=protocol,
            ssl_context=TlsContext(*_files(settings)) if settings.uses_tls else None,
            sasl_mechanism=settings.kafka_sasl_mechanism,
            sasl_plain_username=settings.kafka_sasl_username if sasl and not by_token else None,
            sasl_plain_password=settings.kafka_sasl_password if sasl and not by_token else None,
            sasl_oauth_token_provider=tokens,
        )
    except Unreadable as error:
        raise WrongSetting(str(error)) from None


def _files(settings: Settings) -> Sequence[str]:
    return settings.kafka_ssl_cafile, settings.kafka_ssl_certfile, settings.kafka_ssl_keyfile


def _read(variable: str, path: str) -> bytes:
    file = Path(path)
    if file.exists() and not file.is_file():  # reading a pipe or a device might never end
        raise Unreadable(f"{variable}: {path!r} is not a regular file")
    try:
        return file.read_bytes()
    except OSError as error:
        raise Unreadable(f"{variable}: cannot read {path!r}: {error.strerror}") from None
