"""Logging of a service: one line an event on standard error, for people or as JSON."""

import logging
from datetime import UTC, datetime

import msgspec

from apps.chassis.settings import Settings

MISSING_RIGHTS = {
    "ClusterAuthorizationFailedError": "no right to the cluster",
    "GroupAuthorizationFailedError": "no right to the group",
    "TopicAuthorizationFailedError": "no right to the topic",
    "TransactionalIdAuthorizationFailed": "no right to the transactional id",
}
"""What the kinds of errors mean that Kafka answers when an ACL is missing."""


def one_line(error: BaseException) -> str:
    """Return an error as one line: its kind, and its message where it has one."""
    kind, message = type(error).__name__, " ".join(str(error).split())
    if kind in MISSING_RIGHTS:
        return f"{MISSING_RIGHTS[kind]} ({message})"
    return message if message.startswith(kind) else f"{kind}: {message}".removesuffix(": ")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (RFC 3339, UTC), `level`, `logger`, `message` and, after an error, `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line break at its end."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Tell whether a line of asyncio tells anything.

    A producer of aiokafka that is closed before its last batches are written, or is fenced, leaves errors in callbacks
    and futures of its own that nobody waits for: those who wait for the batches were told.
    """
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ not in {"ProducerClosed", "ProducerFenced"} and "aiokafka" not in record.getMessage()


def set_up_logging(settings: Settings) -> None:
    """Send all logs of the process to standard error, as `LOG_LEVEL` and `LOG_FORMAT` say."""
    handler = logging.StreamHandler()
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("asyncio").addFilter(is_worth_a_line)
    # A hundred lines a second while a broker is down; the change of state is logged by the connection instead.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
