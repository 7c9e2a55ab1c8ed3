"""Build Kafka clients from the settings: FastStream's broker, and the options of aiokafka's own clients."""

import logging
from collections.abc import Sequence
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from fast_depends.msgspec import MsgSpecSerializer
from faststream.kafka import KafkaBroker
from faststream.security import BaseSecurity, SASLOAuthBearer, SASLPlaintext, SASLScram256, SASLScram512

from apps.chassis.kafka.client_journal import ClientId
from apps.chassis.kafka.security import Security, security_of
from apps.chassis.settings import Settings

METADATA_MS = 10_000
"""Milliseconds between two looks for new partitions; until then a new partition is not consumed."""
PASSWORD_MECHANISMS = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}


class ClientOptions(Security):
    """The options of every client, as keyword arguments. They hold the password: never log them."""

    bootstrap_servers: list[str]
    client_id: ClientId
    request_timeout_ms: int
    retry_backoff_ms: int


def client_options(settings: Settings, service: str) -> ClientOptions:
    """Return the options of the aiokafka clients of `service`.

    A request without an answer fails after 20 s, and is retried after 0.25 s. Raises `WrongSetting` for a missing or
    invalid file.
    """
    return ClientOptions(
        bootstrap_servers=settings.bootstrap_servers,
        client_id=ClientId(service),
        request_timeout_ms=20_000,
        retry_backoff_ms=250,
        **security_of(settings),
    )


def with_own_journal(options: ClientOptions) -> ClientOptions:
    """Return the same options with a journal of their own."""
    return ClientOptions(**{**options, "client_id": ClientId(options["client_id"])})


def for_purpose(options: ClientOptions, purpose: str) -> ClientOptions:
    """Return the same options with a client id of their own, like `consumer-reader`, and its own journal.

    A quota on the clients of one purpose then delays no other client.
    """
    return ClientOptions(**{**options, "client_id": ClientId(f"{options['client_id']}-{purpose}")})


def new_broker(options: ClientOptions, **tuning: Any) -> KafkaBroker:  # noqa: ANN401 - FastStream's own options
    """Return a FastStream broker that is not connected yet; `tuning` is passed to `KafkaBroker`."""
    return KafkaBroker(
        bootstrap_servers=options["bootstrap_servers"],
        client_id=options["client_id"],
        request_timeout_ms=options["request_timeout_ms"],
        retry_backoff_ms=options["retry_backoff_ms"],
        metadata_max_age_ms=METADATA_MS,
        security=_for_faststream(options),
        sasl_oauth_token_provider=options["sasl_oauth_token_provider"],
        **tuning,
        serializer=MsgSpecSerializer(use_fastdepends_errors=False),
        logger=logging.getLogger("faststream_kafka"),  # FastStream adds handlers of its own to `faststream`
        allow_auto_create_topics=False,
    )


UNCOMPRESSED, GZIP = 0, 1
"""Kafka's numbers of codecs."""


def size_of_batch(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> int:
    """Return the bytes of a batch of one record, which the topic setting `max.message.bytes` limits."""
    batch = _new_batch(UNCOMPRESSED)
    size: int = batch.size() + batch.size_in_bytes(0, 0, key, value, list(headers))
    return size


def size_in_gzip(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> int:
    """Return the bytes of a batch of one record that a producer compresses with gzip."""
    batch = _new_batch(GZIP)
    batch.append(0, 0, key, value, list(headers))
    return len(batch.build())


def _new_batch(codec: int) -> DefaultRecordBatchBuilder:
    return DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=0,
    )


def _for_faststream(options: Security) -> BaseSecurity | None:
    """Return the authentication as FastStream's type, None without any."""
    protocol, context = options["security_protocol"], options["ssl_context"]
    if protocol == "PLAINTEXT":
        return None
    if protocol == "SSL":
        return BaseSecurity(context)
    if options["sasl_mechanism"] == "OAUTHBEARER":
        return SASLOAuthBearer(context)
    mechanism = PASSWORD_MECHANISMS[options["sasl_mechanism"]]
    return mechanism(options["sasl_plain_username"] or "", options["sasl_plain_password"] or "", context)
