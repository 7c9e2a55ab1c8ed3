"""Run the recording consumer; each look at its topic adds `begin` and `end` to the file LOOKS."""

import os
from functools import partial
from pathlib import Path

from recording_consumer import handle, write

from apps.chassis.service import serve
from apps.consumer.app import create_app
from apps.consumer.operating.control import Control
from contracts.person import PEOPLE

look = Control.leave_deleted_topic


async def look_and_tell(control: Control) -> dict[int, tuple[int, int]]:
    looks = Path(os.environ["LOOKS"])
    write(looks, "begin\n")
    try:
        return await look(control)
    finally:
        write(looks, "end\n")


if __name__ == "__main__":
    Control.leave_deleted_topic = look_and_tell  # type: ignore[method-assign,assignment]  # so that a test can wait for it
    serve(partial(create_app, handlers={PEOPLE: handle}), lambda settings: settings.consumer_port, "CONSUMER_PORT")
