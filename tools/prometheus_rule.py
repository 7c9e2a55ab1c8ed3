"""Writes the alerts for the Prometheus Operator: `python -m tools.prometheus_rule`, after a change of them."""

from pathlib import Path
from textwrap import indent

ROOT = Path(__file__).parents[1]
ALERTS = ROOT / "observability" / "alerts.yml"
RULE = ROOT / "deploy" / "kubernetes-prometheus" / "prometheus-rule.yaml"
HEAD = """# Written by `python -m tools.prometheus_rule` from observability/alerts.yml: change the alerts there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: people-over-kafka
  labels:
    app.kubernetes.io/part-of: people-over-kafka
spec:
"""


def as_written() -> str:
    """Return the content of the file."""
    alerts = ALERTS.read_text("utf-8")
    return HEAD + indent(alerts[alerts.index("groups:") :], "  ")


if __name__ == "__main__":
    RULE.write_text(as_written(), "utf-8")
