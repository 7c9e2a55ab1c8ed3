"""Records that are small on the wire and enormous when they are decompressed."""

from pathlib import Path

import psutil
from services import REDRIVE, Pipeline, Raw, event, value_of

MB = 1024 * 1024
MEMORY_OF_THE_MANIFEST = 384 * MB
LARGE, LARGER = 90 * MB, 200 * MB


def write_in_one_batch(pipeline: Pipeline, values: list[tuple[bytes, bytes]], codec: str, partition: int) -> None:
    """Write keys and values, compressed together."""
    raws = [Raw(value, key) for key, value in values]
    size = 2**29
    pipeline.write_batch(*raws, partition=partition, compression_type=codec, max_batch_size=size, max_request_size=size)


def test_enormous_records_are_dead_lettered_without_their_value_and_their_neighbours_are_consumed(
    pipeline: Pipeline,
) -> None:
    blanks = b" " * LARGER
    with pipeline.consumer() as consumer:
        consumer.until_healthy()
        good = [(b"good", value_of(event(f"good-{number}"))) for number in range(4)]
        write_in_one_batch(pipeline, [good[0], (b"large", blanks[:LARGE]), good[1]], "gzip", 0)
        write_in_one_batch(pipeline, [(b"larger", blanks)], "gzip", 1)
        write_in_one_batch(pipeline, [good[2], (b"largest", blanks), good[3]], "zstd", 2)
        padded = [(b"padded", value + b" " * 10 * MB) for _, value in good] * 5
        write_in_one_batch(pipeline, padded, "zstd", 3)
        del blanks, padded
        status = consumer.until_consumed(3 + 4 + 20)
        assert (status["messages_consumed_count"], status["dead_lettered_count"]) == (24, 3)
        letters = consumer.letters(reason="TooLarge")
        kept = {
            letter["key"]["text"]: (
                letter["origin"]["partition"],
                letter["origin"]["offset"],
                letter["value"],
                int(letter["headers"][0]["value"]["text"]) // MB,
                letter["held"],
            )
            for letter in letters
        }
        assert kept == {
            "large": (0, 1, None, 90, True),
            "larger": (1, 0, None, 200, True),
            "largest": (2, 1, None, 200, True),
        }
        assert all("stays on" in letter["error"] for letter in letters)
        one = {"partition": letters[0]["partition"], "offset": letters[0]["offset"]}
        refused = consumer.http.post(REDRIVE, json=one)
        assert refused.is_client_error, refused.text
        assert "too large to be read" in refused.json()["detail"]
        assert consumer.redrive(limit=100) == 0

        (shown,) = consumer.get("/consumers/messages", scope="topic", partition=1)["messages"]
        assert "209,715," in shown["error"]
        assert consumer.get("/consumers/messages/2/2")["value"]["id"] == "good-3"
        assert "bytes, more than" in consumer.get("/consumers/messages/2/1")["error"]
        peak = max(psutil.Process(consumer.process.pid).memory_info().rss, _peak(consumer.process.pid))
        assert peak < MEMORY_OF_THE_MANIFEST, f"{peak // MB} MB"


def _peak(pid: int) -> int:
    """Return the most memory that a process has had, where the system tells (Linux)."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return max((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), default=0)
