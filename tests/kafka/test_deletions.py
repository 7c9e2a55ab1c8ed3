from pathlib import Path
from urllib.parse import quote

from services import Pipeline, event, wait_until

SERVICES = str(Path(__file__).with_name("deleting_services.py"))
ODD_KEY = "Zoë? #1 100%"


def test_a_deletion_is_a_tombstone_that_the_handler_gets_in_the_order_of_its_key(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    with (
        pipeline.running("producer", SERVICES, ROLE="producer") as producer,
        pipeline.running("consumer", SERVICES, ROLE="consumer", LEDGER=str(ledger)) as consumer,
    ):
        producer.until_healthy()
        consumer.until_healthy()
        keys = ["ada", ODD_KEY, "generate"]
        for key in keys:
            written = producer.post("/producers/events", json=event(key, text="first"))
            deletion = producer.http.delete(f"/producers/events/{quote(key, safe='')}")
            assert deletion.status_code == 201, deletion.text
            (receipt,) = deletion.json()["receipts"]
            assert receipt["id"] == key
            assert receipt["partition"] == written["receipts"][0]["partition"]
        producer.post("/producers/events", json=event("ada", text="again"))
        consumer.until_consumed(7)
        lines = ledger.read_text().splitlines()
        assert [line for line in lines if line.startswith("ada")] == ["ada: first", "ada: deleted", "ada: again"]
        assert {f"{key}: deleted" for key in keys} <= set(lines)
        tombstones = [record for record in pipeline.records() if record.value is None]
        assert {record.key for record in tombstones} == {key.encode() for key in keys}
        assert consumer.status()["dead_lettered_count"] == 0
        shown = [one for one in consumer.messages(limit=10) if one.get("deleted")]
        assert {one["key"] for one in shown} == set(keys)
        assert {one["value"] for one in shown} == {None}
        found = consumer.get(f"/consumers/messages/{tombstones[0].partition}/{tombstones[0].offset}")
        assert found["deleted"], found
        assert producer.http.delete("/producers/events/ada/").status_code == 404
        refused = producer.http.delete("/producers/events/%FFada")
        assert (refused.status_code, "UTF-8" in refused.json()["detail"]) == (400, True)
        wait_until(lambda: consumer.status()["lag"] == 0)
