"""Set up logging: one line per event on standard error, as text or as JSON.

No line contains a secret, or a value or key of a record, which may be private. Messages of exceptions may quote them:
only those of Kafka's client are logged, where it has raised them; of other exceptions only the type and the stack. That
includes what nothing catches: errors in threads, in destructors and in tasks that nobody awaits, and warnings.
"""

import linecache
import logging
import math
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime

import msgspec
from aiokafka.errors import KafkaError

from apps.chassis.observability.log_output import LogOutput
from apps.chassis.settings import Settings

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the current request, for all log lines of the request."""

trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""The id of the current trace, in hex."""

key_name: ContextVar[str | None] = ContextVar("key_name", default=None)
"""The name of the API key of the current request."""

FIELDS = ("request_id", "trace_id", "key_name", "action", "topic", "partition", "offset", "records", "error")
"""Optional fields of a JSON line, passed to the logger as `extra`."""
CLIENT_LIBRARIES = ("aiokafka", "faststream_kafka")
"""The loggers of the libraries that talk to Kafka."""
QUOTING = ("apps.", *CLIENT_LIBRARIES)
"""How the names of loggers begin that may quote errors of Kafka's client; elsewhere a handler may have raised them."""
UNCAUGHT = logging.getLogger("python")
"""Logs uncaught errors and warnings, of this project and of others."""
IGNORED_LINES = ("Auto create topics is disabled",)
"""How log messages begin that only report our own settings."""
PASSING_LINES = ("Group Coordinator Request failed: GroupCoordinatorNotAvailableError",)
"""How log messages begin that are normal for a moment: a new Kafka has no coordinator before the first group asks."""
PASSING_S = 5.0
"""Seconds for which such a line may be repeated before it is written. Health names the cause too, when it lasts."""
QUIET_S = 60.0
"""Seconds for which an identical line of a client library is not repeated."""
MAX_CLIENT_LINES = 20
"""Most different lines of client libraries within `QUIET_S`."""
MAX_CHAINED_ERRORS = 10
"""Most exceptions of a chain whose stacks are logged."""
MISSING_PERMISSIONS = {
    "ClusterAuthorizationFailedError": "no permission for the cluster",
    "GroupAuthorizationFailedError": "no permission for the group",
    "TopicAuthorizationFailedError": "no permission for the topic",
    "TransactionalIdAuthorizationFailed": "no permission for the transactional id",
}
"""The meaning of Kafka's errors for a missing ACL."""
NOT_REACHED = "Unable to bootstrap from "
"""What stands in the client's error before the addresses of Kafka, which are written as Python objects."""
ADDRESS = re.compile(r"\('([^']+)', (\d+), ")


MISLEADING = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that end a line, control a terminal, or turn the direction of what follows."""


def plain(text: str) -> str:
    """Return a text with `MISLEADING` characters escaped as in JSON, so that it stays one line and looks as it is."""
    return MISLEADING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(error: BaseException) -> str:
    """Return the type and the message of an error in one line. Log it only for errors of Kafka's client.

    Lone surrogates, which stand for invalid UTF-8, are escaped because they cannot be encoded.
    """
    text = str(error).encode("utf-8", "backslashreplace").decode()
    kind, message = type(error).__name__, " ".join(text.split())
    if kind in MISSING_PERMISSIONS:
        return f"{MISSING_PERMISSIONS[kind]} ({message})"
    if NOT_REACHED in message:
        return f"no broker answers at {', '.join(map(':'.join, ADDRESS.findall(message)))}"
    code, _, rest = message.partition("] ")
    if code.startswith("[Error ") and rest.startswith(kind):  # a broker's error: its code repeats its type
        return rest
    return message if message.startswith(kind) else f"{kind}: {message}".removesuffix(": ")


def without_values(error: BaseException) -> str:
    """Return an error in one line that is safe to log: its type, and its message if it is of Kafka's client."""
    return one_line(error) if isinstance(error, KafkaError) else type(error).__name__


def stack_of(error: BaseException, describe: Callable[[BaseException], str] = without_values) -> str:
    """Return the stacks of an error and its causes, without messages that may quote values."""
    return "\n".join(reversed(list(_stacks(error, describe))))


def _stacks(error: BaseException | None, describe: Callable[[BaseException], str]) -> Iterator[str]:
    for _ in range(MAX_CHAINED_ERRORS):
        if error is None:
            return
        frames = "".join(traceback.format_tb(error.__traceback__))
        yield f"Traceback (most recent call last):\n{frames}{describe(error)}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def stack_in(record: logging.LogRecord) -> str:
    """Return the stack of the error that a log record is about; empty without one."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return ""
    return stack_of(error) if record.name.startswith(QUOTING) else stack_of(error, lambda one: type(one).__name__)


class ConsoleFormatter(logging.Formatter):
    """Formats a line as text: time, level, logger, message and request."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Return the line, without an exception."""
        name, key = getattr(record, "request_id", None), getattr(record, "key_name", None)
        with_key = f", key {key}" if key else ""
        return plain(super().formatMessage(record)) + (f" (request {name}{with_key})" if name else "")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the lines of a stack."""
        record.message, record.asctime = record.getMessage(), self.formatTime(record)
        return "\n".join((self.formatMessage(record), *map(plain, filter(None, stack_in(record).split("\n")))))


class JsonFormatter(logging.Formatter):
    """Formats a line as a JSON object: `time` (RFC 3339, UTC), `level`, `logger`, `message`, and `FIELDS`.

    The field `exception` contains the stack of an error.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line break at its end."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        if stack := stack_in(record):
            line["exception"] = stack
        return plain(msgspec.json.encode(line).decode())


def with_request(record: logging.LogRecord) -> bool:
    """Add the request, the trace and the name of the API key to a log record."""
    record.request_id, record.trace_id, record.key_name = request_id.get(), trace_id.get(), key_name.get()
    return True


def is_worth_logging(record: logging.LogRecord) -> bool:
    """Return whether to log a line of asyncio; remove the future and the arguments that it quotes.

    An aiokafka producer that is fenced, or closed before its last batches are written, leaves errors in callbacks and
    futures that nothing awaits. The callers that await the batches got the same errors.
    """
    error = record.exc_info[1] if record.exc_info else None
    message = record.getMessage()
    record.msg, record.args = re.split(r"\(|\n", message, maxsplit=1)[0], ()
    return type(error).__name__ not in {"ProducerClosed", "ProducerFenced"} and "aiokafka" not in message


class ClientLines(logging.Filter):
    """Limits the log lines of Kafka's client libraries: each once a minute with a count, and at most 20 a minute.

    A client whose broker is down logs a hundred lines a second. Messages of other libraries' exceptions are removed.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._logged: dict[str, tuple[float, int]] = {}
        self._passing: dict[str, tuple[float, float]] = {}
        self._suppressed = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a line; add the number of suppressed lines to its message."""
        if not record.name.startswith(CLIENT_LIBRARIES):
            return True
        error = record.exc_info[1] if record.exc_info else None
        if record.name.startswith("faststream") and error is not None and not isinstance(error, KafkaError):
            return False  # an error of the handler: the consumer logs it without its message
        if isinstance(record.args, tuple):
            record.args = tuple(map(_without_quotes, record.args))
        message = " ".join(record.getMessage().split())
        if message.startswith(IGNORED_LINES) or (message.startswith(PASSING_LINES) and not self._lasts(message)):
            return False
        since, repeated = self._logged.get(message, (-math.inf, 0))
        if self._now() - since < QUIET_S:
            self._logged[message] = since, repeated + 1
            return False
        self._logged = {text: one for text, one in self._logged.items() if self._now() - one[0] < QUIET_S}
        if len(self._logged) >= MAX_CLIENT_LINES:
            self._suppressed += 1
            return False
        self._logged[message] = self._now(), 0
        also = [f"{repeated} times more since"] if repeated else []
        also += [f"{self._suppressed} other lines were suppressed"] if self._suppressed else []
        self._suppressed = 0
        record.msg, record.args = message + (f" ({', '.join(also)})" if also else ""), ()
        return True

    def _lasts(self, message: str) -> bool:
        """Return whether a line has been repeated for `PASSING_S`, without a pause as long."""
        now = self._now()
        first, last = self._passing.get(message, (now, now))
        first = now if now - last > PASSING_S else first
        self._passing[message] = first, now
        return now - first >= PASSING_S


def _without_quotes(argument: object) -> object:
    """Return a log argument without values: only the type of an exception that is not Kafka's or the system's."""
    if isinstance(argument, BaseException) and not isinstance(argument, OSError):
        return without_values(argument)
    return argument


def _log_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_type is not SystemExit:
        UNCAUGHT.error("a thread has failed", exc_info=failed.exc_value)


def _log_ignored(ignored: "sys.UnraisableHookArgs") -> None:
    UNCAUGHT.error("an error was ignored, as in a destructor", exc_info=ignored.exc_value)


def _log_warning(_: object, kind: type[Warning], file: str, line: int, *__: object) -> None:
    code = linecache.getline(file, line).strip()
    UNCAUGHT.warning("%s at %s:%d: %s", kind.__name__, file, line, code)


def set_up_logging(settings: Settings) -> None:
    """Send all logs of the process to standard error, according to `LOG_LEVEL` and `LOG_FORMAT`.

    So are errors that nothing catches, and warnings.
    """
    threading.excepthook, sys.unraisablehook = _log_thread, _log_ignored
    warnings.showwarning = _log_warning  # type: ignore[assignment]  # it is called with these arguments by place
    handler = LogOutput()
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else ConsoleFormatter())
    handler.addFilter(with_request)
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("asyncio").addFilter(is_worth_logging)
    handler.addFilter(ClientLines())
    for library in CLIENT_LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each fetch of token keys
    logging.getLogger("opentelemetry.trace").setLevel(logging.CRITICAL)  # its messages quote callers' headers
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
