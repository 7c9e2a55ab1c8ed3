import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.audit import CLEAN, FOUND, NOT_RUN, Advisory, Package, Report, main, verdict

GOOD = Package("msgspec", "0.22.0")
BAD = Package("numpy", "2.4.0", [Advisory("PYSEC-1", ["2.4.1", "2.5"]), Advisory("PYSEC-2")])
UNKNOWN = Package("anyio", skip_reason="not found")


def test_packages_against_which_nothing_is_known_pass() -> None:
    assert verdict(Report([GOOD])) == (CLEAN, ["nothing is known against the 1 packages of requirements.lock"])


def test_whatever_is_known_fails_and_says_what_would_help() -> None:
    status, lines = verdict(Report([GOOD, BAD, UNKNOWN]))
    assert status == FOUND
    assert lines == [
        "numpy 2.4.0: PYSEC-1, fixed in 2.4.1, 2.5",
        "numpy 2.4.0: PYSEC-2, fixed in no version yet",
        "not audited: anyio",
    ]


def test_a_package_that_could_not_be_asked_about_does_not_pass_for_a_clean_one() -> None:
    status, lines = verdict(Report([GOOD, UNKNOWN]))
    assert status == NOT_RUN
    assert lines == ["not audited: anyio", "THE AUDIT WAS NOT RUN IN FULL: 1 of 2 packages"]
    assert verdict(Report([]))[0] == NOT_RUN


def test_where_no_database_is_reached_the_printed_lines_and_the_file_say_that_nothing_was_audited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "dist" / "audit.txt"
    with pytest.raises(SystemExit) as ended:
        main(lambda: "no route to host", result)
    reported = result.read_text()
    assert (ended.value.code, reported) == (NOT_RUN, capsys.readouterr().out)
    assert reported == "THE AUDIT WAS NOT RUN, nothing was audited: no route to host\n"


def test_a_run_of_tests_ends_with_what_was_not_audited_and_its_own_closing_line(tmp_path: Path) -> None:
    reported = tmp_path / "audit.txt"
    reported.write_text("THE AUDIT WAS NOT RUN\n")
    plugins = [
        f"-pno:{name}" for name in ("xdist", "schemathesis", "hypothesispytest", "anyio")
    ]  # they take their time
    command = [sys.executable, "-m", "pytest", "--collect-only", *plugins, __file__, "-k", "known_fails"]
    run = subprocess.run(
        command, env=os.environ | {"NOT_AUDITED": str(reported)}, capture_output=True, text=True, check=False
    )
    *_, section, line, closing = run.stdout.splitlines()
    assert "NOT AUDITED" in section
    assert line == "THE AUDIT WAS NOT RUN"
    assert "collected" in closing
