"""Answer `GET /livez` on a separate port from a thread, even while the event loop is blocked.

A loop that is blocked for ever needs a restart; a block of some seconds does not. On the service's own port a probe
could not distinguish them.
"""

import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from apps.chassis.loop_watch import LoopWatch

DEAD_AFTER_S = 30.0
"""Seconds without a turn of the event loop after which the process counts as dead."""
CALLER_S = 5.0
"""Seconds that a caller may take to send a request, or to read its answer."""


class LivenessServer(ThreadingHTTPServer):
    """Answers 200 if the event loop turned within the last 30 s, else 503."""

    def __init__(self, listening: socket.socket, watch: LoopWatch, dead_after_s: float = DEAD_AFTER_S) -> None:
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self._watch = watch
        self._dead_after_s = dead_after_s

    def start(self) -> None:
        """Serve until the process ends."""
        threading.Thread(target=self.serve_forever, name="liveness", daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing: probes may reset their connections, and each would write a traceback."""

    def answer(self) -> tuple[HTTPStatus, bytes]:
        """Return the status and the body of an answer, which depend on the loop."""
        silent_s = self._watch.without_turn_s
        if silent_s > self._dead_after_s:
            return HTTPStatus.SERVICE_UNAVAILABLE, b'{"status":"blocked","seconds":%d}' % silent_s
        return HTTPStatus.OK, b'{"status":"alive"}'


class _Handler(BaseHTTPRequestHandler):
    timeout = CALLER_S
    server: LivenessServer

    def do_GET(self) -> None:
        known = self.path.partition("?")[0] == "/livez"
        status, body = self.server.answer() if known else (HTTPStatus.NOT_FOUND, b'{"status":"unknown path"}')
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Log nothing: probes ask every few seconds."""
