"""Allow as many open files as the system permits, and fewer waiting connections where that is not many."""

import logging
import sys

if sys.platform != "win32":
    import resource

log = logging.getLogger(__name__)

ENOUGH = 10_000
"""Open files for 2,000 connections without a request, 2,000 readers, 500 calls, their spools, and Kafka's."""


def permitted() -> int:
    """Return how many files this process may open at most."""
    if sys.platform == "win32":  # it has no such limit
        return ENOUGH
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return ENOUGH if hard == resource.RLIM_INFINITY else hard


def fewer_where_files_are_few(connections: int) -> int:
    """Return how many connections of one kind may be open: `connections`, or a fifth of all files where that is less.

    An event loop that has no file left for a connection tries to accept it again and again, and answers nobody.
    """
    return min(connections, permitted() // 5)


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard one, and warn where that is too low for all connections."""
    if sys.platform != "win32":
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if permitted() < ENOUGH:
        log.warning("only %d files may be open, of each kind of connections a fifth: raise `ulimit -n`", permitted())
