"""A handler that blocks the event loop: what is seen of it, and what it costs."""

import re
from pathlib import Path

import httpx
from services import Pipeline, Raw, event, value_of, wait_until

from tools.ports import free_ports

BLOCKED_S = 14
"""Seconds: longer than the session of a client with aiokafka's defaults."""


def test_a_handler_that_blocks_the_loop_is_named_costs_no_rebalance_and_every_probe_is_answered(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    with (
        pipeline.consumer("blocking", LEDGER=str(tmp_path / "ledger"), LIVENESS_PORT=str(port)) as consumer,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as prober,
    ):
        consumer.until_healthy()
        pipeline.write([Raw(value_of(event("blocking", number=BLOCKED_S)))])
        wait_until(lambda: "the event loop is blocked for" in consumer.log.read_text())

        def probed() -> bool:
            assert prober.get("/livez").status_code == 200
            return (tmp_path / "ledger").exists()

        wait_until(probed)
        pipeline.write([Raw(value_of(event("behind it", number=0)))])
        status = consumer.until_consumed(2)
        assert (status["commit_failures"], status["restarts"], status["skipped_count"]) == (0, 0, 0)
        assert (tmp_path / "ledger").read_text().split("\n")[:2] == ["blocking", "behind it"]
        metrics = consumer.http.get("/metrics").text
        assert 'consumer_rebalances_total{stream="events"} 1.0' in metrics
        assert "event_loop_blocks_total 1.0" in metrics
        health = consumer.get("/health-check")
        assert health["status"] == "ok"
        assert "the event loop was blocked for 1" in health["detail"]
        (line,) = [one for one in consumer.log.read_text().splitlines() if "the event loop is blocked for" in one]
        assert re.search(r" by \S*tests/handlers\.py:\d+ blocking < ", line)
