"""`just postgres` starts a PostgreSQL, and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest
from services import ROOT, wait_until

from tools.local_postgres import usable_programs

pytestmark = pytest.mark.skipif(usable_programs() is None, reason="no PostgreSQL server")


def test_it_answers_at_the_address_that_it_prints_and_ends_without_an_orphan() -> None:
    command = [sys.executable, "-m", "tools.local_postgres"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as tool:
        try:
            assert tool.stdout is not None
            assert tool.stdout.readline().startswith("PostgreSQL is ready")
            address = tool.stdout.readline().strip().removeprefix("DATABASE_URL=")
            with psycopg.connect(address) as connection:
                folder = Path(connection.execute("SHOW data_directory").fetchall()[0][0])
            processes = psutil.Process(tool.pid).children(recursive=True)
            assert processes
            tool.terminate()
            assert tool.wait(20) == 0
        finally:
            tool.kill()
    wait_until(lambda: not any(one.is_running() for one in processes), what="for its processes to end")
    assert not folder.parent.exists()
