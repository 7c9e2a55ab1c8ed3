"""End a command with its terminal, and with the `uv` and `just` that run it.

When those are killed they end without their command, and of a terminal that is closed they tell it nothing.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

STARTERS = {"uv", "just"}
SHELLS = {"sh", "bash", "dash"}
"""`just` runs its lines by one of them."""
LOOK_AGAIN_S = 0.2


def end_with_starters() -> None:
    """Send SIGTERM to this process when its terminal is closed, or a `uv` or `just` that started it has ended."""
    starters, on_terminal = starters_of(psutil.Process()), os.isatty(0)
    if starters or on_terminal:
        threading.Thread(target=_watch, args=(starters, on_terminal), daemon=True, name="starters").start()


def starters_of(process: psutil.Process) -> Sequence[psutil.Process]:
    """Return the processes above it up to the outermost `uv` or `just`, none where somebody else started it."""
    chain: list[psutil.Process] = []
    found = 0
    for parent in process.parents():
        name = _name_of(parent)
        if name not in STARTERS | SHELLS:
            break
        chain.append(parent)
        if name in STARTERS:
            found = len(chain)
    return chain[:found]


def _name_of(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return str(process.name()).removesuffix(".exe")
    return ""


def _watch(starters: Sequence[psutil.Process], on_terminal: bool) -> None:  # noqa: FBT001 - a thread is given it
    while all(map(_runs, starters)) and os.isatty(0) >= on_terminal:
        time.sleep(LOOK_AGAIN_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
