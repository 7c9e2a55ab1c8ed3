"""The stack of another thread, to say which call blocks the event loop: a PROTECTION.

Reaches for `sys._current_frames`. Python documents it in spite of its name, and offers no other way to the stack of
another thread. Lost without it: the log cannot say which call blocks the loop.
"""

import sys
import traceback
from pathlib import Path

REACHES = ("sys:_current_frames",)

MAX_FRAMES = 12
"""Most frames of the blocking stack that are logged."""


def stack_of_thread(thread: int) -> str:
    """Return the stack of a thread in one line, the innermost call first. It has places in the code, and no values."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "a thread that has ended"
    calls = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=MAX_FRAMES, lookup_lines=False)
    return " < ".join(f"{_short(call.filename)}:{call.lineno} {call.name}" for call in calls)


def _short(filename: str) -> str:
    return "/".join(Path(filename).parts[-3:])
