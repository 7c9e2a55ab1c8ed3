"""Settings: one Struct, read from the environment once when a process starts."""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from apps.chassis.http.api_keys import Keys, read_keys
from apps.chassis.http.roles import Role
from apps.chassis.setting_types import (
    REDRIVEN,
    UNLIMITED,
    Address,
    DeadLetterTopicName,
    Delays,
    Hosts,
    Jwks,
    Origins,
    Port,
    Retention,
    Servers,
    ServiceUrl,
    TokenRoles,
    TopicName,
    UrlPath,
    listed,
)
from contracts.stream import Stream

BY_STREAM = "BY_STREAM"
"""The field of `Settings` that is not an environment variable."""
SECRETS = frozenset({"api_key", "kafka_sasl_password"})
"""Fields whose value is hidden in `repr`."""
ANY_HOST = "*"
SECONDS_OF = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a stream; each field is read from a variable like `ORDERS_TOPIC`."""

    topic: TopicName
    partitions: Annotated[int, Meta(ge=1, le=10_000)] = 6
    replication: Annotated[int, Meta(ge=1, le=100)] = 1
    dead_letter_topic: DeadLetterTopicName
    dead_letter_retention: Retention = UNLIMITED
    group_id: Annotated[str, Meta(min_length=1, max_length=255)]

    @property
    def marks_topic(self) -> str:
        """The topic that records which dead letters were sent back."""
        return f"{self.dead_letter_topic}{REDRIVEN}"

    @property
    def dead_letter_retention_s(self) -> int | None:
        """The seconds after which Kafka deletes a dead letter, None for never."""
        kept = self.dead_letter_retention
        return None if kept == UNLIMITED else _seconds(kept)


def defaults_of(stream: Stream[Any]) -> dict[str, str]:
    """Return the settings of a stream that follow from its name."""
    return {
        "topic": stream.topic,
        "dead_letter_topic": stream.dead_letter_topic,
        "group_id": stream.group_id,
    }


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="upper"):
    """The settings of a service; each field is read from the variable with its name in capitals.

    The defaults suit a laptop with Kafka on localhost:9092. docs/reference/settings.md explains each. `by_stream` has
    the settings of each stream by its name.
    """

    kafka_bootstrap_servers: Servers = "localhost:9092"
    streams: str = ""
    by_stream: Mapping[str, StreamSettings] = {}
    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    producer_port: Port = 8000
    consumer_port: Port = 8001
    producer_workers: Annotated[int, Meta(ge=1, le=64)] = 1
    liveness_port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    window_size: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    slow_batch_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 300
    redrive_after: Delays = ""
    dead_letter_retention: Retention = UNLIMITED
    producer_url: ServiceUrl | None = None
    cors_origins: Origins = ""
    allowed_hosts: Hosts = ""
    root_path: UrlPath = ""
    keep_alive_s: Annotated[int, Meta(ge=1, le=3_600)] = 75
    api_key: str | None = None
    api_key_file: str | None = None
    api_key_reads: bool = False
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_jwks: Jwks = ""
    jwt_roles_claim: str = "roles"
    jwt_roles: TokenRoles = ""
    allow_anonymous: bool = False
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    metrics_public: bool = True
    audit_topic: TopicName | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    log_format: Literal["console", "json"] = "console"
    accelerators: Literal["on", "off"] = "on"
    compression: Literal["none", "lz4", "zstd", "snappy", "gzip"] = "none"
    client_rack: Annotated[str, Meta(max_length=255)] = ""
    otel_exporter_otlp_endpoint: Address = ""
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_SSL", "SASL_PLAINTEXT"] = "PLAINTEXT"
    kafka_allow_plaintext_password: bool = False
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "SCRAM-SHA-512"
    kafka_sasl_username: str = ""
    kafka_sasl_password: str = ""
    kafka_sasl_token_file: str = ""
    kafka_ssl_cafile: str = ""
    kafka_ssl_certfile: str = ""
    kafka_ssl_keyfile: str = ""

    def __repr__(self) -> str:
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        hidden = SECRETS.union(set(self.__struct_fields__) - set(Settings.__struct_fields__))  # own ones may be secret
        shown = {name: "***" if name in hidden and value else value for name, value in values.items()}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def of(self, stream: Stream[Any]) -> StreamSettings:
        """Return the settings of a stream."""
        return self.by_stream.get(stream.name) or msgspec.convert(defaults_of(stream), StreamSettings)

    def served(self, streams: Sequence[Stream[Any]]) -> list[Stream[Any]]:
        """Return the streams that this instance serves, in the given order."""
        wanted = listed(self.streams)
        return [stream for stream in streams if stream.name in wanted or not wanted]

    @property
    def bootstrap_servers(self) -> list[str]:
        """The brokers to ask first, as `host:port`, in the order given."""
        return listed(self.kafka_bootstrap_servers)

    @property
    def redrive_after_s(self) -> list[int]:
        """The seconds after which a poison record is sent back, by round; empty for never."""
        return [_seconds(delay) for delay in listed(self.redrive_after)]

    @property
    def allowed_origins(self) -> list[str]:
        """The origins whose pages may call the producer, in the order given."""
        return listed(self.cors_origins)

    @property
    def host_names(self) -> list[str]:
        """The allowed names in `Host`, in lower case; empty if all are allowed."""
        return listed(self.allowed_hosts.lower())

    @property
    def api_keys(self) -> Keys:
        """The API keys of `API_KEY`, and those of the file `API_KEY_FILE`."""
        given, file = read_keys(self.api_key.split(",")) if self.api_key else {}, self.api_key_file
        return Keys(given, Path(file) if file else None, reads=self.api_key_reads, tokens=bool(self.jwt_issuer))

    @property
    def token_audiences(self) -> list[str]:
        """The audiences of which a token must have one."""
        return listed(self.jwt_audience)

    @property
    def token_roles(self) -> Mapping[str, frozenset[Role]]:
        """The roles that a value of the claim of roles gives; by default each role's own name."""
        pairs = [pair.split("=") for pair in listed(self.jwt_roles)] or [[role, role] for role in Role]
        return {value: frozenset(Role(role) for other, role in pairs if other == value) for value, _ in pairs}

    def share_of(self, limit: int) -> int:
        """Return the part of a limit of the producer that each of its workers has, at least 1."""
        return max(limit // self.producer_workers, 1)

    @property
    def uses_sasl(self) -> bool:
        """Whether the clients authenticate with a password or a token."""
        return self.kafka_security_protocol.startswith("SASL_")

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted, and brokers identified by certificates."""
        return self.kafka_security_protocol.endswith("SSL")


def _seconds(delay: str) -> int:
    return int(delay[:-1]) * SECONDS_OF[delay[-1]]


def is_address(host: str) -> bool:
    """Return whether a host is an IP address, without brackets."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
