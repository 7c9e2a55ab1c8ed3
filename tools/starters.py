"""End a command with the `uv` and `just` that run it: when those are killed, they end without their command."""

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
    """Send SIGTERM to this process when a `uv` or `just` that started it has ended."""
    if starters := starters_of(psutil.Process()):
        threading.Thread(target=_watch, args=(starters,), daemon=True, name="starters").start()


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


def _watch(starters: Sequence[psutil.Process]) -> None:
    while all(map(_runs, starters)):
        time.sleep(LOOK_AGAIN_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
