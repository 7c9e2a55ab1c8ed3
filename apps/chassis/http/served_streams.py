"""The streams that an instance serves, and what a call means that names one of them, or none."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Generic, TypeVar

from litestar.di import Provide
from litestar.params import Parameter, SkipValidation

from apps.chassis.http.problems import bad_parameter
from contracts import STREAMS

T_co = TypeVar("T_co", covariant=True)

NAMES = {"enum": [stream.name for stream in STREAMS]}
OneStream = Annotated[str | None, Parameter(schema_extra=NAMES, description="The stream; by default the first one.")]
"""The parameter `stream` of a call that reads."""
SomeStreams = Annotated[str | None, Parameter(schema_extra=NAMES, description="The stream; by default all of them.")]
"""The parameter `stream` of a call that changes something, or concerns all of them."""


class Served(Generic[T_co]):
    """What a service has of each stream, by its name; at least of one."""

    def __init__(self, by_name: Mapping[str, T_co]) -> None:
        self._by_name = by_name

    def __iter__(self) -> Iterator[T_co]:
        return iter(self._by_name.values())

    def get(self, name: str | None) -> T_co | None:
        """Return what belongs to a stream, by default the first; None for an unknown name."""
        return next(iter(self)) if name is None else self._by_name.get(name)

    def one(self, name: str | None) -> T_co:
        """Return what belongs to a stream, by default the first. Raises 400 for an unknown name."""
        found = self.get(name)
        if found is None:
            raise bad_parameter("stream", f"expected one of {', '.join(self._by_name)}, not {str(name)[:40]!r}")
        return found

    def some(self, name: str | None) -> Mapping[str, T_co]:
        """Return what belongs to a stream, by default all of them. Raises 400 for an unknown name."""
        return self._by_name if name is None else {name: self.one(name)}


async def _one(served: SkipValidation[Any], stream: OneStream = None) -> Any:  # noqa: ANN401 - a `Served` of any type
    return served.one(stream)


async def _some(served: SkipValidation[Any], stream: SomeStreams = None) -> Any:  # noqa: ANN401 - likewise
    return served.some(stream)


def stream_dependencies(served: Served[Any]) -> dict[str, Provide]:
    """Return what routes may ask for by the name of an argument.

    `served` is the `Served` of the service. `served_stream` is the item of the parameter `stream`, by default the
    first; `served_streams` are the items by name, by default all. Annotate each as `SkipValidation[...]`.
    """

    async def provide_served() -> Served[Any]:
        return served

    return {"served": Provide(provide_served), "served_stream": Provide(_one), "served_streams": Provide(_some)}
