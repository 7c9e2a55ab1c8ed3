"""Run the recording consumer; each look at its topic adds `begin` and `end` to the file LOOKS."""

from apps.consumer.operating.control import Control
from tests.event_services import run_consumer
from tests.handlers import append, recording

look = Control.leave_deleted_topic


async def look_and_tell(control: Control) -> dict[int, tuple[int, int]]:
    append("LOOKS", "begin\n")
    try:
        return await look(control)
    finally:
        append("LOOKS", "end\n")


if __name__ == "__main__":
    Control.leave_deleted_topic = look_and_tell  # type: ignore[method-assign,assignment]  # so that a test can wait for it
    run_consumer(recording)
