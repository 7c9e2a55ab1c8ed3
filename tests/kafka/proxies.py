"""Runs a real nginx in front of a service, with its own defaults and nothing of the machine's configuration."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from services import wait_until

from tools.ports import free_ports

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
STARTED_WITHIN_S = 20.0
DEPLOY = Path(__file__).parents[2] / "docs" / "how-to" / "deploy.md"
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
"""What nginx keeps in temporary folders, which it would otherwise create where only root may."""


def documented_location(prefix: str, port: int) -> str:
    """Return the location block of the documents that strips a path prefix, for a service on a port."""
    (block,) = re.findall(r"```nginx\n(.*?)```", DEPLOY.read_text(), re.DOTALL)
    return str(block).replace("/kafka/consumer", prefix).replace(":8001", f":{port}")


@contextmanager
def nginx(folder: Path, locations: str, *, server: str = "", http: str = "") -> Iterator[int]:
    """Run nginx on a free loopback port, which is yielded; its files and its log are in `folder`.

    `locations` are its location blocks; `server` and `http` are further directives for the blocks of these names. Skips
    the test where there is no nginx, and fails it where CI runs.
    """
    port = free_ports(1)[0]
    configuration = _configuration(folder, port, locations, server, http)
    log = folder / "nginx.log"
    with log.open("wb") as output:
        command = [_nginx(), "-p", str(folder), "-c", str(configuration), "-e", "stderr"]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_for(process, port, log)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _nginx() -> str:
    if NGINX:
        return NGINX
    reason = "there is no nginx on this machine"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _configuration(folder: Path, port: int, locations: str, server: str, http: str) -> Path:
    folders = "\n".join(f"{kind}_temp_path {folder / kind};" for kind in TEMPORARY)
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"""
        daemon off;
        master_process off;  # one process, which one signal ends
        pid {folder / "nginx.pid"};
        error_log stderr warn;
        events {{}}
        http {{
            access_log off;
            {folders}
            {http}
            server {{
                listen 127.0.0.1:{port};
                {server}
                {locations}
            }}
        }}
        """
    )
    return configuration


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    def listens() -> bool:
        assert process.poll() is None, f"nginx has ended: {log.read_text()}"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    wait_until(listens, STARTED_WITHIN_S, "for nginx to listen")
