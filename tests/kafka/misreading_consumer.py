"""The recording consumer, to which the 150th batch that it reads comes damaged, once; started by a test."""

from functools import partial
from itertools import count
from typing import Any

from recording_consumer import handle

from apps.chassis.serve import serve
from apps.consumer import header_names
from apps.consumer.app import create_app

DAMAGED = 150
batches = count(1)


class Damaged(header_names.TolerantBatch):
    """A batch whose checksum may be wrong."""

    def __init__(self, batch: Any, fetched: bytes, number: int) -> None:  # noqa: ANN401 - aiokafka ships no types
        super().__init__(batch, fetched, number)
        if next(batches) == DAMAGED:
            self.validate_crc = lambda: False


if __name__ == "__main__":
    header_names.TolerantBatch = Damaged  # type: ignore[misc]
    serve(partial(create_app, handle=handle), lambda settings: settings.consumer_port, "CONSUMER_PORT")
