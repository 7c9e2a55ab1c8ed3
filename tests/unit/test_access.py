import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient
from samples import fields_of_a_person

from apps.chassis.keys import Keys, read_keys
from apps.chassis.settings import WrongSetting, read_settings
from apps.consumer.app import create_app as create_consumer
from apps.producer.app import create_app as create_producer

NOBODY_LISTENS = "127.0.0.1:9"
APPS = {"producer": create_producer, "consumer": create_consumer}
POSTS = {
    "producer": ["/producers/basic_producer", "/producers/people"],
    "consumer": [
        *(f"/consumers/{order}" for order in ("stop", "start", "pause", "resume", "seek")),
        "/consumers/dead-letters/redrive",
    ],
}
EVERY_POST = pytest.mark.parametrize(("service", "path"), [(name, path) for name in POSTS for path in POSTS[name]])


@contextmanager
def client(service: str, **environment: str) -> Iterator[TestClient[Litestar]]:
    settings = read_settings({"KAFKA_BOOTSTRAP_SERVERS": NOBODY_LISTENS, **environment})
    with TestClient(APPS[service](settings)) as client:
        yield client


@pytest.fixture(scope="module")
def guarded() -> Iterator[dict[str, TestClient[Litestar]]]:
    with client("producer", API_KEY="s3cret") as producer, client("consumer", API_KEY="s3cret") as consumer:
        yield {"producer": producer, "consumer": consumer}


@EVERY_POST
@pytest.mark.parametrize("headers", [{}, {"X-API-Key": ""}, {"X-API-Key": "S3cret"}, {"X-API-Key": "s3cret "[:5]}])
def test_without_the_key_nothing_can_be_changed(
    guarded: dict[str, TestClient[Litestar]], service: str, path: str, headers: dict[str, str]
) -> None:
    answer = guarded[service].post(path, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
    assert "X-API-Key" in answer.headers["www-authenticate"]
    assert "s3cret" not in answer.text


@EVERY_POST
def test_with_the_key_a_call_is_taken(guarded: dict[str, TestClient[Litestar]], service: str, path: str) -> None:
    assert guarded[service].post(path, headers={"X-API-Key": "s3cret"}, content=b"{").status_code in {200, 400, 503}


@pytest.mark.parametrize("service", APPS)
def test_looking_needs_no_key(guarded: dict[str, TestClient[Litestar]], service: str) -> None:
    assert guarded[service].get("/livez").status_code == 200
    assert guarded[service].get("/schema").status_code == 200


@EVERY_POST
def test_the_documents_say_which_calls_need_a_key(
    guarded: dict[str, TestClient[Litestar]], service: str, path: str
) -> None:
    document: dict[str, Any] = guarded[service].get("/schema/openapi.json").json()
    assert document["paths"][path]["post"]["security"] == [{"ApiKey": []}]
    assert "401" in document["paths"][path]["post"]["responses"]
    scheme = document["components"]["securitySchemes"]["ApiKey"]
    assert (scheme["type"], scheme["in"], scheme["name"]) == ("apiKey", "header", "X-API-Key")


def test_without_a_key_in_the_settings_none_is_asked_for() -> None:
    with client("producer") as open_to_all:
        assert open_to_all.post("/producers/people", json=fields_of_a_person(age=-1)).status_code == 400


def test_each_of_several_keys_is_accepted_and_known_by_its_name() -> None:
    keys = read_settings({"API_KEY": "ada:key-of-ada, grace:key-of-grace,nameless"}).api_keys
    assert keys.name_of("key-of-ada") == "ada"
    assert keys.name_of("key-of-grace") == "grace"
    assert keys.name_of("nameless") == "default"
    assert keys.name_of("ada:key-of-ada") is None
    assert keys.name_of("") is None
    assert keys.name_of("k\udcffy") is None


def test_keys_in_a_file_are_changed_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# who may\n\nada:one\n")
    keys = Keys({"fixed": "given"}, file)
    assert [keys.name_of(key) for key in ("given", "one", "two")] == ["fixed", "ada", None]
    replace(file, "ada:two\n")
    assert [keys.name_of(key) for key in ("given", "one", "two")] == ["fixed", None, "ada"]


@pytest.mark.parametrize("damage", ["two keys have the name ada", "no name or is empty", "No such file"])
def test_a_file_of_keys_that_is_damaged_leaves_those_in_use_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    file = tmp_path / "keys"
    file.write_text("ada:one")
    keys = Keys({}, file)
    assert keys.name_of("one") == "ada"
    if damage.startswith("No such"):
        file.unlink()
    else:
        replace(file, "ada:two\nada:three" if damage.startswith("two") else "ada:")
    assert [keys.name_of("one"), keys.name_of("two")] == ["ada", None]
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert damage in said
    assert "three" not in said


def replace(file: Path, content: str) -> None:
    """Put another file in its place, as a rotation does."""
    new = file.with_suffix(".new")
    new.write_text(content)
    os.replace(new, file)  # noqa: PTH105 - the system's word for it


def test_a_mistake_in_the_keys_stops_the_start_and_tells_no_key(tmp_path: Path) -> None:
    for wrong in ("ada:", ":s3cret", "ada:s3cret,ada:other", "s3cret,two"):
        with pytest.raises(WrongSetting, match=r"^API_KEY: [^\n]*name[^\n]*$") as raised:
            read_settings({"API_KEY": wrong})
        assert "s3cret" not in str(raised.value)
    with pytest.raises(WrongSetting, match=r"^API_KEY_FILE: .*No such file"):
        read_settings({"API_KEY_FILE": str(tmp_path / "missing")})


def test_key_files_have_comments_and_empty_lines() -> None:
    assert read_keys(["# a comment", "", "a: b ", "c"]) == {"a": "b", "default": "c"}


@pytest.mark.parametrize("service", APPS)
@pytest.mark.parametrize(
    "path", ["/livez", "/nowhere", "/consumers/messages?limit=x", "/schema", "/schema/openapi.json"]
)
def test_every_answer_tells_a_browser_to_trust_nothing_in_it(
    guarded: dict[str, TestClient[Litestar]], service: str, path: str
) -> None:
    headers = guarded[service].get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
