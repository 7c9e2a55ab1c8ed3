"""How much the live tail may take."""

from typing import NamedTuple


class TailLimits(NamedTuple):
    """How much memory the live tail may use, and how long it may wait.

    `callers` may watch at a time. `waiting_bytes` of events are kept for callers that read slowly; a caller for which
    more waits is cut off. `catch_up_bytes` may be used by all callers together that read what they missed: unlike live
    events, no two share them. After `idle_s` without an event an empty piece is yielded, so that its reader can end the
    answer. After `heartbeat_s` a caller gets a heartbeat, or learns that reading stalls. After `retry_s` reading is
    tried again when Kafka was out of reach. After `stale_after_s` without a read the tail's place is too old for a new
    caller. Every `look_s` it is checked whether the topic was recreated. For each second that framing events took, the
    tail rests `rest` seconds: watching must not slow the consumption.
    """

    callers: int = 2_000
    waiting_bytes: int = 4 * 1024 * 1024
    catch_up_bytes: int = 64 * 1024 * 1024
    idle_s: float = 2.4
    heartbeat_s: float = 15.0
    retry_s: float = 1.0
    stale_after_s: float = 5.0
    look_s: float = 5.0
    rest: float = 3.0
