import pytest

from apps.chassis.setting_reading import read_settings
from tools import local_page
from tools.local_page import with_free_port, with_local_page


def origins(hosts: str, first: int = 8001) -> str:
    """Return the origins of the pages of four consumers."""
    return ",".join(f"http://{host}:{port}" for port in range(first, first + 4) for host in hosts.split(","))


def page_settings(environment: dict[str, str]) -> tuple[str, str]:
    variables = with_local_page(environment)
    return variables["PRODUCER_URL"], variables["CORS_ORIGINS"]


def test_the_page_and_the_producer_of_this_machine_find_each_other() -> None:
    assert page_settings({}) == ("http://localhost:8000", origins("localhost,127.0.0.1"))


def test_they_do_on_other_ports_and_hosts_too() -> None:
    ports = {"PRODUCER_PORT": "9000", "CONSUMER_PORT": "9001"}
    everywhere = {"HOST": "0.0.0.0"}  # noqa: S104 - nothing is bound
    assert page_settings(ports | everywhere) == (
        "http://localhost:9000",
        origins("localhost,127.0.0.1", 9001),
    )
    assert page_settings(ports | {"HOST": "box.example"}) == ("http://box.example:9000", origins("box.example", 9001))


@pytest.mark.parametrize("host", ["::1", "::"])
def test_they_do_over_ipv6_too(host: str) -> None:
    page_and_producer = page_settings({"HOST": host})
    assert page_and_producer[1] == origins("localhost,127.0.0.1,[::1]")


@pytest.mark.parametrize("value", ["", "https://events.example"])
@pytest.mark.parametrize("variable", ["PRODUCER_URL", "CORS_ORIGINS"])
def test_what_somebody_has_set_stays_even_when_it_is_nothing(variable: str, value: str) -> None:
    variables = with_local_page({variable: value, "OTHER": "kept"})
    assert (variables[variable], variables["OTHER"]) == (value, "kept")
    assert len(variables) == 3


@pytest.mark.parametrize("wrong", [{"CONSUMER_PORT": "http"}, {"CORS_ORIGINS": "*"}, {"HOST": "no host name"}])
def test_a_wrong_setting_is_left_for_the_service_to_tell(wrong: dict[str, str]) -> None:
    assert with_local_page(wrong) == wrong


def test_what_is_derived_is_a_setting_that_a_service_takes() -> None:
    settings = read_settings(with_local_page({}))
    assert settings.producer_url == "http://localhost:8000"
    assert settings.allowed_origins == origins("localhost,127.0.0.1").split(",")


def test_a_second_consumer_takes_the_next_free_port_unless_one_is_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_page, "why_taken", lambda port: "in use" if port < 8003 else None)
    assert with_free_port({"OTHER": "kept"}) == {"OTHER": "kept", "CONSUMER_PORT": "8003"}
    assert capsys.readouterr().err == "port 8001 is taken, so this consumer listens on 8003\n"
    assert with_free_port({"CONSUMER_PORT": "8001"}) == {"CONSUMER_PORT": "8001"}
    monkeypatch.setattr(local_page, "why_taken", lambda _: None)
    assert with_free_port({}) == {}
