"""Figures as a Markdown table, and the machine that they come from."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from benchmarks.measures import Comparison, Latency
from tools.kafka_distribution import KAFKA_VERSION


class Row(NamedTuple):
    """One line of the table."""

    measured: str
    service: str
    raw_client: str
    result: str
    target: str


HEADINGS = Row("measured", "service", "raw client", "result", "target")


def rows_of_comparison(name: str, comparison: Comparison, target: float) -> list[Row]:
    """Return the rates and what a record costs; the result is the ratio of the rates."""
    return [
        Row(
            f"{name}, records/s",
            _spread(comparison.service, "{:,.0f}"),
            _spread(comparison.raw, "{:,.0f}"),
            f"{_spread(comparison.ratios, '{:.2f}')} of the raw client",
            f"at least {target:g}",
        ),
        Row(
            f"{name}, CPU µs a record",
            _spread(comparison.service_cpu, "{:.1f}"),
            _spread(comparison.raw_cpu, "{:.1f}"),
            "",
            "",
        ),
    ]


def rows_of_latency(latency: Latency, target_p50: float, target_p99: float) -> list[Row]:
    """Return median and 99th percentile, in milliseconds."""
    rows = []
    for name, values, target in (
        ("POST to its answer", latency.acknowledged, ""),
        ("POST to visible at the consumer", latency.visible, f"p50 under {target_p50:g}, p99 under {target_p99:g}"),
    ):
        p50, p99 = median(values), quantiles(values, n=100)[98]
        rows.append(Row(f"{name}, ms", f"max {max(values):.1f}", "", f"p50 {p50:.1f}, p99 {p99:.1f}", target))
    return rows


def row_of_memory(name: str, megabytes: float, target: float) -> Row:
    """Return a peak of memory."""
    return Row(f"{name}, peak MB", "", "", f"{megabytes:.0f}", f"under {target:g}")


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table that is also easy to read as it is."""
    lines = [HEADINGS, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    aligned.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(aligned)


def machine() -> str:
    """Return what it was measured on, in one line."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}, Apache Kafka {KAFKA_VERSION}, "
        "one broker on the same machine"
    )


def load() -> str:
    """Return how busy the machine was over the last minute, as `uptime` counts it."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _spread(values: Sequence[float], form: str) -> str:
    """Return the median, and the least and the most where there are several."""
    middle = form.format(median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({form.format(min(values))} to {form.format(max(values))})"
