import pytest

from apps.chassis.settings import read_settings
from tools.local_page import with_local_page


def page_settings(environment: dict[str, str]) -> tuple[str, str]:
    variables = with_local_page(environment)
    return variables["PRODUCER_URL"], variables["CORS_ORIGINS"]


def test_the_page_and_the_producer_of_this_machine_find_each_other() -> None:
    assert page_settings({}) == ("http://localhost:8000", "http://localhost:8001,http://127.0.0.1:8001")


def test_they_do_on_other_ports_and_hosts_too() -> None:
    ports = {"PRODUCER_PORT": "9000", "CONSUMER_PORT": "9001"}
    everywhere = {"HOST": "0.0.0.0"}  # noqa: S104 - nothing is bound
    assert page_settings(ports | everywhere) == (
        "http://localhost:9000",
        "http://localhost:9001,http://127.0.0.1:9001",
    )
    assert page_settings(ports | {"HOST": "box.example"}) == ("http://box.example:9000", "http://box.example:9001")


@pytest.mark.parametrize("host", ["::1", "::"])
def test_they_do_over_ipv6_too(host: str) -> None:
    page_and_producer = page_settings({"HOST": host})
    assert page_and_producer[1] == "http://localhost:8001,http://127.0.0.1:8001,http://[::1]:8001"


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
    assert settings.allowed_origins == ["http://localhost:8001", "http://127.0.0.1:8001"]
