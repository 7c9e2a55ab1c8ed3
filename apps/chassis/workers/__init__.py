"""Run a service as several processes that share its port, its limits, its health and its metrics.

uvicorn's own supervisor serves an importable application only, leaves its workers behind when it is killed, and ends
with status 0 whatever happened. The multiprocess mode of prometheus_client knows no collectors of one's own.
"""
