"""Run the consumer for events and for orders, whose handler fails while the file FAILING is there."""

import os
from functools import partial
from pathlib import Path

import msgspec

from apps.chassis.service import serve
from apps.consumer.app import create_app
from apps.consumer.consuming.batch import Batch
from contracts.stream import Stream
from tests.event import EVENTS


class Order(msgspec.Struct):
    order_id: str


ORDERS = Stream("orders", Order, key=lambda order: order.order_id)
STREAMS = (EVENTS, ORDERS)


async def handle(_: Batch[Order]) -> None:
    if Path(os.environ["FAILING"]).exists():  # noqa: ASYNC240 - no file system that tests run on waits
        raise ConnectionError("no database")


if __name__ == "__main__":
    two = partial(create_app, streams=STREAMS, handlers={ORDERS: handle})
    serve(two, "consumer", STREAMS)
