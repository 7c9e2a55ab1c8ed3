"""Writes Grafana's dashboard from the list of its panels: `python -m tools.dashboard`."""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

DASHBOARD = Path(__file__).parents[1] / "observability" / "dashboard.json"
WIDTH, HEIGHT = 12, 7
"""Of a panel, in Grafana's grid, which is 24 wide."""


class Panel(NamedTuple):
    """A chart; each of its queries has the legend of its lines. `unit` is one of Grafana's names."""

    title: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"


def quantiles_of(histogram: str, by: str = "") -> dict[str, str]:
    """Return the queries of median and 99th percentile of a histogram, one line for each value of a label."""
    labels, suffix = (f"{by}, le", f" {{{{{by}}}}}") if by else ("le", "")
    buckets = f"sum by ({labels}) (rate({histogram}_bucket[$__rate_interval]))"
    return {f"p{int(at * 100)}{suffix}": f"histogram_quantile({at}, {buckets})" for at in (0.5, 0.99)}


def rate_of(counter: str, *by: str) -> dict[str, str]:
    """Return the query of a counter's growth a second, one line for each combination of its labels."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by) or "all"
    return {legend: f"sum by ({', '.join(by)}) (rate({counter}[$__rate_interval]))"}


def sum_of(counter: str) -> str:
    """Return the query of a counter by stream, partition and reason."""
    return f"sum by (stream, partition, reason) ({counter})"


PANELS = [
    Panel("Can it do its job?", "bool_yes_no", {"{{job}} {{instance}} {{stream}}": "service_healthy"}, "stat"),
    Panel("State of each consumer", "none", {"{{stream}} {{instance}} {{state}}": "consumer_state == 1"}, "stat"),
    Panel("Records produced a second", "short", rate_of("producer_records_total", "stream", "outcome")),
    Panel("Records consumed a second", "short", rate_of("consumer_records_consumed_total", "stream", "instance")),
    Panel("Lag in records", "short", {"{{stream}} {{partition}}": "max by (stream, partition) (consumer_lag_records)"}),
    Panel("Lag in seconds", "s", {"{{stream}} {{partition}}": "max by (stream, partition) (consumer_lag_seconds)"}),
    Panel("Acknowledgement of a batch", "s", quantiles_of("producer_acknowledgement_seconds", "stream")),
    Panel(
        "In flight",
        "short",
        {
            "records {{stream}} {{instance}}": "producer_records_in_flight",
            "bytes {{stream}} {{instance}}": "producer_bytes_in_flight",
        },
    ),
    Panel("Time of the handler", "s", quantiles_of("consumer_handler_seconds", "stream")),
    Panel(
        "Calls of the handler a second",
        "short",
        rate_of("consumer_handler_attempts_total", "stream", "result")
        | {"failures of the in-flight batch {{stream}} {{instance}}": "consumer_batch_failures"},
    ),
    Panel("Age of the in-flight batch", "s", {"{{stream}} {{instance}}": "consumer_batch_age_seconds"}),
    Panel(
        "Waiting for a transaction",
        "short",
        {
            "{{stream}} {{partition}}": "max by (stream, partition) (consumer_lag_waiting_for_transaction_records)",
            "{{stream}} dead letters": "max by (stream) (consumer_dead_letters_waiting_for_transaction_records)",
        },
    ),
    Panel(
        "Records skipped or for another group, and positions moved",
        "short",
        {
            "skipped {{stream}} {{partition}} {{reason}}": sum_of("consumer_records_skipped_total"),
            "passed over {{stream}} {{reason}}": "sum by (stream, reason) (consumer_records_passed_over_total)",
            "moves {{stream}} {{partition}} {{reason}}": sum_of("consumer_position_moves_total"),
        },
    ),
    Panel(
        "Failed commits",
        "short",
        {"{{stream}} {{error}} {{instance}}": "increase(consumer_commit_failures_total[$__rate_interval])"},
    ),
    Panel(
        "Dead letters a second",
        "short",
        rate_of("consumer_records_dead_lettered_total", "stream", "reason")
        | {
            "sent back by schedule {{stream}}": "sum by (stream) "
            "(rate(consumer_records_redriven_by_schedule_total[$__rate_interval]))"
        },
    ),
    Panel(
        "Rebalances, restarts and new connections",
        "short",
        {
            "rebalances {{stream}} {{instance}}": "increase(consumer_rebalances_total[$__rate_interval])",
            "restarts {{stream}} {{instance}}": "increase(consumer_restarts_total[$__rate_interval])",
            "connections {{stream}} {{instance}}": "increase(producer_connections_replaced_total[$__rate_interval])",
        },
    ),
    Panel("HTTP requests a second", "reqps", rate_of("http_requests_total", "job", "route", "status")),
    Panel("Time of an HTTP request", "s", quantiles_of("http_request_duration_seconds", "route")),
    Panel(
        "Blocks of the event loop",
        "s",
        {
            "seconds {{job}} {{instance}}": "increase(event_loop_blocked_seconds_total[$__rate_interval])",
            "blocks {{job}} {{instance}}": "increase(event_loop_blocks_total[$__rate_interval])",
        },
    ),
    Panel("CPU", "percentunit", {"{{job}} {{instance}}": "rate(process_cpu_seconds_total[$__rate_interval])"}),
    Panel("Memory", "bytes", {"{{job}} {{instance}}": "process_resident_memory_bytes"}),
]


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    return {
        "uid": "people-over-kafka",
        "title": "People over Kafka",
        "tags": ["kafka"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "panels": [_panel(number, panel) for number, panel in enumerate(PANELS)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, 24 // WIDTH)
    return {
        "id": number + 1,
        "title": panel.title,
        "type": panel.kind,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"textMode": "value_and_name"} if panel.kind == "stat" else {"tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + at), "expr": query, "legendFormat": legend}
            for at, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def as_written() -> bytes:
    """Return the file's content."""
    return msgspec.json.format(msgspec.json.encode(dashboard()), indent=2) + b"\n"


if __name__ == "__main__":
    DASHBOARD.write_bytes(as_written())
