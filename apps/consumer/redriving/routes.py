"""Dead letters over HTTP: show them, send them back, discard and restore them."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple

import msgspec
from litestar import Controller, get, post
from litestar.connection import Request
from litestar.di import Provide
from litestar.params import Parameter, QueryParameter, SkipValidation
from litestar.response import Response

from apps.chassis.deadline import CALL_S, within
from apps.chassis.http.admission import share_of
from apps.chassis.http.authorization import access_of
from apps.chassis.http.problem_kinds import DONE_BEFORE, NOT_NOW, OUT_OF_REACH, UNREADABLE
from apps.chassis.http.problems import RETRY_AFTER, answer_error, bad_body, bad_parameter, documented, problem
from apps.chassis.http.query import ANY_NUMBER
from apps.chassis.http.request_body import BODY_ERRORS, JSON, documents_body, either, read_json
from apps.chassis.http.roles import OPERATE, READ, ROLE
from apps.chassis.kafka.errors import KAFKA_ERRORS
from apps.chassis.observability.logs import one_line
from apps.consumer.browsing.counted_answers import MAKE_LATER
from apps.consumer.browsing.cursors import read_offsets
from apps.consumer.browsing.record_view import View
from apps.consumer.browsing.routes import SEARCH_MEMORY_BYTES, TIME, key_filter, read_time, view_of
from apps.consumer.browsing.topic_search import Filter
from apps.consumer.redriving.actions import Action
from apps.consumer.redriving.answers import Answer, Discards, Redrives, Restores
from apps.consumer.redriving.letter_lists import (
    COUNT_LIMITS,
    MAX_LETTERS,
    DeadLetters,
    Reasons,
    count_by_reason,
    newest_letters,
)
from apps.consumer.redriving.letters import letter_of
from apps.consumer.redriving.redrive import WHY_DELETED, Done
from apps.consumer.redriving.refusals import DoneBefore, NoSuchLetter, RedriveNotNow, RedriveRefused, TooLarge
from apps.consumer.stream_consumer import StreamConsumer
from contracts.record import Record

log = logging.getLogger(__name__)

Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_LETTERS)]
Number = Annotated[int, msgspec.Meta(ge=0)]
NO_TYPE = "unknown"
"""What a filter by reason finds in a dead letter that names no type of its error."""


class Choice(msgspec.Struct, forbid_unknown_fields=True):
    """Which dead letters: the oldest `limit` of a stream, or one by its place among the dead letters."""

    limit: Limit | None = None
    partition: Number | None = None
    offset: Number | None = None


DryRun = Annotated[bool, Parameter(description="Change nothing, and answer how many it would be.")]
Discarded = Annotated[bool, Parameter(description="Those that were discarded, which are not shown otherwise.")]


class Selection(NamedTuple):
    """The dead letters of some streams that an action means; `dry_run` only counts them."""

    streams: Mapping[str, StreamConsumer]
    choice: Choice
    only: Filter
    dry_run: bool


@dataclass(frozen=True)
class HasReason:
    """Finds a text in the reason of a dead letter; equal ones find the same, so that a further call reads on."""

    text: str
    sees_errors: bool

    def __call__(self, record: Record) -> bool:
        """Return whether a dead letter has the text."""
        letter = letter_of(record)
        error = (letter.error or "") if self.sees_errors else ""
        return self.text in _one_line(f"{letter.error_type or NO_TYPE}: {error}")


async def letter_filter(  # noqa: PLR0913 - each is a query parameter
    *,
    request: Request[Any, Any, Any],
    served: SkipValidation[Mapping[str, StreamConsumer]],
    partition: Annotated[
        int | None, Parameter(ge=0, schema_extra=ANY_NUMBER, description="Only those of this partition.")
    ] = None,
    key: Annotated[str | None, Parameter(description="Only those whose record has this key.")] = None,
    reason: Annotated[
        str | None, Parameter(description="Only those whose error or its type, else `unknown`, has this text.")
    ] = None,
    since: Annotated[
        str | None,
        QueryParameter(name="from", schema_extra=TIME, description="None written before this time (RFC 3339)."),
    ] = None,
    until: Annotated[
        str | None, QueryParameter(name="to", schema_extra=TIME, description="Only those written before this time.")
    ] = None,
) -> Filter:
    """Return which dead letters a call means, for the list and the actions alike.

    A caller that may not read, or not see the error of a letter, finds none by it.
    """
    named = request.query_params.get("stream")
    views = [await view_of(request, one) for name, one in served.items() if named in {None, name}]
    keys = [key_filter(view, key) for view in views]
    sees_errors = access_of(request).may_read(request) and not any(view.masking for view in views)

    times = read_time("from", since), read_time("to", until)
    has_reason = None if reason is None else HasReason(_one_line(reason), sees_errors=sees_errors)
    return Filter(next(iter(keys), None), partition, *times, has_reason)


def _one_line(text: str) -> str:
    """Return a text with single spaces: errors are shown in one line elsewhere."""
    return re.sub(r"\s+", " ", text)


REFUSALS = (HTTPStatus.NOT_FOUND, DONE_BEFORE, NOT_NOW, HTTPStatus.UNPROCESSABLE_ENTITY)


async def read_selection(
    request: Request[Any, Any, Any],
    served_streams: SkipValidation[Mapping[str, StreamConsumer]],
    only: SkipValidation[Filter],
    dry_run: DryRun = False,  # noqa: FBT002 - a query parameter
) -> Selection:
    """Return which dead letters an action means."""
    choice = await read_json(request, Choice)
    if choice.limit is None and len(served_streams) > 1:
        raise bad_parameter("stream", "name the stream of the dead letter")
    return Selection(served_streams, choice, only, dry_run)


ACTION: dict[str, Any] = {
    "status_code": HTTPStatus.OK,
    "role": OPERATE,
    "responses": documented(*BODY_ERRORS, *REFUSALS, OUT_OF_REACH, UNREADABLE),
    "operation_class": documents_body(
        {JSON: (either(Choice, ["limit"], ["partition", "offset"]), {"limit": 10})}, required=True
    ),
}
"""What the routes of all actions have in common."""


def answer_refusal(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Answer an action that did nothing."""
    match error:
        case NoSuchLetter():
            found = problem(HTTPStatus.NOT_FOUND, str(error))
        case DoneBefore():
            found = problem(DONE_BEFORE, str(error))
        case TooLarge():
            found = problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        case _:
            found = problem(NOT_NOW, str(error), headers={"Retry-After": RETRY_AFTER})
    return answer_error(request, found)


class DeadLetterController(Controller):
    """Shows dead letters, sends them back, discards and restores them."""

    path = "/consumers/dead-letters"
    opt = {ROLE: READ}  # noqa: RUF012 - Litestar's own attribute
    type_encoders = MAKE_LATER
    dependencies = {  # noqa: RUF012 - Litestar's own attribute
        "only": Provide(letter_filter),
        "selection": Provide(read_selection),
        "view": Provide(view_of),
    }
    exception_handlers: dict[int | type[Exception], Any] = {RedriveRefused: answer_refusal}  # noqa: RUF012 - Litestar's own

    @get(summary="The newest dead letters", responses=documented(OUT_OF_REACH, UNREADABLE))
    async def newest(  # noqa: PLR0913 - the parameters of its query
        self,
        *,
        request: Request[Any, Any, Any],
        served_stream: SkipValidation[StreamConsumer],
        view: SkipValidation[View],
        only: SkipValidation[Filter],
        limit: Annotated[int, Parameter(ge=1, le=MAX_LETTERS, description="How many at most.")] = 10,
        before: Annotated[str | None, Parameter(description="Only those before: the `next` of an answer.")] = None,
        discarded: Discarded = False,
    ) -> DeadLetters:
        """Show the newest dead letters."""
        try:
            cursor = None if before is None else read_offsets(before)
        except ValueError as error:
            raise bad_parameter("before", str(error)) from None
        (share := share_of(request.scope)).require(SEARCH_MEMORY_BYTES)
        found = newest_letters(served_stream, view, limit, only, cursor, discarded=discarded, share=share)
        return await within(CALL_S, found)

    @get("/reasons", summary="The newest 1,000 dead letters, by reason", responses=documented(OUT_OF_REACH, UNREADABLE))
    async def by_reason(
        self,
        request: Request[Any, Any, Any],
        served_stream: SkipValidation[StreamConsumer],
        view: SkipValidation[View],
        only: SkipValidation[Filter],
        discarded: Discarded = False,  # noqa: FBT002 - a query parameter
    ) -> Reasons:
        """Count dead letters by reason."""

        def begin() -> Awaitable[Reasons]:
            share_of(request.scope).require(2 * COUNT_LIMITS.bytes)
            return count_by_reason(served_stream, view, only, discarded=discarded)

        call = request.scope["path"], request.scope["query_string"], view
        return await within(CALL_S, served_stream.shared_reads.read(call, begin))

    @post("/redrive", summary="Send dead letters back to their topic, each once", **ACTION)
    async def redrive(self, selection: SkipValidation[Selection]) -> Redrives:
        """Send dead letters of each stream back, all streams at once."""
        done, waiting = await _perform(Action.REDRIVE, selection)
        answer = _answer(Redrives, selection, done, waiting)
        answer.refused, answer.refused_because = done.deleted, WHY_DELETED if done.deleted else None
        return answer

    @post("/discard", summary="Discard dead letters: they are neither sent back nor listed", **ACTION)
    async def discard(self, selection: SkipValidation[Selection]) -> Discards:
        """Discard dead letters of each stream that were not sent back, also held ones, all streams at once."""
        return _answer(Discards, selection, *await _perform(Action.DISCARD, selection))

    @post("/restore", summary="Restore discarded dead letters", **ACTION)
    async def restore(self, selection: SkipValidation[Selection]) -> Restores:
        """Undo the discard of dead letters of each stream, all streams at once."""
        return _answer(Restores, selection, *await _perform(Action.RESTORE, selection))


def _answer(kind: type[Answer], selection: Selection, done: Done, waiting: int | None) -> Answer:
    count = len(done.letters)
    answer = kind(0, [], done.more, count) if selection.dry_run else kind(count, done.letters, done.more)
    answer.waiting_for_transaction = waiting
    return answer


async def _perform(action: Action, selection: Selection) -> tuple[Done, int | None]:
    """Apply an action to what is selected of each stream; return also how many letters wait behind transactions."""
    letters = [one.redriver.letters for one in selection.streams.values()]
    counting = (each.waiting_if_known(selection.only.partition) for each in letters)
    done, waiting = await asyncio.gather(_perform_all(action, selection), asyncio.gather(*counting))
    return done, None if None in waiting else sum(filter(None, waiting))


async def _perform_all(action: Action, selection: Selection) -> Done:
    streams, act = selection.streams, _count if selection.dry_run else _change
    performed = (act(action, name, one, selection) for name, one in streams.items())
    results = await asyncio.gather(*performed, return_exceptions=True)
    done = [result for result in results if isinstance(result, Done)]
    letters = [letter for result in done for letter in result.letters]
    for name, result in zip(streams, results, strict=True):
        if isinstance(result, BaseException):
            changed = 0 if selection.dry_run else len(letters)
            raise of_one_stream(action, name, result, changed) if len(results) > 1 else result
    return Done(letters, any(result.more for result in done), sum(result.deleted for result in done))


def of_one_stream(action: Action, name: str, error: BaseException, changed: int) -> BaseException:
    """Return the error of one of several streams; it says how many letters of the others the action changed."""
    elsewhere = f"; of other streams {changed} dead letters were {action.done}"
    if isinstance(error, RedriveRefused):
        return type(error)(f"{name}: {error}{elsewhere}")
    if changed and isinstance(error, KAFKA_ERRORS):
        return RedriveNotNow(f"{name}: {one_line(error)}{elsewhere}")
    return error


async def _count(action: Action, _: str, one: StreamConsumer, selection: Selection) -> Done:
    """Return to which dead letters of a stream an action would be applied."""
    match selection.choice:
        case Choice(limit=int(limit), partition=None, offset=None):
            return await one.redriver.count(action, limit, selection.only)
    raise bad_parameter("dry_run", "only with `limit`")


async def _change(action: Action, name: str, one: StreamConsumer, selection: Selection) -> Done:
    """Apply an action to dead letters of a stream."""
    match selection.choice:
        case Choice(limit=int(limit), partition=None, offset=None):
            done = await one.redriver.perform(action, limit, selection.only)
        case Choice(limit=None, partition=int(partition), offset=int(offset)) if selection.only == Filter():
            done = await one.redriver.perform_one(action, partition, offset)
        case _:
            raise bad_body("give either `limit`, or `partition` and `offset` without filters")
    count, details = len(done.letters), {"action": str(action), "stream": name}
    log.info("an operator asked for %s of %s: %d were %s", action, name, count, action.done, extra=details)
    return done._replace(letters=[msgspec.structs.replace(letter, stream=name) for letter in done.letters])
