"""Log the operator actions that fail."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from apps.chassis.observability.logs import one_line

log = logging.getLogger(__name__)


@contextmanager
def operator_action(action: str, stream: str) -> Iterator[None]:
    """Log an operator action on a stream when it raises."""
    try:
        yield
    except Exception as error:
        details = {"action": action, "stream": stream}
        log.info("an operator asked for %s of %s: it failed: %s", action, stream, one_line(error), extra=details)
        raise
