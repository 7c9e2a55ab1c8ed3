"""The alert rules and the dashboard speak of what the services really show."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import promql_parser as promql
import pytest
from litestar.testing import TestClient
from prometheus_client.parser import text_string_to_metric_families

from apps.chassis.settings import Settings
from apps.consumer.operating.lag import Lag, LagMeter, PartitionLag
from tests.event_services import create_consumer, create_producer
from tools.dashboard import DASHBOARD, as_written

OBSERVABILITY = DASHBOARD.parent
PROMETHEUS_OWN = {"job", "instance"}
"""Labels that Prometheus adds to all that it collects; `up` is its own too."""
OF_PROCESS = re.compile(r"process_\w+")
"""Metrics of the operating system's process, which are not there on every system."""

Labels = dict[str, set[str]]


@pytest.fixture(scope="module")
def shown() -> dict[str, Labels]:
    """Return each metric that the services show, with its labels and the values that they have."""
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    lag = Lag([PartitionLag(0, 5, 5, 9, 4, 1)], 4, {0: 1.5})

    async def measure(*_: object) -> Lag:
        return lag

    found: dict[str, Labels] = {"up": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LagMeter, "measure", measure)
        for app in (create_producer(settings), create_consumer(settings)):
            with TestClient(app) as client:
                client.get("/livez")
                page = client.get("/metrics").text
            for family in text_string_to_metric_families(page):
                for sample in family.samples:
                    labels = found.setdefault(sample.name, {})
                    for label, value in sample.labels.items():
                        labels.setdefault(label, set()).add(value)
    return found


def alerts() -> list[dict[str, Any]]:
    (group,) = msgspec.yaml.decode((OBSERVABILITY / "alerts.yml").read_bytes())["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return list(msgspec.json.decode(DASHBOARD.read_bytes())["panels"])


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every expression with the text that shows its labels."""
    for alert in alerts():
        yield alert["expr"], alert["annotations"]["summary"]
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m"), target["legendFormat"]


def nodes(expression: str) -> list[promql.Expr]:
    found: list[promql.Expr] = []
    promql.walk(promql.parse(expression), found.append)
    return found


def selectors(expression: str) -> list[promql.VectorSelector]:
    return [node for node in nodes(expression) if isinstance(node, promql.VectorSelector)]


@pytest.mark.parametrize(("expression", "text"), list(expressions()))
def test_an_expression_selects_and_shows_what_a_service_has(
    expression: str, text: str, shown: dict[str, Labels]
) -> None:
    selected = selectors(expression)
    assert selected
    known: set[str] = set(PROMETHEUS_OWN)
    for selector in selected:
        name = str(selector.name)
        if OF_PROCESS.fullmatch(name):
            continue
        assert name in shown
        known |= shown[name].keys()
        for matcher in selector.matchers.matchers:
            assert matcher.name in shown[name].keys() | PROMETHEUS_OWN
            if matcher.op == promql.MatchOp.Equal:
                assert matcher.value in shown[name][matcher.name]
    kept = {label for node in nodes(expression) if isinstance(node, promql.AggregateExpr) for label in kept_by(node)}
    assert kept <= known
    named = set(re.findall(r"\$labels\.(\w+)|{{(\w+)}}", text))
    assert {first or second for first, second in named} <= (kept or known)


def kept_by(aggregation: promql.AggregateExpr) -> list[str]:
    return aggregation.modifier.labels if aggregation.modifier else []


def test_every_rate_is_of_a_counter_and_of_nothing_else() -> None:
    for expression, _ in expressions():
        for node in nodes(expression):
            if isinstance(node, promql.Call) and node.func.name in {"rate", "increase"}:
                (selector,) = selectors(node.prettify())
                assert re.search(r"_(total|bucket|count|sum)$", str(selector.name))


def test_every_metric_of_the_services_own_is_on_the_dashboard(shown: dict[str, Labels]) -> None:
    own = {
        re.sub(r"_(bucket|count|sum)$", "", name)
        for name in shown
        if re.match(r"(producer|consumer|http|event_loop)_", name)
    }
    used = {str(selector.name) for expression, _ in expressions() for selector in selectors(expression)}
    on_the_dashboard = {name.removesuffix("_bucket") for name in used}
    assert own - on_the_dashboard == set()


def test_the_dashboard_is_what_its_list_of_panels_says() -> None:
    assert DASHBOARD.read_bytes() == as_written(), "run: python -m tools.dashboard"


def test_no_alert_has_the_name_of_another_and_each_says_how_urgent_it_is() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len(set(names)) == len(names)
    assert {alert["labels"]["severity"] for alert in alerts()} == {"page", "ticket"}


def test_prometheus_reads_the_rules_and_grafana_the_dashboard_from_where_they_are_mounted() -> None:
    compose = msgspec.yaml.decode((OBSERVABILITY.parent / "compose.yaml").read_bytes())["services"]
    mounted = dict(volume.split(":")[:2] for name in ("prometheus", "grafana") for volume in compose[name]["volumes"])
    (rules,) = msgspec.yaml.decode((OBSERVABILITY / "prometheus.yml").read_bytes())["rule_files"]
    assert mounted["./observability/alerts.yml"] == f"/etc/prometheus/{rules}"
    (provider,) = msgspec.yaml.decode((OBSERVABILITY / "grafana-dashboards.yml").read_bytes())["providers"]
    assert Path(mounted["./observability/dashboard.json"]).parent == Path(provider["options"]["path"])
