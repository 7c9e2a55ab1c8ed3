"""The kinds of problems that an answer of a service can be."""

from http import HTTPStatus

import msgspec

PATH = "/problems"


class Kind(msgspec.Struct, frozen=True):
    """A type of problem; `retry` adds `Retry-After` to its answers."""

    name: str
    status: HTTPStatus
    title: str
    meaning: str
    retry: bool = False

    @property
    def type(self) -> str:
        """The `type` of such a problem: a reference that this service answers itself."""
        return f"{PATH}/{self.name}" if self.name else "about:blank"


BAD_PARAMETER = Kind(
    "bad-parameter",
    HTTPStatus.BAD_REQUEST,
    "A parameter is wrong",
    "A query parameter is unknown, given twice, or not what it must be; `errors` names each. Nothing was done.",
)
BAD_BODY = Kind(
    "bad-body",
    HTTPStatus.BAD_REQUEST,
    "The body is wrong",
    "The body is not the JSON that the call takes; `errors` names the path in it. Nothing was done.",
)
NOT_NOW = Kind(
    "not-now",
    HTTPStatus.CONFLICT,
    "Not in this state",
    "The call does not fit the current state of this instance; nothing was done. Try again later, "
    "or call another instance.",
)
DONE_BEFORE = Kind(
    "done-before",
    HTTPStatus.CONFLICT,
    "It was done before",
    "What may be done only once was done by an earlier call; nothing was done by this one.",
)
OUT_OF_REACH = Kind(
    "out-of-reach",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "Kafka cannot be used",
    "Kafka cannot be reached, did not answer in time, or answers with an error, as for want of a permission: `detail` "
    "says which. The service keeps trying. Nothing was written unless the answer's `receipts` say so. Try again after "
    "`Retry-After`.",
    retry=True,
)
UNREADABLE = Kind(
    "unreadable",
    HTTPStatus.BAD_GATEWAY,
    "A record cannot be read",
    "Kafka answered with records that cannot be read: they are damaged, compressed in a way that this service does "
    "not support, or deep in a batch that takes too long to decompress; `detail` names their place. Nothing was done. "
    "A retry will fail too: ask for other partitions, or for later records.",
)
BUSY = Kind(
    "busy",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "Too much is in flight",
    "This instance has as many calls under way as it accepts at a time; nothing was done. Try again after "
    "`Retry-After`, or call another instance.",
    retry=True,
)
NOT_ACKNOWLEDGED = Kind(
    "not-acknowledged",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "No record was acknowledged",
    "Records were tried, and none was acknowledged. `receipts` has one for each: an `outcome` of `not_written` is safe "
    "to send again, one that is `unknown` may have been written.",
    retry=True,
)
NO_DELETIONS = Kind(
    "no-deletions",
    HTTPStatus.METHOD_NOT_ALLOWED,
    "The stream takes no deletions",
    "A record can be deleted from a stream that is declared with `deletes=True`, and this one is not; nothing was "
    "deleted. A retry will fail too.",
)
FOREIGN_ORIGIN = Kind(
    "foreign-origin",
    HTTPStatus.FORBIDDEN,
    "A page of another origin",
    "A browser made the call for a web page of another origin (`Origin`, `Sec-Fetch-Site`); nothing was done. "
    "`CORS_ORIGINS` names the origins whose pages may call. Other callers send neither header.",
)
UNKNOWN_HOST = Kind(
    "unknown-host",
    HTTPStatus.MISDIRECTED_REQUEST,
    "The host name is not allowed",
    "`Host` names a host that is not allowed, as with DNS rebinding; "
    "nothing was done. `ALLOWED_HOSTS` lists the allowed hosts.",
)
MISSING_ROLE = Kind(
    "missing-role",
    HTTPStatus.FORBIDDEN,
    "A role is missing",
    "The key or the token is accepted, but does not have the role that the call needs; nothing was done. The file of "
    "keys (`API_KEY_FILE`) gives each key its roles, and the issuer each token.",
)
TOO_MANY_GUESSES = Kind(
    "too-many-guesses",
    HTTPStatus.TOO_MANY_REQUESTS,
    "Too many wrong keys",
    "Many wrong keys or tokens came from the caller's address; for now it may only use those that it has used before. "
    "Try again after `Retry-After`.",
    retry=True,
)
KINDS = (
    BAD_PARAMETER,
    BAD_BODY,
    NOT_NOW,
    DONE_BEFORE,
    OUT_OF_REACH,
    UNREADABLE,
    BUSY,
    NOT_ACKNOWLEDGED,
    NO_DELETIONS,
    FOREIGN_ORIGIN,
    UNKNOWN_HOST,
    MISSING_ROLE,
    TOO_MANY_GUESSES,
)
