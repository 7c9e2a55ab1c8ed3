"""The recording consumer, to which the 150th batch that it reads comes damaged, once; started by a test."""

from functools import partial
from itertools import count
from typing import Any

from recording_consumer import handle

from apps.chassis.internals import record_fetching as fetched
from apps.chassis.service import serve
from apps.consumer.app import create_app
from contracts.person import PEOPLE

DAMAGED = 150
batches = count(1)


class Damaged:
    """A batch whose checksum is wrong; everything else of it is as it was."""

    def __init__(self, batch: Any) -> None:  # noqa: ANN401 - aiokafka ships no types
        self._batch = batch

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a batch has
        return getattr(self._batch, name)

    def validate_crc(self) -> bool:
        return False


class Misread(fetched.Fetched):
    """What was fetched, in which one batch comes damaged."""

    def next_batch(self) -> Any:  # noqa: ANN401 - aiokafka ships no types
        batch = super().next_batch()
        return Damaged(batch) if next(batches) == DAMAGED else batch


if __name__ == "__main__":
    fetched.Fetched = Misread  # type: ignore[misc]
    serve(partial(create_app, handlers={PEOPLE: handle}), lambda settings: settings.consumer_port, "CONSUMER_PORT")
