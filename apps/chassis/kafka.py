"""Clients of Kafka from the settings: FastStream's broker, and aiokafka's own for what it does not offer."""

from typing import Any

from fast_depends.msgspec import MsgSpecSerializer
from faststream.kafka import KafkaBroker
from faststream.security import BaseSecurity, SASLOAuthBearer, SASLPlaintext, SASLScram256, SASLScram512

from apps.chassis.security import Security, security_of
from apps.chassis.settings import Settings

PASSWORD_MECHANISMS = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}


class ClientOptions(Security):
    """What every client needs to reach Kafka, as keyword arguments; not to be printed, for they hold the password."""

    bootstrap_servers: list[str]
    client_id: str
    request_timeout_ms: int
    retry_backoff_ms: int


def client_options(settings: Settings, service: str) -> ClientOptions:
    """Return the options of any aiokafka client of `service`.

    A request that a broker does not answer is given up after 20 s, and tried again after 0.25 s. Raises `WrongSetting`
    for a file that is missing, or is not what it should be.
    """
    return ClientOptions(
        bootstrap_servers=settings.bootstrap_servers,
        client_id=service,
        request_timeout_ms=20_000,
        retry_backoff_ms=250,
        **security_of(settings),
    )


def new_broker(options: ClientOptions, **tuning: Any) -> KafkaBroker:  # noqa: ANN401 - FastStream's own options
    """Return a broker that is not connected yet.

    `tuning` goes to `KafkaBroker`. Structs are the only model of data, and FastStream logs nothing of its own.
    """
    return KafkaBroker(
        bootstrap_servers=options["bootstrap_servers"],
        client_id=options["client_id"],
        request_timeout_ms=options["request_timeout_ms"],
        retry_backoff_ms=options["retry_backoff_ms"],
        security=_for_faststream(options),
        sasl_oauth_token_provider=options["sasl_oauth_token_provider"],
        **tuning,
        serializer=MsgSpecSerializer(use_fastdepends_errors=False),
        logger=None,
        allow_auto_create_topics=False,
    )


def _for_faststream(options: Security) -> BaseSecurity | None:
    """Return the same as FastStream wants it."""
    protocol, context = options["security_protocol"], options["ssl_context"]
    if protocol == "PLAINTEXT":
        return None
    if protocol == "SSL":
        return BaseSecurity(context)
    if options["sasl_mechanism"] == "OAUTHBEARER":
        return SASLOAuthBearer(context)
    mechanism = PASSWORD_MECHANISMS[options["sasl_mechanism"]]
    return mechanism(options["sasl_plain_username"] or "", options["sasl_plain_password"] or "", context)
