"""Read the settings from the environment, and check each of them and all together."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from apps.chassis.setting_checks import check_keys, check_security, check_streams_differ, check_tokens
from apps.chassis.setting_types import RETENTION, WrongSetting, expected
from apps.chassis.settings import BY_STREAM, Settings, StreamSettings, defaults_of
from contracts import STREAMS
from contracts.stream import FIELDS, Stream, check_streams

T = TypeVar("T", bound=msgspec.Struct)
S = TypeVar("S", bound="Settings")

PLAIN_INTEGER = re.compile(r"[0-9]{1,18}")
PASSWORD_OF_ADDRESS = re.compile(r"//.*@")
"""User and password in an address."""


def read_settings(environment: Mapping[str, str], streams: Sequence[Stream[Any]] = STREAMS) -> Settings:
    """Build the settings from environment variables; an unset or empty variable takes its default.

    Raises `WrongSetting` with the first variable whose value is invalid, or `BadStream` for invalid streams.
    """
    names = [name for name in Settings.__struct_encode_fields__ if name != BY_STREAM]
    check_streams(streams, names)
    given = {
        name: environment[name].strip() if name != "KAFKA_SASL_PASSWORD" else environment[name]
        for name in names
        if environment.get(name, "").strip()
    }
    by_stream = {stream.name: _read_stream_settings(environment, stream) for stream in streams}
    settings = _converted(Settings, {name: (name, value) for name, value in given.items()}, {BY_STREAM: by_stream})
    check_security(settings, given)
    check_streams_differ(settings, streams)
    check_tokens(given)
    check_keys(settings)
    return msgspec.structs.replace(
        settings,
        producer_url=settings.producer_url and settings.producer_url.rstrip("/"),
        root_path=settings.root_path.rstrip("/"),
    )


def read_own_settings(kind: type[S], settings: Settings, environment: Mapping[str, str]) -> S:
    """Return settings of a subclass of `Settings`; its additional fields are read from variables of the same name.

    Settings that are already of the subclass are returned as they are. Raises `WrongSetting` as `read_settings` does.
    """
    if isinstance(settings, kind):
        return settings
    own = [one for one in msgspec.structs.fields(kind) if one.name not in Settings.__struct_fields__]
    given = {
        one.encode_name: (one.encode_name, value)
        for one in own
        if (value := environment.get(one.encode_name, "").strip())
    }
    if missing := [one.encode_name for one in own if one.required and one.encode_name not in given]:
        raise WrongSetting(f"{missing[0]}: is missing; the handler needs it")
    known = {name: getattr(settings, name) for name in Settings.__struct_fields__}
    return msgspec.structs.replace(_converted(kind, given, {}), **known)


def _read_stream_settings(environment: Mapping[str, str], stream: Stream[Any]) -> StreamSettings:
    given: dict[str, tuple[str, str]] = {}
    for field in FIELDS:
        for variable in stream.variables(field):
            value = environment.get(variable, "").strip()
            if value and given.setdefault(field, (variable, value))[1] != value:
                raise WrongSetting(f"{variable}: means the same as {given[field][0]}, and differs from it: set one")
    if common := environment.get(RETENTION, "").strip():
        given.setdefault(RETENTION.lower(), (RETENTION, common))
    return _converted(StreamSettings, given, defaults_of(stream))


def _converted(kind: type[T], given: Mapping[str, tuple[str, str]], others: Mapping[str, Any]) -> T:
    """Return a Struct from `given`, the variable and text of each field, and `others`, the values of other fields."""
    hints = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for name, (variable, value) in given.items():
        try:
            value.encode()
            if isinstance(inspect.type_info(hints[name]), inspect.IntType) and not PLAIN_INTEGER.fullmatch(value):
                raise msgspec.ValidationError  # noqa: TRY301 - otherwise `1e4` would be 10,000
            msgspec.convert(value, hints[name], strict=False)
        except UnicodeEncodeError:
            raise WrongSetting(f"{variable}: expected text in UTF-8") from None
        except msgspec.ValidationError:
            shown = PASSWORD_OF_ADDRESS.sub("//***@", value)
            raise WrongSetting(
                f"{variable}: expected {expected(inspect.type_info(hints[name]))}, got {shown!r}"
            ) from None
    return msgspec.convert({**others, **{name: value for name, (_, value) in given.items()}}, kind, strict=False)
