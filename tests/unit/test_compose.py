import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema.validators import validator_for
from litestar.types import Scope

from apps.chassis.http.origins import OriginPolicy
from apps.chassis.settings import Settings
from tools.kafka_distribution import KAFKA_VERSION

COMPOSE = Path(__file__).parents[2] / "compose.yaml"
PINNED = r"[a-z0-9./-]+:v?\d+\.\d+\.\d+[a-z-]*@sha256:[0-9a-f]{64}"


class Service(msgspec.Struct):
    image: str | None = None
    build: dict[str, str] | None = None
    profiles: list[str] = []
    depends_on: dict[str, dict[str, str]] = {}
    ports: list[str] = []
    volumes: list[str] = []
    environment: dict[str, str | int] = {}
    healthcheck: dict[str, Any] | None = None
    mem_limit: str | None = None
    cpus: float | None = None
    networks: dict[str, dict[str, list[str]]] = {}


class Compose(msgspec.Struct):
    services: dict[str, Service]
    volumes: dict[str, None]


@pytest.fixture(scope="module")
def compose() -> Compose:
    return msgspec.yaml.decode(COMPOSE.read_bytes(), type=Compose)


@pytest.fixture(scope="module")
def brokers(compose: Compose) -> dict[str, Service]:
    return {name: each for name, each in compose.services.items() if "KAFKA_PROCESS_ROLES" in each.environment}


def published(compose: Compose) -> Iterator[tuple[str, str, str]]:
    """Yield address, port of the host and port of the container of everything published."""
    for service in compose.services.values():
        for port in service.ports:
            address, of_host, of_container = port.split(":")
            yield address, of_host, of_container


def listeners(value: str | int) -> dict[str, tuple[str, str]]:
    """Return host and port of each listener by its name."""
    found = re.findall(r"(\w+)://([^:,]*):(\d+)", str(value))
    return {name: (host, port) for name, host, port in found}


def test_compose_yaml_follows_the_compose_specification() -> None:
    rules = get_builtin_schema("vendor.compose-spec")
    validator_for(rules)(rules).validate(msgspec.yaml.decode(COMPOSE.read_bytes()))


def test_every_image_is_pinned_to_a_version_and_its_content(compose: Compose) -> None:
    for service in compose.services.values():
        assert (service.image is None) != (service.build is None)
        if service.image:
            assert re.fullmatch(PINNED, service.image)
    bases = re.findall(r"(?m)^FROM (\S+:\S+)", (COMPOSE.parent / "Dockerfile").read_text())
    assert len(bases) == 2
    assert all(re.fullmatch(PINNED, base) for base in bases)


def test_every_action_of_the_workflows_is_pinned_to_a_commit() -> None:
    used = [
        line
        for file in (COMPOSE.parent / ".github" / "workflows").iterdir()
        for line in file.read_text().splitlines()
        if "uses:" in line
    ]
    assert used
    assert [line for line in used if not re.fullmatch(r" +- uses: [\w/-]+@[0-9a-f]{40} # v[\d.]+", line)] == []


def test_the_brokers_run_the_same_kafka_as_the_local_one(brokers: dict[str, Service]) -> None:
    assert {str(broker.image).partition("@")[0] for broker in brokers.values()} == {f"apache/kafka:{KAFKA_VERSION}"}


def test_nothing_is_published_beyond_this_machine(compose: Compose) -> None:
    assert {address for address, _, _ in published(compose)} == {"127.0.0.1"}


def test_any_profiles_can_run_together_without_a_clash_of_ports(compose: Compose) -> None:
    uses = Counter(port for _, port, _ in published(compose))
    assert not [port for port, count in uses.items() if count > 1]


def test_what_a_service_waits_for_has_a_health_check_and_is_started_with_it(compose: Compose) -> None:
    for service in compose.services.values():
        for name, dependency in service.depends_on.items():
            awaited = compose.services[name]
            assert dependency["condition"] == "service_healthy"
            assert awaited.healthcheck
            assert not awaited.profiles or set(service.profiles) <= set(awaited.profiles)


def test_every_broker_keeps_its_log_in_a_volume_of_its_own(compose: Compose, brokers: dict[str, Service]) -> None:
    volumes = []
    for broker in brokers.values():
        volume, _, folder = broker.volumes[0].partition(":")
        assert folder == broker.environment["KAFKA_LOG_DIRS"]
        volumes.append(volume)
    assert sorted(volumes) == sorted(compose.volumes)


def test_a_broker_is_found_by_containers_under_its_name_and_by_this_machine_on_its_published_port(
    brokers: dict[str, Service],
) -> None:
    for name, broker in brokers.items():
        listening = listeners(broker.environment["KAFKA_LISTENERS"])
        advertised = listeners(broker.environment["KAFKA_ADVERTISED_LISTENERS"])
        port = listening["HOST"][1]
        assert broker.ports == [f"127.0.0.1:{port}:{port}"]
        assert advertised == {"INTERNAL": (name, listening["INTERNAL"][1]), "HOST": ("localhost", port)}


def test_the_brokers_of_a_cluster_know_each_other_and_have_ids_of_their_own(brokers: dict[str, Service]) -> None:
    clusters: dict[str | int, list[str]] = {}
    for name, broker in brokers.items():
        port = listeners(broker.environment["KAFKA_LISTENERS"])["CONTROLLER"][1]
        voter = f"{broker.environment['KAFKA_NODE_ID']}@{name}:{port}"
        clusters.setdefault(broker.environment["CLUSTER_ID"], []).append(voter)
    for broker in brokers.values():
        voters = str(broker.environment["KAFKA_CONTROLLER_QUORUM_VOTERS"])
        assert voters.split(",") == clusters[broker.environment["CLUSTER_ID"]]
    assert sorted(len(voters) for voters in clusters.values()) == [1, 3]


def test_whoever_needs_kafka_asks_a_broker_that_listens_there(compose: Compose, brokers: dict[str, Service]) -> None:
    settings = ("KAFKA_BOOTSTRAP_SERVERS", "KAFKA_CLUSTERS_0_BOOTSTRAPSERVERS")
    internal = {
        f"{name}:{listeners(broker.environment['KAFKA_LISTENERS'])['INTERNAL'][1]}" for name, broker in brokers.items()
    }
    asked = [
        str(service.environment[setting])
        for service in compose.services.values()
        for setting in settings
        if setting in service.environment
    ]
    assert len(asked) == 3
    assert set(asked) <= internal


def test_every_file_that_a_container_reads_is_in_the_project(compose: Compose) -> None:
    mounted = [volume.split(":") for service in compose.services.values() for volume in service.volumes]
    files = [(source, mode) for source, _, *mode in mounted if source.startswith(".")]
    assert len(files) == 5
    for source, mode in files:
        assert (COMPOSE.parent / source).is_file()
        assert mode == ["ro"]


def test_prometheus_collects_from_both_services_where_they_listen(compose: Compose) -> None:
    config = msgspec.yaml.decode((COMPOSE.parent / "observability" / "prometheus.yml").read_bytes())
    targets = {
        target for job in config["scrape_configs"] for static in job["static_configs"] for target in static["targets"]
    }
    built = {name: service for name, service in compose.services.items() if service.build}
    assert targets == {f"{name}.internal:{service.ports[0].split(':')[2]}" for name, service in built.items()}
    assert all("metrics" in service.profiles for service in built.values())


def test_a_service_answers_to_the_names_by_which_it_is_called_and_to_no_others(compose: Compose) -> None:
    for name, service in compose.services.items():
        if service.build:
            policy = OriginPolicy(Settings(allowed_hosts=str(service.environment["ALLOWED_HOSTS"])))
            (own,) = service.networks["default"]["aliases"]
            hosts = own, "localhost", "127.0.0.1", name, "evil.example"
            assert own == f"{name}.internal"  # another could have the name without a dot in a local network
            assert [host for host in hosts if policy.refusal(a_call(host))] == [name, "evil.example"]


def a_call(host: str) -> Scope:
    scope: Any = {"type": "http", "method": "GET", "headers": [(b"host", f"{host}:8000".encode())]}
    return cast("Scope", scope)


def test_neither_a_service_nor_a_broker_takes_the_memory_or_the_processors_of_the_machine(
    compose: Compose, brokers: dict[str, Service]
) -> None:
    for service in (*brokers.values(), *(each for each in compose.services.values() if each.build)):
        assert (service.mem_limit, service.cpus) == (("512m", 1) if service.build else ("1g", 2))
    for broker in brokers.values():
        assert broker.environment["KAFKA_HEAP_OPTS"] == "-Xmx512m"  # half of its limit: Kafka needs as much outside


def test_every_built_service_is_a_stage_of_the_dockerfile(compose: Compose) -> None:
    stages = re.findall(r"(?m)^FROM \S+ AS (\w+)$", (COMPOSE.parent / "Dockerfile").read_text())
    targets = [service.build["target"] for service in compose.services.values() if service.build]
    assert sorted(targets) == ["consumer", "producer"]
    assert set(targets) <= set(stages)
