"""The alert rules and the dashboard speak of what the services really show."""

import re
import shutil
import subprocess
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
from tools import prometheus_rule
from tools.dashboard import DASHBOARD, as_written

OBSERVABILITY = DASHBOARD.parent
ROOT = OBSERVABILITY.parent
OPERATOR = prometheus_rule.RULE.parent
PROMETHEUS_OWN = {"job", "instance"}
"""Labels that Prometheus adds to all that it collects; `up` is its own too."""
OF_PROCESS = re.compile(r"process_\w+")
"""Metrics of the operating system's process, which are not there on every system."""

PROMTOOL = shutil.which("promtool")

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


def test_each_alert_leads_to_what_to_do_about_it_and_nothing_is_left_there_of_another() -> None:
    page, _, _ = alerts()[0]["annotations"]["runbook_url"].partition("#")
    sections = re.findall(r"(?m)^## (\w+)$", (ROOT / page).read_text())
    assert [alert["alert"] for alert in alerts()] == sections
    for alert in alerts():
        assert alert["annotations"]["runbook_url"] == f"{page}#{alert['alert'].lower()}"


def test_each_section_says_as_the_alert_whether_a_person_is_needed_now() -> None:
    page = (ROOT / "docs/how-to/answer-an-alert.md").read_text()
    urgency = dict(re.findall(r"(?m)^## (\w+)\n\n(Page|Ticket)\.", page))
    assert urgency == {alert["alert"]: alert["labels"]["severity"].title() for alert in alerts()}


@pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool on this machine")
def test_the_alerts_about_missing_services_fire_whatever_their_jobs_are_called() -> None:
    tested = [str(PROMTOOL), "test", "rules", str(OBSERVABILITY / "alerts_test.yml")]
    done = subprocess.run(tested, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_operator_of_prometheus_has_the_same_alerts() -> None:
    assert prometheus_rule.RULE.read_text() == prometheus_rule.as_written(), "run: python -m tools.prometheus_rule"
    rule = msgspec.yaml.decode(prometheus_rule.RULE.read_bytes())
    assert rule["spec"] == msgspec.yaml.decode(prometheus_rule.ALERTS.read_bytes())


def test_the_operator_of_prometheus_finds_every_pod_of_the_services_and_calls_the_jobs_like_them() -> None:
    monitor = msgspec.yaml.decode((OPERATOR / "pod-monitor.yaml").read_bytes())["spec"]
    kustomization = msgspec.yaml.decode((ROOT / "deploy/kubernetes/kustomization.yaml").read_bytes())
    (common,) = [each["pairs"] for each in kustomization["labels"] if each["includeTemplates"]]
    assert monitor["selector"]["matchLabels"] == common
    (endpoint,) = monitor["podMetricsEndpoints"]
    for service in ("producer", "consumer"):
        deployment = next(
            each
            for part in (ROOT / f"deploy/kubernetes/{service}.yaml").read_text().split("\n---\n")
            if (each := msgspec.yaml.decode(part))["kind"] == "Deployment"
        )
        pod = deployment["spec"]["template"]
        assert pod["metadata"]["labels"][monitor["jobLabel"]] == service
        assert endpoint["port"] in [port["name"] for port in pod["spec"]["containers"][0]["ports"]]
    collected = msgspec.yaml.decode((OBSERVABILITY / "prometheus.yml").read_bytes())["global"]
    assert (endpoint["interval"], endpoint["scrapeTimeout"]) == (
        collected["scrape_interval"],
        collected["scrape_timeout"],
    )


def test_prometheus_reads_the_rules_and_grafana_the_dashboard_from_where_they_are_mounted() -> None:
    compose = msgspec.yaml.decode((ROOT / "compose.yaml").read_bytes())["services"]
    mounted = dict(volume.split(":")[:2] for name in ("prometheus", "grafana") for volume in compose[name]["volumes"])
    (rules,) = msgspec.yaml.decode((OBSERVABILITY / "prometheus.yml").read_bytes())["rule_files"]
    assert mounted["./observability/alerts.yml"] == f"/etc/prometheus/{rules}"
    (provider,) = msgspec.yaml.decode((OBSERVABILITY / "grafana-dashboards.yml").read_bytes())["providers"]
    assert Path(mounted["./observability/dashboard.json"]).parent == Path(provider["options"]["path"])
