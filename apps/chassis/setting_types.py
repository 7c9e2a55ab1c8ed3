"""Types of settings: which texts they take, and how to say that to an operator."""

from typing import Annotated

from msgspec import Meta, inspect

from apps.chassis.http.roles import Role

RETENTION = "DEAD_LETTER_RETENTION"
"""The variable that holds for every stream without its own, like `ORDERS_DEAD_LETTER_RETENTION`."""
PORT = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
LABEL = r"[^\s,:/?#@\[\].]{1,63}"
MACHINE = rf"(?:{LABEL}(?:\.{LABEL})*\.?|\[[0-9a-fA-F:.]+\])"
"""A host name or an address; a name with an empty or longer label cannot be looked up."""
SERVER = rf"{MACHINE}:{PORT}"
ORIGIN = rf"https?://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::{PORT})?"
"""An origin as a browser sends it: lower case, without a path or a trailing slash."""
DELAY = r"[1-9][0-9]{0,4}[smhd]"
PATH = r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)*/?"
"""A path prefix of plain segments."""
HOST_NAME = r"(?i:\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[?[0-9a-f]*:[0-9a-f]*:[0-9a-f:.]*\]?)"
"""A host name, all subdomains of one (`*.example`), any name (`*`), or an IPv6 address."""


class WrongSetting(ValueError):
    """An environment variable has an invalid value; the message is one line that names the variable."""


def listed(text: str) -> list[str]:
    """Return the items of a text that is separated by commas."""
    return [item.strip() for item in text.split(",")] if text else []


def _one(pattern: str, description: str) -> Meta:
    return Meta(pattern=f"^{pattern}$", description=description)


def _several(pattern: str, description: str, hint: str = "") -> Meta:
    return _one(rf"\s*{pattern}\s*(?:,\s*{pattern}\s*)*", f"{description}, several with commas between them{hint}")


Port = Annotated[int, Meta(ge=1, le=65_535)]
REDRIVEN = "-redriven"
"""Appended to a dead-letter topic, it names the topic that records which dead letters were sent back."""


def _topic(longest: int) -> Meta:
    return _one(
        rf"(?!\.{{1,2}}$|__)[a-zA-Z0-9._-]{{1,{longest}}}",  # `__consumer_offsets` would be made with our settings
        f"a topic's name (1 to {longest} of letters, digits, dots, underscores and hyphens, and no __ in front)",
    )


TopicName = Annotated[str, _topic(249)]
DeadLetterTopicName = Annotated[str, _topic(249 - len(REDRIVEN))]
Servers = Annotated[str, _several(SERVER, "host:port", " (an IPv6 address in brackets, like [::1]:9092)")]
Origins = Annotated[str, _several(ORIGIN, "an origin like http://localhost:8000")]
Hosts = Annotated[str, _several(HOST_NAME, "a host name without scheme or port, like kafka.example or *.kafka.example")]
Address = Annotated[
    str,
    _one(
        rf"(?:https?://(?:[^\s/?#@]+@)?{MACHINE}(?::{PORT})?(?:/[^\s?#]*)?)?", "an address like http://localhost:4318"
    ),
]
UrlPath = Annotated[str, _one(PATH, "a path like /kafka, of letters, digits and . _ ~ -")]
ServiceUrl = Annotated[
    str, _one(rf"(?!/$)(?:{ORIGIN})?{PATH}", "an address like http://localhost:8000 or https://example.com/producer")
]

Jwks = Annotated[
    str,
    _one(
        rf"(?:https://{MACHINE}(?::{PORT})?(?:/[^\s#]*)?"
        rf"|http://(?:localhost|127(?:\.[0-9]{{1,3}}){{3}}|\[::1\])(?::{PORT})?(?:/[^\s#]*)?"
        r"|(?![A-Za-z0-9+.-]*://).+)?",
        "a file, or an address like https://login.example.com/keys (http:// only on this machine)",
    ),
]
TokenRoles = Annotated[
    str,
    _several(rf"[^,=\s](?:[^,=]*[^,=\s])?=(?:{'|'.join(Role)})", f"VALUE=ROLE (a role is one of {', '.join(Role)})"),
]
Delays = Annotated[str, _several(DELAY, "a delay like 30s, 10m, 6h or 1d")]
UNLIMITED = "unlimited"
Retention = Annotated[str, _one(rf"(?:{DELAY}|{UNLIMITED})", f"a time like 12h or 30d, or {UNLIMITED}")]


def expected(kind: inspect.Type) -> str:
    """Return what a setting must be, as a phrase for an operator."""
    if isinstance(kind, inspect.UnionType):  # of a type and None
        kind = next(one for one in kind.types if not isinstance(one, inspect.NoneType))
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=extra):
            return str((extra or {}).get("description") or expected(inner))
        case inspect.IntType(ge=ge, le=le):
            return f"a whole number from {ge} to {le}"
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(map(str, values))
        case inspect.StrType(min_length=minimum, max_length=int(maximum)):
            return f"text of {minimum or 0} to {maximum} characters"
        case inspect.BoolType():
            return "true or false"
    return "text"
