"""Explains why Kafka cannot be used: which refusal, or which unreachable address and the broker that named it.

The client library only reports that it could not connect.
"""

import asyncio
import binascii
import ssl
from base64 import urlsafe_b64decode
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from apps.chassis.kafka.client_journal import why_unreachable
from apps.chassis.kafka.clients import ClientOptions
from apps.chassis.kafka.security import TlsContext, TokenFile, Unreadable

PATIENCE = 1.0
"""Seconds that one broker has to let us in or not, and again for those that it names."""

Address = tuple[str, int]


class Claims(msgspec.Struct):
    """What interests of a token (RFC 7519): when it expires, in seconds since 1970."""

    exp: float | None = None


class Probe(NamedTuple):
    """The result of a connection to one address: a refusal, an obstacle, or the brokers that it names."""

    address: Address
    refused: str | None = None
    unreachable: str | None = None
    named: frozenset[Address] = frozenset()

    @property
    def place(self) -> str:
        """The address as `host:port`."""
        return "{}:{}".format(*self.address)


async def refusal(options: ClientOptions) -> str | None:
    """Probe the bootstrap servers and their brokers; return the first refusal in one line, within 2 s.

    Return None when all accept us, or cannot be reached.
    """
    probes = await _probe_all(options)
    return next((probe.refused for probe in probes if probe.refused), None)


async def diagnosis(options: ClientOptions) -> str | None:
    """Return in one line, within 2 s, the refusal or the unreachable addresses; None when all accept us."""
    probes = await _probe_all(options)
    if refused := next((probe.refused for probe in probes if probe.refused), None):
        return refused
    servers = ", ".join(options["bootstrap_servers"])
    unreachable = [probe for probe in probes if probe.unreachable]
    for probe in unreachable:
        if namer := next((other for other in probes if probe.address in other.named), None):
            return (
                f"Kafka at {namer.place} answers, but names a broker at {probe.place} (its advertised.listeners), "
                f"which cannot be reached: {probe.unreachable}"
            )
    if not unreachable:
        return None
    reasons = "; ".join(f"{probe.place}: {probe.unreachable}" for probe in unreachable)
    return f"Kafka at {servers} is out of reach ({reasons})"


async def _probe_all(options: ClientOptions) -> list[Probe]:
    first = {(host, port) for host, port, _ in collect_hosts(options["bootstrap_servers"])}
    found = await asyncio.gather(*(_probe(address, options) for address in first))
    others: set[Address] = set().union(*(probe.named for probe in found)) - first
    return found + await asyncio.gather(*(_probe(address, options) for address in others))


async def _probe(address: Address, options: ClientOptions) -> Probe:
    host, port = address
    try:
        async with asyncio.timeout(PATIENCE):
            metadata = await _ask(host, port, options)
    except (KafkaError, OSError, TimeoutError) as error:
        reason = _in_words(error.__cause__ or error, options) or _in_words(error, options)
        if reason:
            return Probe(address, refused=f"{reason} (Kafka at {host}:{port})")
        return Probe(address, unreachable=why_unreachable(error))
    return Probe(address, named=frozenset((broker[1], broker[2]) for broker in metadata.brokers))


async def _ask(host: str, port: int, options: ClientOptions) -> Any:  # noqa: ANN401 - one of the answers of aiokafka, which ships no types
    connection = await create_conn(
        host,
        port,
        client_id=options["client_id"],
        security_protocol=options["security_protocol"],
        ssl_context=options["ssl_context"],
        sasl_mechanism=options["sasl_mechanism"],
        sasl_plain_username=options["sasl_plain_username"],
        sasl_plain_password=options["sasl_plain_password"],
        sasl_oauth_token_provider=options["sasl_oauth_token_provider"],
    )
    try:
        metadata = await connection.send(MetadataRequest([]))
        if not metadata.brokers:  # so it answers who showed a token that it did not accept
            raise KafkaConnectionError(f"{host}:{port} named no brokers")
        return metadata
    finally:
        connection.close()


def _in_words(error: BaseException, options: ClientOptions) -> str | None:
    protocol, mechanism = options["security_protocol"], options["sasl_mechanism"]
    by_token = protocol.startswith("SASL_") and mechanism == "OAUTHBEARER"
    words: str | None = None
    match error:
        case Unreadable():
            words = str(error)
        case ssl.SSLCertVerificationError():
            words = f"the certificate of Kafka is not accepted: {error.verify_message}"
        case ssl.SSLError():
            words = _tls_in_words(error, options)
        case UnsupportedSaslMechanismError():
            words = f"KAFKA_SASL_MECHANISM {mechanism} is not taken by Kafka"
        case IllegalSaslStateError():
            words = f"KAFKA_SECURITY_PROTOCOL {protocol} does not fit: Kafka takes no password there"
        case SaslAuthenticationFailed() if not by_token:
            words = "the password or user is refused by Kafka (KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD)"
        case SaslAuthenticationFailed() | KafkaConnectionError() if by_token:
            words = _token_in_words(options)  # a client that does not look whether its token was taken is cut off
        case KafkaConnectionError() | ConnectionResetError():
            words = f"Kafka closed the connection unanswered: does KAFKA_SECURITY_PROTOCOL {protocol} fit?"
    return words


def _tls_in_words(error: ssl.SSLError, options: ClientOptions) -> str:
    reason = (error.reason or "").replace("_", " ").lower()
    _, alert, what = reason.partition(" alert ")
    if not alert:
        return f"Kafka does not speak TLS as expected: does KAFKA_SECURITY_PROTOCOL {options['security_protocol']} fit?"
    context = options["ssl_context"]
    if not isinstance(context, TlsContext) or not context.certfile:
        return f"Kafka wants a client certificate, and KAFKA_SSL_CERTFILE is not set ({what})"
    return _refused("the client certificate of KAFKA_SSL_CERTFILE", context.expiry(), what)


def _token_in_words(options: ClientOptions) -> str:
    tokens = options["sasl_oauth_token_provider"]
    expiry = expiry_of(tokens.read()) if isinstance(tokens, TokenFile) else None
    return _refused("the token of KAFKA_SASL_TOKEN_FILE", datetime.fromtimestamp(expiry, UTC) if expiry else None, "")


def _refused(what: str, expiry: datetime | None, reason: str) -> str:
    """Say that Kafka refuses something; that it has expired, if so, because Kafka does not always say it."""
    if expiry and expiry <= datetime.now(UTC):
        reason = f"it expired at {expiry.isoformat(timespec='seconds')}"
    return f"{what} is refused by Kafka{reason and ': '}{reason}"


def expiry_of(token: str) -> float | None:
    """Return when a token expires, in seconds since 1970; None when it does not say, or is none that we can read."""
    try:
        _, claims, _ = token.split(".")
        return msgspec.json.decode(urlsafe_b64decode(claims + "=" * (-len(claims) % 4)), type=Claims).exp
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        return None
