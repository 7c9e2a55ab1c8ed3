"""Calls a service of this machine and prints its answer: `python -m tools.call producer GET /health-check`.

Prints formatted JSON on standard output, of a list the last three values. An answer of 400 and above, or none at all,
is printed on standard error and ends with status 1.
"""

import json
import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TextIO

from apps.chassis.http.api_keys import HEADER
from apps.chassis.observability.logs import one_line
from apps.chassis.setting_reading import read_settings
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings

TIMEOUT = 120.0
"""Seconds; making 100,000 people takes one or two."""
SHOWN = 3
"""Values of a list that are printed: 100 people would take 1,200 lines."""


def main(service: str, method: str, target: str) -> int:
    """Make one call, and return the exit status."""
    try:
        settings = read_settings(os.environ)
    except WrongSetting as error:
        print(error, file=sys.stderr)
        return 1
    port = _port_of(service, settings)
    connection = _connection_to(settings, port)
    try:
        connection.request(method, target, headers=_key_of(settings))
        answer = connection.getresponse()
        text = _formatted(answer.read())
    except (OSError, HTTPException) as error:
        print(f"the {service} does not answer on port {port} ({one_line(error)}): is it running?", file=sys.stderr)
        return 1
    failed = answer.status >= 400  # noqa: PLR2004 - HTTP's own line between success and error
    _write(text, sys.stderr if failed else sys.stdout)
    return int(failed)


def _connection_to(settings: Settings, port: int) -> HTTPConnection:
    """Return a connection to the service; with TLS it must show the certificate of the settings."""
    host = _reachable(settings.host)
    if not settings.ssl_certfile:
        return HTTPConnection(host, port, timeout=TIMEOUT)
    context = ssl.create_default_context(cafile=settings.ssl_certfile)
    context.check_hostname = False  # it is called by its address
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trust this certificate itself, not only its authority
    return HTTPSConnection(host, port, timeout=TIMEOUT, context=context)


def _write(text: str, output: TextIO) -> None:
    try:
        print(text, file=output, flush=True)
    except BrokenPipeError:  # the reader has seen enough, like `head`; the interpreter flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())


def _port_of(service: str, settings: Settings) -> int:
    return settings.producer_port if service == "producer" else settings.consumer_port


def _key_of(settings: Settings) -> dict[str, str]:
    """Return the header with the first key of the settings, if there is any."""
    first = next(iter(settings.api_keys.current.values()), None)
    return {} if first is None else {HEADER: first.secret}


def _reachable(host: str) -> str:
    """Return the address to call for the one that is listened on."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound


def _formatted(body: bytes) -> str:
    try:
        value = json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
    if isinstance(value, list) and len(value) > SHOWN:
        print(f"the last {SHOWN} of {len(value):,}:", file=sys.stderr)
        value = value[-SHOWN:]
    return json.dumps(value, indent=2, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
