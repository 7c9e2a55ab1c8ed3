"""Call the handler with records, and count what fails: one call is one step, whose result names what failed.

Each call gets its own batch and freshly decoded values, so that a handler cannot change what is recorded here.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from apps.chassis.observability.logs import one_line, without_values
from apps.consumer.consuming.batch import KEPT_BASES, Batch, Handle, NoteLate, Reject
from apps.consumer.consuming.containment import BrokenOff, HandlerCall, HandlerError
from apps.consumer.consuming.decode import Decode, decode_value
from apps.consumer.consuming.error_stacks import keep_stack
from contracts.record import Record, fields_of, name_of

log = logging.getLogger(__name__)

STRUGGLING_S = 3.0
"""Seconds of consecutive failed calls after which the state is `retrying`."""
MAX_ERROR_CHARACTERS = 1_000
"""Characters of the last error that are kept."""

NoteError = Callable[[str, str], object]
"""Takes the text of an error that happened now, and the same without quotes of values."""


def ignore_error(error: str, without_quotes: str) -> None:
    """Note nothing."""


class CallResult(NamedTuple):
    """The result of a handler call: the `error` that it raised, if any, and the errors of the records that it `named`.

    The records are named by their place in the call.
    """

    error: Exception | None = None
    named: Mapping[int, Exception] = {}

    @property
    def is_success(self) -> bool:
        """Whether all records are done."""
        return self.error is None and not self.named


SUCCESS = CallResult()


class Attempts:
    """Calls the handler of a stream, one call at a time.

    `failures` counts the failed calls since the last finished batch, `error` is the last one and `kind` its type.
    `failing_since` is when the first of these failed. `successes` counts the calls that did not fail. `note_error` gets
    each error.
    """

    def __init__(self, decode: Decode, handle: Handle, note_error: NoteError = ignore_error) -> None:
        self.failures = self.successes = 0
        self.error: str | None = None
        self.kind = ""
        self._decode = decode
        self._handle = handle
        self._note_error = note_error
        self._call = HandlerCall(*KEPT_BASES)
        self.failing_since: float | None = None
        self._is_logged = False
        self._unsuccessful_since: float | None = None

    @property
    def is_struggling(self) -> bool:
        """Whether the handler has failed for some seconds without a success."""
        return self._unsuccessful_since is not None and time.monotonic() - self._unsuccessful_since > STRUGGLING_S

    def cancel(self) -> None:
        """Cancel the running call, if there is one."""
        self._call.break_off()

    def reset(self) -> None:
        """Begin to count failures from 0: a batch is finished."""
        self.failures = 0
        self.failing_since = self._unsuccessful_since = None
        self._is_logged = False

    async def call(
        self, records: Sequence[Record], values: Sequence[Any] | None = None, tries: Sequence[int] | None = None
    ) -> CallResult:
        """Call the handler with values, by default freshly decoded; `tries` counts the earlier calls of each record.

        The error of the result is `BrokenOff` when the call was cancelled.
        """
        named: Mapping[int, Exception] = {}

        async def handle() -> object:
            nonlocal named
            decoded = [decode_value(self._decode, one) for one in records] if values is None else values
            batch: Batch[Any] = Batch(records, decoded, tries and [number + 1 for number in tries])
            note_late: NoteLate | None = None
            try:
                result = await self._handle(batch)
                note_late = self._note_late
                return result
            finally:
                batch.close(note_late)
                named = batch.named()

        error = await self._call.run(handle)
        if isinstance(error, BrokenOff):
            return CallResult(error)
        if error is not None:
            self._note(error, records, len(records))
            rejected = {index: _bare(one) for index, one in named.items() if isinstance(one, Reject)}
            return CallResult(_bare(error), rejected)
        if not named:
            self._succeeded()
            return SUCCESS
        failed = {index: one for index, one in named.items() if not isinstance(one, Reject)} or named
        self._note(next(iter(failed.values())), [records[index] for index in failed], len(records))
        if len(named) < len(records):
            self._succeeded()
        return CallResult(None, {index: _bare(one) for index, one in named.items()})

    def _succeeded(self) -> None:
        self.successes += 1
        self._unsuccessful_since = None

    def note_failure(self, error: Exception, place: str = "") -> None:
        """Count a failure, of the record at a place if it failed alone, and keep its text."""
        self.failures += 1
        self.failing_since = self.failing_since or time.time()
        self.error, self.kind = one_line(error)[:MAX_ERROR_CHARACTERS], type(error).__name__
        self._note_error(f"{place}{self.error}", f"{place}{without_values(error)}")

    def _note_late(self, record: Record, error: Exception) -> None:
        """Report a record that was named once its handler had returned: it is committed as done."""
        place, late = name_of(record), "after its handler had returned: it is neither retried nor dead-lettered"
        fields = fields_of(record) | {"error": type(error).__name__}
        log.error("%s failed %s: %s", place, late, without_values(error), extra=fields)
        self._note_error(f"{place} failed {late}: {one_line(error)}", f"{place} failed {late}: {without_values(error)}")

    def _note(self, error: Exception, failed: Sequence[Record], called: int) -> None:
        """Count a call that failed for some of its `called` records; log the first of a batch, but no rejection."""
        self.note_failure(error, f"{name_of(failed[0])}: " if len(failed) == 1 else "")
        self._unsuccessful_since = self._unsuccessful_since or time.monotonic()
        if self._is_logged or isinstance(error, Reject):
            return
        self._is_logged = True
        log.warning(
            "%d of %d records failed, the first of them %s, retrying: %s",
            len(failed),
            called,
            name_of(failed[0]),
            without_values(error),
            # a record may be named with an error that was never raised
            exc_info=error if error.__traceback__ or error.__cause__ else None,
            extra=fields_of(failed[0]) | {"records": len(failed), "error": type(error).__name__},
        )


def _bare(error: Exception) -> Exception:
    """Return an error without what would keep the values of its batch in memory."""
    if isinstance(error, HandlerError):
        error.stack = keep_stack(error)
    error.__cause__ = None
    return error.with_traceback(None)
