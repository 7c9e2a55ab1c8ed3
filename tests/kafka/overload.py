"""Calls a service by far more callers at once than it takes, and looks at its memory meanwhile."""

from concurrent.futures import ThreadPoolExecutor, wait

import httpx
import psutil
from services import NO_TLS, Service

CALLERS = 60
"""At a time: some twenty times as many of the largest calls as are taken."""
LOOK_EVERY_S = 0.02
"""Seconds between two looks at a service under load: whoever asks without a pause is a load of their own."""
MAX_MEMORY_BYTES = 600e6
"""Bytes that a service may take under any load."""


def statuses_of_many(service: Service, method: str, path: str, content: bytes = b"", times: int = CALLERS) -> set[int]:
    """Make many calls at once; a refusal is one of too much, and says when to try again.

    On a busy machine Kafka may not answer some calls in time.
    """

    def call(_: int) -> tuple[int, str]:
        with httpx.Client(base_url=service.http.base_url, timeout=120, verify=NO_TLS) as http:
            answer = http.request(method, path, content=content, headers={"content-type": "application/json"})
            if answer.status_code != 503:
                return answer.status_code, ""
            assert int(answer.headers["retry-after"]) > 0
            return 503, answer.json()["type"]

    with ThreadPoolExecutor(times) as pool:
        answers = set(pool.map(call, range(times)))
    refusals = {kind for status, kind in answers if status == 503}
    assert not refusals or {"/problems/busy"} <= refusals <= {"/problems/busy", "/problems/out-of-reach"}
    return {status for status, _ in answers}


def memory_of(service: Service) -> int:
    return int(psutil.Process(service.process.pid).memory_info().rss)


def refuses_in_time_and_stays_small(producer: Service, path: str, content: bytes = b"") -> None:
    """Have many post at once: some are served, others refused, and the producer is alive and small all the while."""
    peak = 0
    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(statuses_of_many, producer, "POST", path, content)
        while wait([calls], LOOK_EVERY_S).not_done:
            assert producer.get("/livez") == {"status": "alive"}
            peak = max(peak, memory_of(producer))
        assert {201, 503} <= calls.result() <= {201, 207, 503}  # 207 where Kafka took a part in time
    assert peak < MAX_MEMORY_BYTES
