"""TLS at the service itself; a certificate that is renewed is used without a restart."""

import logging
import ssl
from pathlib import Path
from typing import Any, Self

from apps.chassis.http.watched_file import state_of
from apps.chassis.kafka.security import Unreadable, load_own
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings

log = logging.getLogger(__name__)

PREFIX = "SSL"
"""What the names of the variables begin with."""


class ServerTls(ssl.SSLContext):
    """Serves TLS 1.2 or newer. Raises `Unreadable` for a missing or invalid file.

    Each connection looks whether the files have changed. Ones that are invalid, like a new certificate whose key is
    still the old one, change nothing and are logged.
    """

    def __new__(cls, *_: str) -> Self:
        """Return a context for servers."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certfile: str, keyfile: str) -> None:
        self._files = certfile, keyfile
        self.minimum_version = ssl.TLSVersion.TLSv1_2
        self._seen = self._state()
        load_own(self, PREFIX, *self._files)

    def wrap_bio(self, *arguments: Any, **more: Any) -> ssl.SSLObject:  # noqa: ANN401 - the signature of the library
        """Begin a connection, as asyncio and uvloop do."""
        if (state := self._state()) != self._seen:
            self._seen = state
            try:
                load_own(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), PREFIX, *self._files)  # a failure here harms nothing
                load_own(self, PREFIX, *self._files)
            except Unreadable as error:
                log.error("the certificate read before stays in use: %s", error)  # noqa: TRY400 - one line says it
            else:
                log.info("a renewed certificate is in use")
        return super().wrap_bio(*arguments, **more)

    def _state(self) -> object:
        try:
            return [state_of(Path(file)) for file in self._files if file]
        except OSError as error:
            return str(error)


def server_tls(settings: Settings) -> ServerTls | None:
    """Return the TLS of a service, None without a certificate. Raises `WrongSetting` for a wrong file."""
    if not settings.ssl_certfile:
        return None
    try:
        return ServerTls(settings.ssl_certfile, settings.ssl_keyfile)
    except Unreadable as error:
        raise WrongSetting(str(error)) from None
