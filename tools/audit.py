"""Asks the OSV database what is known against the packages of requirements.lock: `just audit`.

What it found, or that nothing was audited, is printed and written to dist/audit.txt.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

LOCK = Path(__file__).parents[1] / "requirements.lock"
RESULT = LOCK.parent / "dist" / "audit.txt"
CLEAN, FOUND, NOT_RUN = 0, 1, 3
"""Exit statuses."""


class Advisory(msgspec.Struct):
    """What is known against a package, and which versions are free of it."""

    id: str
    fix_versions: list[str] = []


class Package(msgspec.Struct):
    """A package in the output of `pip-audit --format json`: audited, or skipped for a reason."""

    name: str
    version: str = ""
    vulns: list[Advisory] = []
    skip_reason: str | None = None


class Report(msgspec.Struct):
    """What `pip-audit --format json` prints."""

    dependencies: list[Package]


def verdict(report: Report) -> tuple[int, list[str]]:
    """Return the exit status and what to print: a package that could not be asked about is not a clean one."""
    found = [
        f"{package.name} {package.version}: {known.id}, fixed in {', '.join(known.fix_versions) or 'no version yet'}"
        for package in report.dependencies
        for known in package.vulns
    ]
    passed_over = [package.name for package in report.dependencies if package.skip_reason is not None]
    asked = len(report.dependencies) - len(passed_over)
    if passed_over:
        found.append(f"not audited: {', '.join(passed_over)}")
    if any(package.vulns for package in report.dependencies):
        return FOUND, found
    if passed_over or not asked:
        return NOT_RUN, [*found, f"THE AUDIT WAS NOT RUN IN FULL: {asked} of {len(report.dependencies)} packages"]
    return CLEAN, [f"nothing is known against the {asked} packages of {LOCK.name}"]


def ask() -> Report | str:
    """Ask the database; return why it did not answer when it did not."""
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--format", "json"]
    options = ["--progress-spinner", "off", "--disable-pip", "--require-hashes", "--requirement", str(LOCK)]
    asked = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    try:
        return msgspec.json.decode(asked.stdout, type=Report)
    except msgspec.DecodeError:
        return (asked.stderr.strip().splitlines() or ["no answer"])[-1]


def main(ask: Callable[[], Report | str] = ask, result: Path = RESULT) -> None:
    """End with 0 when nothing is known, 1 when something is, 3 when not all could be asked about."""
    answer = ask()
    status, lines = (
        (NOT_RUN, [f"THE AUDIT WAS NOT RUN, nothing was audited: {answer}"])
        if isinstance(answer, str)
        else verdict(answer)
    )
    print(*lines, sep="\n")
    result.parent.mkdir(exist_ok=True)
    result.write_text("\n".join(lines) + "\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
