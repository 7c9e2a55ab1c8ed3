"""The recording consumer, to which the 150th batch that it reads comes damaged, once; started by a test."""

from itertools import count
from typing import Any

from apps.chassis.internals import record_fetching
from apps.chassis.internals.fetched_batches import Fetched
from tests.event_services import run_consumer
from tests.handlers import recording

DAMAGED = 150
batches = count(1)


class Damaged:
    """A batch whose checksum is wrong; everything else of it is as it was."""

    def __init__(self, batch: Any) -> None:  # noqa: ANN401 - aiokafka ships no types
        self._batch = batch

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all that a batch has
        return getattr(self._batch, name)

    def validate_crc(self) -> bool:
        return False


class Misread(Fetched):
    """What was fetched, in which one batch comes damaged."""

    def next_batch(self) -> Any:  # noqa: ANN401 - aiokafka ships no types
        batch = super().next_batch()
        return Damaged(batch) if next(batches) == DAMAGED else batch


if __name__ == "__main__":
    record_fetching.Fetched = Misread  # type: ignore[attr-defined]  # in place of the class that it imports
    run_consumer(recording)
