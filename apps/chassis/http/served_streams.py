"""The streams that an instance serves, as dependencies of routes: all of them, or those that a call names."""

from collections.abc import Mapping
from typing import Annotated, Any

from litestar.di import Provide
from litestar.params import Parameter

from apps.chassis.http.problems import bad_parameter


def stream_dependencies(served: Mapping[str, Any]) -> dict[str, Provide]:
    """Return what routes may ask for by the name of an argument, annotated as `SkipValidation[...]`.

    `served` is what the service runs for each stream, by name. `served_stream` is the part of the stream that the call
    names, by default of the first. `served_streams` are the named part alone, or all, by name.
    """
    names = {"enum": [*served]}

    async def provide_served() -> Mapping[str, Any]:
        return served

    async def served_stream(
        stream: Annotated[
            str | None, Parameter(schema_extra=names, description="The stream; by default the first one.")
        ] = None,
    ) -> Any:  # noqa: ANN401 - what the service runs for it
        return _part_of(served, next(iter(served)) if stream is None else stream)

    async def served_streams(
        stream: Annotated[
            str | None, Parameter(schema_extra=names, description="The stream; by default all of them.")
        ] = None,
    ) -> Mapping[str, Any]:
        return served if stream is None else {stream: _part_of(served, stream)}

    return {
        "served": Provide(provide_served),
        "served_stream": Provide(served_stream),
        "served_streams": Provide(served_streams),
    }


def _part_of(served: Mapping[str, Any], stream: str) -> Any:  # noqa: ANN401 - likewise
    if stream not in served:
        raise bad_parameter("stream", f"expected one of {', '.join(served)}, got {stream[:40]!r}")
    return served[stream]
