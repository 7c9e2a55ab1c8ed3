"""Explain why Kafka cannot be used: an authentication error, or an unreachable address and the broker that named it.

The client library reports only that it could not connect.
"""

import asyncio
import ssl
from base64 import urlsafe_b64decode
from datetime import UTC, datetime
from typing import NamedTuple

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

PROBE_TIMEOUT_S = 1.0
"""Seconds for one broker to accept or refuse a connection; the brokers that it names get the same time."""
PROBE_OPTIONS = (
    "client_id",
    "security_protocol",
    "ssl_context",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
    "sasl_oauth_token_provider",
)

Address = tuple[str, int]


class Claims(msgspec.Struct):
    """The claim of a token (RFC 7519) that is needed: when it expires, in seconds since 1970."""

    exp: float | None = None


class Probe(NamedTuple):
    """The result of connecting to one address: why it was refused or unreachable, or the brokers that it names."""

    address: Address
    refused: str | None = None
    unreachable: str | None = None
    named: frozenset[Address] = frozenset()

    @property
    def place(self) -> str:
        """The address as `host:port`."""
        return "{}:{}".format(*self.address)


async def diagnosis(options: ClientOptions) -> str | None:
    """Connect to every broker within 2 s; return the refusal or the unreachable addresses in one line.

    Returns None when all brokers accept the client.
    """
    first = {(host, port) for host, port, _ in collect_hosts(options["bootstrap_servers"])}
    probes = await asyncio.gather(*(_probe(address, options) for address in first))
    others: set[Address] = set().union(*(probe.named for probe in probes)) - first
    probes += await asyncio.gather(*(_probe(address, options) for address in others))
    if refused := next((probe.refused for probe in probes if probe.refused), None):
        return refused
    unreachable = [probe for probe in probes if probe.unreachable]
    for probe in unreachable:
        namer = next((other for other in probes if probe.address in other.named), None)
        if namer and probe.address not in first:
            return (
                f"Kafka at {namer.place} answers, but names a broker at {probe.place} (its advertised.listeners), "
                f"which cannot be reached: {probe.unreachable}"
            )
    reasons = "; ".join(f"{probe.place}: {probe.unreachable}" for probe in unreachable)
    if len(unreachable) < len(probes):
        return f"not all brokers of Kafka can be reached ({reasons})" if reasons else None
    return f"Kafka at {', '.join(options['bootstrap_servers'])} is out of reach ({reasons})"


async def _probe(address: Address, options: ClientOptions) -> Probe:
    host, port = address
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            connection = await create_conn(host, port, **{name: options[name] for name in PROBE_OPTIONS})  # type: ignore[literal-required]  # they are keys of it
            try:
                brokers = (await connection.send(MetadataRequest([]))).brokers
            finally:
                connection.close()
        if not brokers:  # the answer to a client whose token was refused
            raise KafkaConnectionError(f"{host}:{port} named no brokers")
    except (KafkaError, OSError, TimeoutError) as error:
        if reason := _in_words(error.__cause__ or error, options) or _in_words(error, options):
            return Probe(address, refused=f"{reason} (Kafka at {host}:{port})")
        return Probe(address, unreachable=why_unreachable(error))
    return Probe(address, named=frozenset((broker[1], broker[2]) for broker in brokers))


def _in_words(error: BaseException, options: ClientOptions) -> str | None:
    """Return what a refusal means, and which settings to check; None when the error is no refusal."""
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
            words = f"KAFKA_SASL_MECHANISM {mechanism} is not accepted by Kafka"
        case IllegalSaslStateError():
            words = f"KAFKA_SECURITY_PROTOCOL {protocol} does not fit: Kafka takes no password there"
        case SaslAuthenticationFailed() if not by_token:
            words = "the password or user is refused by Kafka (KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD)"
        case SaslAuthenticationFailed() | KafkaConnectionError() if by_token:
            words = _token_in_words(options)  # Kafka disconnects a client that ignores the refusal of its token
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
    """Return that Kafka refuses a credential, and whether it has expired, which Kafka does not always say."""
    if expiry and expiry <= datetime.now(UTC):
        reason = f"it expired at {expiry.isoformat(timespec='seconds')}"
    return f"{what} is refused by Kafka{reason and ': '}{reason}"


def expiry_of(token: str) -> float | None:
    """Return when a token expires, in seconds since 1970; None when it is not a JWT, or has no expiry."""
    try:
        _, claims, _ = token.split(".")
        return msgspec.json.decode(urlsafe_b64decode(claims + "=" * (-len(claims) % 4)), type=Claims).exp
    except (ValueError, msgspec.MsgspecError):
        return None
