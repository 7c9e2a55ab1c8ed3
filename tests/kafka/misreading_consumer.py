"""The recording consumer, to which the 150th batch that it reads comes damaged, once; started by a test."""

from functools import partial
from itertools import count

from recording_consumer import handle

from apps.chassis.serve import serve
from apps.consumer import header_names
from apps.consumer.app import create_app

DAMAGED = 150
batches = count(1)


class Damaged(header_names.TolerantBatch):
    """A batch whose checksum may be wrong."""

    def validate_crc(self) -> bool:
        """Tell whether it came as it was written."""
        return next(batches) != DAMAGED and bool(self._batch.validate_crc())


if __name__ == "__main__":
    header_names.TolerantBatch = Damaged  # type: ignore[misc]
    serve(partial(create_app, handle=handle), lambda settings: settings.consumer_port, "CONSUMER_PORT")
