"""Clients of Kafka from the settings: FastStream's broker, and aiokafka's own for what it does not offer."""

from typing import Any, TypedDict

from fast_depends.msgspec import MsgSpecSerializer
from faststream.kafka import KafkaBroker

from apps.chassis.settings import Settings


class ClientOptions(TypedDict):
    """What every client needs to reach Kafka, as keyword arguments."""

    bootstrap_servers: list[str]
    client_id: str
    request_timeout_ms: int
    retry_backoff_ms: int


def client_options(settings: Settings, service: str) -> ClientOptions:
    """Return the options of any aiokafka client of `service`.

    A request that a broker does not answer is given up after 20 s, and tried again after 0.25 s.
    """
    return ClientOptions(
        bootstrap_servers=settings.bootstrap_servers,
        client_id=service,
        request_timeout_ms=20_000,
        retry_backoff_ms=250,
    )


def new_broker(options: ClientOptions, **tuning: Any) -> KafkaBroker:  # noqa: ANN401 - FastStream's own options
    """Return a broker that is not connected yet.

    `tuning` goes to `KafkaBroker`. Structs are the only model of data, and FastStream logs nothing of its own.
    """
    return KafkaBroker(
        **options,
        **tuning,
        serializer=MsgSpecSerializer(use_fastdepends_errors=False),
        logger=None,
        allow_auto_create_topics=False,
    )
