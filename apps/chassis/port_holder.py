"""Which process listens on a port of this machine."""

from contextlib import suppress


def holder_of(port: int) -> str | None:
    """Return the name and id of the process that listens on a port; None where that is unknown, or psutil missing."""
    with suppress(ImportError):
        import psutil  # noqa: PLC0415 - the commands on a laptop have it, and production goes without

        with suppress(psutil.Error, OSError):
            for at in psutil.net_connections("tcp"):
                if at.status == psutil.CONN_LISTEN and at.laddr.port == port and at.pid is not None:
                    return f"{psutil.Process(at.pid).name()} (process {at.pid})"
    return None
