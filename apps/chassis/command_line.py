"""The command line of a service: it serves, or answers to `--help`, `--version` and `--check`."""

import argparse
import asyncio
import difflib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec

from apps.chassis.http.health import VERSION
from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.diagnosis import diagnosis
from apps.chassis.service import WRONG_START, CreateApp, build, check_anonymous, resolve, serve
from apps.chassis.setting_reading import read_settings
from apps.chassis.settings import BY_STREAM, Settings, StreamSettings, defaults_of
from contracts import STREAMS
from contracts.stream import FIELDS, variables_of

MEANINGS = {
    "kafka_bootstrap_servers": "brokers to ask first, as host:port, separated by commas",
    "streams": "streams that this instance serves, separated by commas (default: all)",
    "topic": "its topic, created when missing",
    "partitions": "partitions of a topic that is created",
    "replication": "replicas of a topic that is created",
    "dead_letter_topic": "where records that cannot be consumed are kept",
    "dead_letter_retention": "how long dead letters are kept, like 30d",
    "group_id": "its consumer group",
    "host": "address to listen on; 0.0.0.0 for all",
    "producer_port": "port of the producer",
    "consumer_port": "port of the consumer",
    "producer_workers": "processes of the producer, which share its port and limits",
    "liveness_port": "port that answers liveness probes even while the event loop is blocked; 0 for none",
    "window_size": "consumed records kept in memory for reading",
    "slow_batch_seconds": "seconds that a batch may be in flight before health says 503",
    "redrive_after": "delays after which poison records are sent back, like 10m,1h",
    "producer_url": "where the live page finds the producer",
    "cors_origins": "origins whose pages may call the producer, separated by commas",
    "allowed_hosts": "allowed values of the header Host, separated by commas",
    "root_path": "path prefix that a proxy strips",
    "keep_alive_s": "seconds that a connection may be idle between two requests",
    "api_key": "a key that callers send in X-API-Key, or several as name:key,name:key",
    "api_key_file": "a file of keys, with their roles and ends",
    "api_key_reads": "whether reading needs a key too",
    "jwt_issuer": "the issuer of bearer tokens that are accepted (OIDC); needs the extra oidc",
    "jwt_audience": "their audience",
    "jwt_jwks": "the issuer's public keys: a file, or an https:// address",
    "jwt_roles_claim": "the claim that holds roles, like realm_access.roles",
    "jwt_roles": "which of its values give which role: VALUE=ROLE, separated by commas",
    "allow_anonymous": "whether a service without keys may listen beyond this machine",
    "ssl_certfile": "the service's certificate (PEM): it then speaks HTTPS",
    "ssl_keyfile": "its private key",
    "metrics_public": "whether GET /metrics needs no key",
    "audit_topic": "a topic for a record of each operator action",
    "log_level": "DEBUG, INFO, WARNING, ERROR or CRITICAL",
    "log_format": "console or json",
    "accelerators": "off publishes by FastStream's public means alone",
    "compression": "how the producer compresses batches: none, lz4, zstd, snappy or gzip",
    "client_rack": "rack of the consumer: it consumes from replicas in the same one",
    "otel_exporter_otlp_endpoint": "a collector of traces (OTLP over HTTP)",
    "kafka_security_protocol": "PLAINTEXT, SSL, SASL_SSL or SASL_PLAINTEXT",
    "kafka_allow_plaintext_password": "allows SASL_PLAINTEXT",
    "kafka_sasl_mechanism": "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER",
    "kafka_sasl_username": "user at Kafka",
    "kafka_sasl_password": "its password",
    "kafka_sasl_token_file": "the file with the token, for OAUTHBEARER",
    "kafka_ssl_cafile": "certificates (PEM) that may sign those of the brokers",
    "kafka_ssl_certfile": "client certificate (PEM) for Kafka",
    "kafka_ssl_keyfile": "its private key",
}
"""What each setting means, in a few words; docs/reference/settings.md explains them."""
CLOSE = 0.9
"""How alike a variable and a setting are, from 0 to 1, for one to be taken for a misspelling of the other."""
OF_OTHERS = frozenset({"SSL_CERT_FILE", *(f"OTEL_EXPORTER_OTLP_{of}_ENDPOINT" for of in ("LOGS", "METRICS", "TRACES"))})
"""Variables of OpenSSL and OpenTelemetry whose names are close to settings."""
STANDARD_ERROR = 2
"""The number of the last of the three standard streams."""
OF_KUBERNETES = "tcp://"
"""How Kubernetes begins the value of `NAME_PORT`, for each of its services."""


def run(service: str, description: str, create_app: CreateApp, handler_settings: Sequence[type[Settings]] = ()) -> None:
    """Serve until SIGTERM or SIGINT, or do what the arguments of the process ask for.

    `--help` lists the fields that `handler_settings` add to `Settings` too.
    `--check` ends with status 0, or with status 1 and one line: a wrong setting, or why Kafka cannot be used.
    """
    open_standard_streams()
    parser = argparse.ArgumentParser(
        service,
        description=description,
        epilog="\n".join(("settings, as environment variables:", *_settings(handler_settings))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{service} {VERSION}")
    parser.add_argument("--check", action="store_true", help="check the settings and that Kafka can be used, and exit")
    check = parser.parse_args().check
    warnings = [*_misspelt(os.environ, handler_settings)]
    if check:
        print(*warnings, sep="\n", end="\n" if warnings else "", file=sys.stderr)  # noqa: T201 - what the caller asked for
        sys.exit(_problem(service, create_app))
    serve(create_app, service, warnings=warnings)


def open_standard_streams() -> None:
    """Let no other file take the place of a standard input, output or error that is closed.

    A socket would get its number, and lose it in a worker, whose input is a pipe.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= STANDARD_ERROR:
        os.set_inheritable(number, True)  # noqa: FBT003 - it takes no names
    os.close(number)


def _misspelt(environment: Mapping[str, str], handler_settings: Sequence[type[Settings]]) -> Iterator[str]:
    """Yield a line about each variable that is no setting, but nearly one."""
    kinds: Sequence[type[Settings]] = (Settings, *handler_settings)
    known = {*chain(*map(variables_of, STREAMS)), *chain(*(kind.__struct_encode_fields__ for kind in kinds))}
    for name, value in sorted(environment.items()):
        if name not in known and name not in OF_OTHERS and not value.startswith(OF_KUBERNETES):
            for meant in difflib.get_close_matches(name, sorted(known - {BY_STREAM}), n=1, cutoff=CLOSE):
                yield f"{name}: no setting is called so, and it is ignored; did you mean {meant}?"


def _problem(service: str, create_app: CreateApp) -> str | None:
    try:
        settings = read_settings(os.environ)
        _, address = resolve(settings.host, getattr(settings, f"{service}_port"))
        check_anonymous(settings, address[0])
        build(create_app, settings)
    except WRONG_START as error:
        return str(error)
    problem = asyncio.run(diagnosis(client_options(settings, service)))
    if problem is None:
        print(f"the settings are valid, and Kafka answers at {settings.kafka_bootstrap_servers}")  # noqa: T201 - what the caller asked for
    return problem


def _settings(handler_settings: Sequence[type[Settings]]) -> Iterator[str]:
    own = {one.name: one.default for one in msgspec.structs.fields(StreamSettings)}
    for stream in STREAMS:
        defaults: dict[str, Any] = {**own, **defaults_of(stream)}
        yield from (
            _line(stream.variables(name)[0], defaults[name], f"{stream.name}: {MEANINGS[name]}") for name in FIELDS
        )
    for one in msgspec.structs.fields(Settings):
        if one.encode_name != BY_STREAM:
            yield _line(one.encode_name, one.default, MEANINGS.get(one.name, ""))
    for kind in handler_settings:
        for one in msgspec.structs.fields(kind):
            if one.name not in Settings.__struct_fields__:
                default = "" if one.required else one.default
                yield _line(one.encode_name, default, "of a handler" + (", which needs it" if one.required else ""))


def _line(variable: str, default: object, meaning: str) -> str:
    text = str(default).lower() if isinstance(default, bool) else str(default or "")
    return f"  {f'{variable}={text}':<48} {meaning}"
