"""What settings must be together: each check raises `WrongSetting`, which names the variable to change."""

from collections.abc import Collection, Sequence
from importlib.util import find_spec
from typing import Any

from apps.chassis.setting_types import RETENTION, WrongSetting, listed
from apps.chassis.settings import Settings
from contracts.stream import Stream


def check_streams_differ(settings: Settings, streams: Sequence[Stream[Any]]) -> None:
    """Check that the served streams exist, and that no two streams share a topic or a group."""
    names = [stream.name for stream in streams]
    for name in listed(settings.streams):
        if name not in names:
            raise WrongSetting(f"STREAMS: expected some of {', '.join(names)}, got {name!r}")
    topics = {settings.audit_topic: "AUDIT_TOPIC"} if settings.audit_topic else {}
    groups: dict[str, str] = {}
    for stream in streams:
        of = settings.of(stream)
        for field, name, taken in (
            ("topic", of.topic, topics),
            ("dead_letter_topic", of.dead_letter_topic, topics),
            ("dead_letter_topic", of.marks_topic, topics),
            ("group_id", of.group_id, groups),
        ):
            variable = stream.variables(field)[-1]
            if taken.setdefault(name, variable) != variable:
                raise WrongSetting(f"{variable}: must differ from {taken[name]}, both are {name!r}")
        kept_s, longest_s = of.dead_letter_retention_s, max(settings.redrive_after_s, default=0)
        if kept_s is not None and kept_s <= longest_s:
            got = f"{of.dead_letter_retention!r} for {stream.name}"
            raise WrongSetting(f"{RETENTION}: must be longer than the delays of REDRIVE_AFTER, got {got}")


def check_keys(settings: Settings) -> None:
    """Check the keys of the environment, then those of the file."""
    variable = "API_KEY"
    try:
        keys = settings.api_keys
        variable = "API_KEY_FILE"
        keys.read_file()
    except ValueError as error:
        raise WrongSetting(f"{variable}: {error}") from None
    except OSError as error:
        raise WrongSetting(f"{variable}: cannot read {settings.api_key_file!r}: {error.strerror}") from None
    if not keys.needed and (settings.api_key_reads or not settings.metrics_public):
        variable = "API_KEY_READS" if settings.api_key_reads else "METRICS_PUBLIC"
        raise WrongSetting(f"{variable}: needs API_KEY, API_KEY_FILE or JWT_ISSUER")


def check_tokens(given: Collection[str]) -> None:
    """Check that bearer tokens have all of their settings, and the packages of the extra `oidc`."""
    needed = ("JWT_ISSUER", "JWT_AUDIENCE", "JWT_JWKS")
    present = [name for name in (*needed, "JWT_ROLES_CLAIM", "JWT_ROLES") if name in given]
    if not present:
        return
    if missing := [name for name in needed if name not in given]:
        raise WrongSetting(f"{missing[0]}: is missing, but {present[0]} is set")
    if not all(map(find_spec, ("httpx", "joserfc"))):
        raise WrongSetting("JWT_ISSUER: needs the extra oidc: uv sync --extra oidc")


def check_security(settings: Settings, given: Collection[str]) -> None:
    """Check that passwords, tokens and certificates go with their protocol, and each key with its certificate."""
    protocol = settings.kafka_security_protocol
    for name in given:
        if name.startswith("KAFKA_SASL_") and not settings.uses_sasl:
            raise WrongSetting(f"{name}: needs KAFKA_SECURITY_PROTOCOL=SASL_SSL, got {protocol}")
        if name.startswith("KAFKA_SSL_") and not settings.uses_tls:
            raise WrongSetting(f"{name}: needs KAFKA_SECURITY_PROTOCOL=SSL or SASL_SSL, got {protocol}")
    if settings.uses_sasl and not settings.uses_tls and not settings.kafka_allow_plaintext_password:
        raise WrongSetting(
            "KAFKA_SECURITY_PROTOCOL: SASL_PLAINTEXT sends the password without TLS; use SASL_SSL, or allow it with "
            "KAFKA_ALLOW_PLAINTEXT_PASSWORD=true"
        )
    if settings.kafka_ssl_keyfile and not settings.kafka_ssl_certfile:
        raise WrongSetting("KAFKA_SSL_CERTFILE: is missing, but KAFKA_SSL_KEYFILE is set")
    if settings.ssl_keyfile and not settings.ssl_certfile:
        raise WrongSetting("SSL_CERTFILE: is missing, but SSL_KEYFILE is set")
    if settings.uses_sasl:
        _check_credentials(settings.kafka_sasl_mechanism, given)


def _check_credentials(mechanism: str, given: Collection[str]) -> None:
    password, token = ("KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"), ("KAFKA_SASL_TOKEN_FILE",)
    needed, useless = (token, password) if mechanism == "OAUTHBEARER" else (password, token)
    for name in needed:
        if name not in given:
            raise WrongSetting(f"{name}: is missing; {mechanism} needs it")
    for name in useless:
        if name in given:
            raise WrongSetting(f"{name}: must not be set with {mechanism}")
