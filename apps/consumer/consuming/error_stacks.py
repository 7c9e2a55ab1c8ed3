"""Keep the stack of a handler's error for its dead letter, without the frames: they hold the values of the batch."""

import traceback
from functools import lru_cache
from itertools import dropwhile
from pathlib import Path
from types import TracebackType

MAX_FRAMES = 30
"""Innermost frames of each error that are kept."""
MAX_STACK_CHARACTERS = 4_000
"""Characters of a stack; the middle of a longer one is left out."""
MAX_MESSAGE_CHARACTERS = 300
"""Characters of the message of each error in a stack."""
CACHED_TEXTS = 256
"""Texts that are kept: most failing records meet one of few errors."""
CALLERS = str(Path(__file__).parent)
"""Where the code is that calls handlers: its outer frames are left out."""

Frames = tuple[tuple[str, int, str], ...]
"""For each call a file, a line in it, and a function."""
Stack = tuple[tuple[Frames, type[BaseException], str], ...]
"""The frames, the type and the message of each error of a chain, the first of them first."""


def keep_stack(error: BaseException) -> Stack:
    """Return what `stack_text` needs of an error and its causes."""
    cause = error.__cause__
    kept = _frames_of(error.__traceback__), type(error), str(error)[:MAX_MESSAGE_CHARACTERS]
    return (kept,) if cause is None else (*keep_stack(cause), kept)


def stack_text(stack: Stack) -> str | None:
    """Return a stack as Python prints it, None when no error of it was raised."""
    if not any(frames for frames, _, _ in stack):
        return None
    text = "".join(f"{_text_of(frames)}{_name_of(kind)}: {message}\n" for frames, kind, message in stack)
    if len(text) > MAX_STACK_CHARACTERS:
        half = MAX_STACK_CHARACTERS // 2
        text = f"{text[:half]}\n…\n{text[-half:]}"
    return text


def _frames_of(trace: TracebackType | None) -> Frames:
    frames = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append((code.co_filename, trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    return _shared(tuple(frames[-MAX_FRAMES:]))


@lru_cache(CACHED_TEXTS)
def _shared(frames: Frames) -> Frames:
    """Return frames without those of our code; equal ones take memory once."""
    return tuple(dropwhile(lambda frame: frame[0].startswith(CALLERS), frames))


@lru_cache(CACHED_TEXTS)
def _text_of(frames: Frames) -> str:
    if not frames:
        return ""
    lines = traceback.StackSummary.from_list([(file, line, name, None) for file, line, name in frames]).format()
    return "Traceback (most recent call last):\n" + "".join(lines)


def _name_of(kind: type[BaseException]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
