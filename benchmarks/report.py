"""Figures as Markdown tables, and the machine that they come from."""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.measures import Series
from tools.kafka_distribution import KAFKA_VERSION

BEGIN, END = "<!-- figures of {} -->", "<!-- end of figures of {} -->"


class Row(NamedTuple):
    """One line of the table; `met` only where there is a target."""

    measured: str
    service: str
    yardstick: str
    result: str
    target: str = ""
    met: str = ""


HEADINGS = Row("measured", "service", "yardstick", "result", "target", "met")
HEADLINES = (
    "measured",
    "`basic_producer`",
    "memory of the producer, at most",
    "people posted one by one",
    "consuming",
    "until visible, p99",
)
"""How the rows begin that the first page shows."""


def compared(name: str, service: Series, yardstick: Series, least: float) -> list[Row]:
    """Return the rates and what a record costs; the result is the ratio of the rates, round by round.

    What disturbed a round disturbed both.
    """
    ratios = [a / b for a, b in zip(service.rates, yardstick.rates, strict=True)]
    return [
        Row(
            f"{name}, records/s",
            spread(service.rates, "{:,.0f}"),
            spread(yardstick.rates, "{:,.0f}"),
            spread(ratios, "{:.2f}"),
            f"at least {least:g}",
            _met(median(ratios) >= least),
        ),
        Row("its CPU a record, µs", spread(service.cpu, "{:.1f}"), spread(yardstick.cpu, "{:.1f}"), ""),
    ]


def bounded(name: str, values: Sequence[float], most: float | None, unit: str) -> Row:
    """Return a figure that must stay under `most`."""
    result = f"{spread(values, '{:.1f}')} {unit}"
    if most is None:
        return Row(name, "", "", result)
    return Row(name, "", "", result, f"under {most:g} {unit}", _met(median(values) < most))


def delayed(name: str, service: Sequence[float], yardstick: Sequence[float], most: float) -> Row:
    """Return times in milliseconds; the result is their ratio, round by round, which must be at most `most`."""
    ratios = [a / b for a, b in zip(service, yardstick, strict=True)]
    times = spread(service, "{:.1f}"), spread(yardstick, "{:.1f}")
    return Row(f"{name}, ms", *times, spread(ratios, "{:.2f}"), f"at most {most:g}", _met(median(ratios) <= most))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that is also easy to read as it is; the first row has the headings."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in rows]
    aligned.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(aligned)


def spread(values: Sequence[float], form: str) -> str:
    """Return the median, and the least and the most where there are several."""
    middle = form.format(median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({form.format(min(values))} to {form.format(max(values))})"


def headlines(rows: Sequence[Row]) -> str:
    """Return the rows for the first page, without the figures that depend on the machine most."""
    chosen = [row for row in rows if row.measured.startswith(HEADLINES)]
    return table(
        [
            (row.measured.removesuffix(", records/s").removesuffix(", ms"), row.result, row.target, row.met)
            for row in chosen
        ]
    )


def commit() -> str:
    """Return what is measured: the commit, with `-dirty` where files differ from it; `unknown` without git."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    asked = [git, "describe", "--always", "--dirty"]
    reported = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return reported.stdout.strip() or "unknown"


def machine() -> str:
    """Return what was measured and on what, in one line."""
    return (
        f"Commit {commit()}, "
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}, Apache Kafka {KAFKA_VERSION}, "
        "one broker, and all callers, on the same machine"
    )


def load() -> str:
    """Return how busy the machine was over the last minute, as `uptime` counts it."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def put_into(page: Path, name: str, figures: str) -> None:
    """Put figures between their marks in a page, in the place of those that stand there; at its end without marks."""
    begin, end = BEGIN.format(name), END.format(name)
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if begin not in text:
        text = f"{text}\n{begin}\n{end}\n"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n\n{figures}\n\n{end}{after}", encoding="utf-8")


def _met(is_met: bool) -> str:  # noqa: FBT001 - its only argument
    return "yes" if is_met else "**no**"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
