"""What was measured, as tables and as bars."""

from collections import defaultdict
from statistics import median

from benchmarks.measures import Series
from benchmarks.plot import Bar
from benchmarks.processes import Took
from benchmarks.report import HEADINGS, Row, bounded, compared, delayed, spread


class Figures:
    """What was measured so far, by the name of what was measured."""

    def __init__(self) -> None:
        self.series: defaultdict[str, Series] = defaultdict(Series)
        self.values: defaultdict[str, list[float]] = defaultdict(list)
        self._round = 0

    def begin_round(self, what: str, number: int, of: int) -> None:
        """Begin a round, and tell of it: what is noted until the next one is of it."""
        self._round = number
        print(f"{what}, round {number} of {of}", flush=True)

    def note(self, name: str, took: Took) -> None:
        """Add to what a way took in this round, and tell of it."""
        self.series[name].note(self._round, took)
        print(f"{name}: {took.records / took.seconds:,.0f} records/s", flush=True)

    def add(self, name: str, value: float) -> None:
        """Add a figure of a round, and tell of it."""
        self.values[name].append(value)
        print(f"{name}: {value:,.1f}", flush=True)


def rows_of(figures: Figures, lines: int) -> list[Row]:
    """Return the table of what has a target; so many lines were sent in one request."""
    series, values = figures.series, figures.values

    def both(name: str) -> tuple[list[float], list[float]]:
        return values[name], values[f"{name[:3]} until fetched"]

    rows = [
        HEADINGS,
        *compared("`basic_producer`, 100,000 people, against `send_batch`", series["made"], series["send_batch"], 1.5),
        *compared(
            "lists of 500 given people, 4 connections, against `send_batch`", series["lists"], series["send_batch"], 0.7
        ),
        *compared(
            f"{lines:,} lines of JSON in one request, against `send_batch`",
            series["lines"],
            series["send_batch"],
            0.7,
        ),
        bounded("memory of the producer, at most", values["memory of lines"], 200, "MB"),
        *compared(
            "people posted one by one, 64 connections, against a bare handler", series["ones"], series["bare"], 0.6
        ),
        bounded("p99 of them at half that load", values["p99 at half load"], 20, "ms"),
        *compared("one made-up person a call, against one given", series["made, ones"], series["ones"], 0.9),
        *compared("ten made-up people a call, against ten given", series["made, tens"], series["tens"], 0.9),
        *compared(
            "consuming with the live page open and metrics scraped, against `getmany`",
            series["consuming"],
            series["getmany"],
            0.9,
        ),
        bounded("one of 1,000 people a second, until answered, p50", values["p50 until answered"], None, "ms"),
        bounded("until answered, p99", values["p99 until answered"], None, "ms"),
        delayed("until visible, p50, against `send` to `getmany`", *both("p50 until visible"), 2.5),
        delayed("until visible, p99, against `send` to `getmany`", *both("p99 until visible"), 3),
        delayed("until pushed by the live tail, p50, against the same", *both("p50 until pushed"), 2.5),
        delayed("until pushed, p99, against the same", *both("p99 until pushed"), 3),
        bounded("memory of the producer after all rounds, at most", values["memory of the producer"], None, "MB"),
        bounded("memory of the consumer after a round, at most", values["memory of the consumer"], None, "MB"),
    ]
    if millions := values["memory after each million"]:
        each = ", ".join(f"{value:.0f}" for value in millions)
        rows.append(Row("5 million drained: memory after each million, at most", "", "", f"{each} MB", "flat"))
    return rows


WAYS = (
    (
        "Producing, records/s",
        (
            ("aiokafka, `send`, gathered", "yardstick", "send"),
            ("aiokafka, `send_batch`", "yardstick", "send_batch"),
            ("librdkafka, `produce` with callbacks", "yardstick", "librdkafka, produce"),
            ("librdkafka, `produce_batch`", "yardstick", "librdkafka, produce_batch"),
            ("ours, made and sent", "ours", "made"),
            ("ours, lists of 500", "ours", "lists"),
            ("ours, lines of JSON", "ours", "lines"),
            ("tutorial-style, lists of 500", "tutorial", "tutorial, lists"),
        ),
    ),
    (
        "One person a request, 64 connections, requests/s",
        (
            ("Litestar, nothing but decoded", "yardstick", "bare"),
            ("ours", "ours", "ones"),
            ("ours, made and sent", "ours", "made, ones"),
            ("tutorial-style", "tutorial", "tutorial, ones"),
        ),
    ),
    (
        "Consuming, records/s",
        (
            ("aiokafka, `getmany`", "yardstick", "getmany"),
            ("librdkafka, `consume`", "yardstick", "librdkafka, consume"),
            ("ours, with the live page open", "ours", "consuming"),
            ("tutorial-style", "tutorial", "tutorial, consuming"),
        ),
    ),
)
"""Ways of doing the same, and under which name they are measured."""


def bars_of(figures: Figures) -> list[tuple[str, list[Bar]]]:
    """Return what the picture shows."""
    return [
        (
            heading,
            [
                Bar(label.replace("`", ""), kind, figures.series[name].rates)
                for label, kind, name in ways
                if name in figures.series
            ],
        )
        for heading, ways in WAYS
    ]


def ways_of(figures: Figures) -> list[tuple[str, ...]]:
    """Return all ways side by side; the last column says how many times as fast as the tutorial's each is."""
    rows: list[tuple[str, ...]] = [("way", "a second", "CPU µs a record", "times the tutorial-style pair")]
    for heading, ways in WAYS:
        *_, (_, _, tutorial) = ways
        slowest = median(figures.series[tutorial].rates) if tutorial in figures.series else None
        rows.append((f"**{heading}**", "", "", ""))
        for label, _, name in ways:
            if name in figures.series:
                one = figures.series[name]
                times = f"{median(one.rates) / slowest:.1f}" if slowest else ""
                rows.append((label, spread(one.rates, "{:,.0f}"), spread(one.cpu, "{:.1f}"), times))
    return rows
