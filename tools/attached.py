"""End a process with the one that started it, however that ends: by Ctrl-C, a closed terminal, SIGTERM or SIGKILL.

`Attached` starts a module that ends with this process.
"""

import runpy
import signal
import subprocess
import sys
from typing import Any

from apps.chassis.workers.lifeline import end_with_input


class Attached(subprocess.Popen[bytes]):
    """A Python module in a child process that gets SIGTERM when this process ends.

    Its standard input is what it watches: the other end is open as long as this process lives.
    """

    def __init__(self, module: str, *arguments: str, **options: Any) -> None:  # noqa: ANN401 - as `Popen` takes them
        command = [sys.executable, "-m", "tools.attached", module, *arguments]
        super().__init__(command, stdin=subprocess.PIPE, **options)
        self._lifeline, self.stdin = self.stdin, None  # `communicate` would close it


def end_at_signals(*names: str) -> None:
    """Raise `KeyboardInterrupt` at the first of these signals, as Ctrl-C does, unless they are ignored (`nohup`).

    Those that follow are ignored: they would interrupt the clearing up.
    """
    handled = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has no SIGHUP

    def interrupt(*_: object) -> None:
        for number in handled:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in handled:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def main() -> None:
    """Run a module as `python -m` does, and end when the standard input does."""
    end_with_input()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
