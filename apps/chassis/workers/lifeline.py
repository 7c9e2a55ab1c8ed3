"""End a process with the one that holds its standard input."""

import os
import signal
import threading
from contextlib import suppress


def end_with_input() -> None:
    """Send SIGTERM to this process when its standard input ends, as it does with the process that holds it."""

    def wait() -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="lifeline").start()
