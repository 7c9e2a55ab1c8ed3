import re
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest

from apps.chassis.http.health import VERSION
from apps.chassis.kafka.connection import STOP_TIMEOUT_S
from apps.chassis.service import LAST_ANSWERS_S
from apps.chassis.setting_reading import read_settings
from apps.chassis.settings import Settings
from contracts import STREAMS
from contracts.stream import variables_of
from tests.event import EVENTS
from tools import scaling as scaler

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
SASL_FOLDER = ROOT / "deploy" / "kubernetes-sasl"
INGRESS_FOLDER = ROOT / "deploy" / "kubernetes-ingress"
MANIFESTS = ["producer.yaml", "consumer.yaml", "consumer-scaling.yaml", "network.yaml"]
SERVICES = ["producer", "consumer"]
ENDS_WITHIN = 10
"""Seconds, as the README promises."""

Resource = dict[str, Any]


Resources = dict[tuple[str, str], Resource]


@pytest.fixture(scope="module")
def resources() -> Resources:
    """Return what the manifests hold by kind and name."""
    return resources_of(*(FOLDER / name for name in MANIFESTS))


@pytest.fixture(scope="module")
def of_ingress() -> Resources:
    return resources_of(INGRESS_FOLDER / "ingress.yaml")


def resources_of(*files: Path) -> Resources:
    documents = [each for file in files for each in re.split(r"(?m)^---$", file.read_text())]
    decoded = [msgspec.yaml.decode(each) for each in documents]
    return {(each["kind"], each["metadata"]["name"]): each for each in decoded}


@pytest.fixture(scope="module")
def kustomization() -> Resource:
    decoded: Resource = msgspec.yaml.decode((FOLDER / "kustomization.yaml").read_bytes())
    return decoded


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    lines = (FOLDER / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def scaling(resources: Resources) -> Resource:
    spec: Resource = resources["ScaledObject", "consumer"]["spec"]
    return spec


@pytest.fixture(scope="module", params=SERVICES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pod(resources: Resources, name: str) -> Resource:
    spec: Resource = resources["Deployment", name]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pod: Resource) -> Resource:
    (only,) = pod["containers"]
    return dict(only)


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_every_resource_follows_the_schema_of_the_oldest_and_the_newest_kubernetes(
    resources: Resources, of_ingress: Resources, version: str
) -> None:
    for (kind, _), resource in [*resources.items(), *of_ingress.items()]:
        if kind != "ScaledObject":
            kubernetes_validate.validate(resource, version, strict=True)


def test_the_schema_refuses_what_kubernetes_does_not_know(resources: Resources) -> None:
    wrong = resources["Service", "producer"] | {"spec": {"selectors": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_every_manifest_is_applied(kustomization: Resource) -> None:
    assert kustomization["resources"] == MANIFESTS
    assert {each.name for each in FOLDER.iterdir()} == {*MANIFESTS, "kustomization.yaml", "settings.env"}


def test_every_variable_is_a_setting_with_a_value_that_it_may_have(
    environment: dict[str, str], container: Resource, kustomization: Resource, tmp_path: Path
) -> None:
    assert set(environment) <= {*Settings.__struct_encode_fields__, *chain.from_iterable(map(variables_of, STREAMS))}
    (generated,) = kustomization["configMapGenerator"]
    assert generated["envs"] == ["settings.env"]
    assert container["envFrom"] == [{"configMapRef": {"name": generated["name"]}}]
    assert "env" not in container
    keys = tmp_path / "api-keys"
    keys.write_text("a-key-of-operators")
    read_settings(environment | {"API_KEY_FILE": str(keys)})


def test_secrets_are_named_and_never_given(
    environment: dict[str, str], pod: Resource, container: Resource, resources: Resources
) -> None:
    assert not [kind for kind, _ in resources if kind == "Secret"]
    assert not {"API_KEY", "KAFKA_SASL_PASSWORD"} & set(environment)
    (volume,) = [each for each in pod["volumes"] if each["name"] == "secrets"]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "secrets"]
    assert volume["secret"] == {"secretName": "people-over-kafka"}  # and not `optional`: no key, no service
    assert environment["API_KEY_FILE"] == f"{mount['mountPath']}/api-keys"


def test_the_port_is_the_one_that_the_service_listens_on_and_others_reach_it_by_its_name(
    environment: dict[str, str], container: Resource, resources: Resources, name: str
) -> None:
    settings = read_settings({key: value for key, value in environment.items() if key != "API_KEY_FILE"})
    port = {"producer": settings.producer_port, "consumer": settings.consumer_port}[name]
    assert settings.host == "0.0.0.0"  # noqa: S104 - a pod is to be reached
    liveness = {"name": "liveness", "containerPort": settings.liveness_port}
    assert container["ports"] == [{"name": "http", "containerPort": port}, liveness]
    service = resources["Service", name]["spec"]
    assert service["ports"] == [{"name": "http", "port": port, "targetPort": "http"}]
    (rule,) = resources["NetworkPolicy", "people-over-kafka"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": "http"}]


def test_kubernetes_puts_no_variables_of_its_own_in_the_place_of_settings(pod: Resource) -> None:
    assert pod["enableServiceLinks"] is False


def test_each_probe_asks_a_route_that_answers_it(container: Resource) -> None:
    asked = {probe: container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")}
    assert asked == {
        "startup": {"path": "/livez", "port": "http"},
        "liveness": {"path": "/livez", "port": "liveness"},
        "readiness": {"path": "/health-check", "port": "http"},
    }


def test_an_operator_reaches_a_consumer_that_is_not_ready(resources: Resources) -> None:
    assert resources["Service", "consumer"]["spec"]["publishNotReadyAddresses"] is True
    assert "publishNotReadyAddresses" not in resources["Service", "producer"]["spec"]


def test_the_grace_is_longer_than_the_pause_and_the_end_of_the_service(pod: Resource, container: Resource) -> None:
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert LAST_ANSWERS_S + STOP_TIMEOUT_S < ENDS_WITHIN
    assert pod["terminationGracePeriodSeconds"] >= pause + ENDS_WITHIN + 5


def test_nothing_may_be_done_but_what_is_needed(pod: Resource, container: Resource) -> None:
    uid = re.findall(r"useradd .*--uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert [str(pod["securityContext"]["runAsUser"])] == uid
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_image_is_a_stage_of_the_dockerfile_in_the_version_of_the_project(container: Resource, name: str) -> None:
    assert container["image"] == f"people-{name}:{VERSION}"
    assert f"docker build --target {name} --tag people-{name}:{VERSION} ." in (ROOT / "Dockerfile").read_text()


def test_memory_and_processor_are_asked_for_and_bounded(container: Resource) -> None:
    for amounts in container["resources"].values():
        assert set(amounts) == {"cpu", "memory"}


def test_whatever_selects_the_pods_of_a_service_selects_those_only(
    resources: Resources, name: str, kustomization: Resource
) -> None:
    deployment = resources["Deployment", name]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert labels == {"app.kubernetes.io/name": name}
    (spread,) = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert deployment["selector"]["matchLabels"] == labels
    assert spread["labelSelector"]["matchLabels"] == labels
    assert resources["Service", name]["spec"]["selector"] == labels
    assert resources["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"] == labels
    (common,) = kustomization["labels"]
    assert resources["NetworkPolicy", "people-over-kafka"]["spec"]["podSelector"]["matchLabels"] == common["pairs"]
    assert common["includeTemplates"] is True


def test_what_scales_a_service_is_not_undone_by_the_next_apply(
    resources: Resources, scaling: Resource, name: str
) -> None:
    assert "replicas" not in resources["Deployment", name]["spec"]
    target = resources["HorizontalPodAutoscaler", "producer"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "producer")
    assert scaling["scaleTargetRef"] == {"name": "consumer"}


def test_there_are_at_most_as_many_consumers_as_partitions_and_never_a_single_one(
    environment: dict[str, str], scaling: Resource
) -> None:
    partitions = [int(environment[stream.variables("partitions")[0]]) for stream in STREAMS]
    assert scaling["maxReplicaCount"] == max(partitions)
    assert scaling["minReplicaCount"] >= 2


def test_consumers_are_scaled_by_the_lag_of_the_very_group_and_topic_that_they_consume(
    resources: Resources, scaling: Resource, environment: dict[str, str]
) -> None:
    assert resources["ScaledObject", "consumer"]["apiVersion"] == "keda.sh/v1alpha1"
    for stream, trigger in zip(STREAMS, scaling["triggers"], strict=True):
        assert (trigger.keys(), trigger["type"]) == ({"type", "useCachedMetrics", "metadata"}, "kafka")
        metadata = dict(trigger["metadata"])
        from_env = [metadata.pop(f"{name}FromEnv") for name in ("bootstrapServers", "topic", "consumerGroup")]
        assert from_env[1] in stream.variables("topic")
        assert from_env[2] in stream.variables("group_id")
        assert {*from_env} <= set(environment)  # KEDA reads them there: it does not know the defaults of the settings
        assert int(metadata.pop("lagThreshold")) > 0
        others = {"allowIdleConsumers": "false", "offsetResetPolicy": "earliest", "excludePersistentLag": "true"}
        assert metadata == others  # text: KEDA takes nothing else
    commits = ROOT / "apps" / "consumer" / "consuming" / "commits.py"
    assert "consumer.beginning_offsets(" in commits.read_text()


def test_the_lag_of_a_group_that_was_stopped_or_paused_brings_no_consumers(scaling: Resource) -> None:
    assert all(trigger["metadata"]["excludePersistentLag"] == "true" for trigger in scaling["triggers"])
    # else the look before is that of another question, a moment ago
    assert all(trigger["useCachedMetrics"] for trigger in scaling["triggers"])


def test_consumers_are_scaled_by_what_keda_and_kubernetes_know(resources: Resources, scaling: Resource) -> None:
    assert scaling.keys() == {
        *("scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "advanced", "triggers"),
    }
    behavior = scaling["advanced"]["horizontalPodAutoscalerConfig"]
    autoscaler = resources["HorizontalPodAutoscaler", "producer"]
    kubernetes_validate.validate(autoscaler | {"spec": autoscaler["spec"] | behavior}, "1.37", strict=True)


def test_the_manifests_scale_by_every_stream() -> None:
    assert scaler.settings_with(STREAMS) == scaler.SETTINGS.read_text("utf-8")
    given = scaler.set_variables()
    assert scaler.scaled_object_of(STREAMS, given) == scaler.SCALED_OBJECT.read_text("utf-8")
    assert scaler.with_passwords_for(STREAMS) == scaler.WITH_PASSWORDS.read_text("utf-8")


def test_a_manifest_that_is_changed_is_named_and_another_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(scaler.FOLDER, tmp_path / "deploy")
    for name in ("SETTINGS", "SCALED_OBJECT", "WITH_PASSWORDS"):
        monkeypatch.setattr(scaler, name, copied / getattr(scaler, name).relative_to(scaler.FOLDER))
    monkeypatch.setattr(scaler, "FOLDER", copied)
    scaler.main()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(scaler, "STREAMS", (*STREAMS, EVENTS))
    scaler.main()
    assert [Path(line.split()[0]).name for line in capsys.readouterr().out.splitlines()] == [
        *("settings.env", "consumer-scaling.yaml", "kustomization.yaml")
    ]


def test_a_further_stream_gets_settings_and_a_trigger_that_logs_in() -> None:
    streams = (*STREAMS, EVENTS)
    added = scaler.settings_with(streams).removeprefix(scaler.SETTINGS.read_text("utf-8"))
    assert added.split() == [
        "EVENTS_TOPIC=events",
        "EVENTS_PARTITIONS=6",
        "EVENTS_REPLICATION=3",
        "EVENTS_GROUP_ID=events-consumer",
    ]
    given = scaler.set_variables() | dict(line.split("=") for line in added.split()) | {"EVENTS_PARTITIONS": "24"}
    scaling = msgspec.yaml.decode(scaler.scaled_object_of(streams, given))["spec"]
    assert scaling["maxReplicaCount"] == 24
    assert scaling["triggers"][-1]["metadata"]["topicFromEnv"] == "EVENTS_TOPIC"
    overlay = msgspec.yaml.decode(scaler.with_passwords_for(streams))
    paths = {path.split("/")[3] for path in added_to(overlay, "ScaledObject", "consumer")}
    assert paths == {str(number) for number, _ in enumerate(streams)}


@pytest.fixture(scope="module")
def overlay() -> Resource:
    decoded: Resource = msgspec.yaml.decode((SASL_FOLDER / "kustomization.yaml").read_bytes())
    return decoded


def added_to(overlay: Resource, kind: str, name: str) -> dict[str, Any]:
    """Return what the overlay adds to a resource, by path."""
    (patch,) = [each["patch"] for each in overlay["patches"] if each["target"] == {"kind": kind, "name": name}]
    operations = msgspec.yaml.decode(patch)
    assert {each["op"] for each in operations} == {"add"}
    return {each["path"]: each["value"] for each in operations}


def test_on_a_kafka_with_passwords_each_service_has_the_settings_that_it_needs(
    overlay: Resource, environment: dict[str, str], kustomization: Resource, tmp_path: Path, name: str
) -> None:
    (merged,) = overlay["configMapGenerator"]
    assert (merged["name"], merged["behavior"]) == (kustomization["configMapGenerator"][0]["name"], "merge")
    keys = tmp_path / "api-keys"
    keys.write_text("a-key-of-operators")
    variables = added_to(overlay, "Deployment", name)["/spec/template/spec/containers/0/env"]
    of_secret = {each["name"]: each["valueFrom"]["secretKeyRef"]["key"] for each in variables}
    assert of_secret == {"KAFKA_SASL_USERNAME": f"{name}-username", "KAFKA_SASL_PASSWORD": f"{name}-password"}
    given = environment | dict(each.split("=", 1) for each in merged["literals"]) | of_secret
    assert set(given) <= {*Settings.__struct_encode_fields__, *chain.from_iterable(map(variables_of, STREAMS))}
    settings = read_settings(given | {"API_KEY_FILE": str(keys)})
    assert (settings.uses_sasl, settings.uses_tls) == (True, True)


def test_keda_looks_at_the_lag_as_the_consumer_does(overlay: Resource) -> None:
    authentication = msgspec.yaml.decode((SASL_FOLDER / "keda-authentication.yaml").read_bytes())
    assert overlay["resources"] == ["../kubernetes", "keda-authentication.yaml"]
    assert (authentication["apiVersion"], authentication["kind"]) == ("keda.sh/v1alpha1", "TriggerAuthentication")
    references = authentication["spec"]["secretTargetRef"]
    assert {each["name"] for each in references} == {"people-over-kafka"}
    shown = {each["parameter"]: each["key"] for each in references}
    assert shown == {"username": "consumer-username", "password": "consumer-password", "ca": "ca.crt"}
    literals = dict(each.split("=", 1) for each in overlay["configMapGenerator"][0]["literals"])
    assert literals["KAFKA_SSL_CAFILE"].endswith(f"/{shown['ca']}")
    login = {
        "authenticationRef": {"name": authentication["metadata"]["name"]},
        "metadata/sasl": {"SCRAM-SHA-512": "scram_sha512"}[literals["KAFKA_SASL_MECHANISM"]],
        "metadata/tls": "enable",
    }
    assert added_to(overlay, "ScaledObject", "consumer") == {
        f"/spec/triggers/{number}/{path}": value for number, _ in enumerate(STREAMS) for path, value in login.items()
    }


def test_pods_reach_name_servers_and_the_kafka_of_the_settings_and_nothing_else(
    resources: Resources, overlay: Resource, environment: dict[str, str]
) -> None:
    given = [environment, dict(each.split("=", 1) for each in overlay["configMapGenerator"][0]["literals"])]
    ports = {int(each["KAFKA_BOOTSTRAP_SERVERS"].rpartition(":")[2]) for each in given}
    policy = resources["NetworkPolicy", "people-over-kafka"]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    names, kafka = policy["egress"]
    assert names == {"ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]}
    assert kafka == {"ports": [{"port": port} for port in sorted(ports)]}


def test_an_ingress_strips_the_prefix_that_its_service_knows_and_leads_to_it(of_ingress: Resources, name: str) -> None:
    component = msgspec.yaml.decode((INGRESS_FOLDER / "kustomization.yaml").read_bytes())
    (deployment,) = [
        each for one in component["patches"] if (each := msgspec.yaml.decode(one["patch"]))["metadata"]["name"] == name
    ]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["name"] == name
    settings = read_settings({each["name"]: each["value"] for each in container["env"]})
    ingress = of_ingress["Ingress", name]
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": name, "port": {"name": "http"}}
    rewritten = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/rewrite-target"].replace("$", "\\")
    for asked, passed_on in (("/", "/"), ("/a/b", "/a/b"), ("", "/")):
        found = re.match(path["path"], settings.root_path + asked)
        assert found is not None
        assert found.expand(rewritten) == passed_on
    assert re.match(path["path"], f"{settings.root_path}-2/") is None


def test_behind_an_ingress_the_page_finds_the_producer_and_no_other_host_name_leads_there(
    of_ingress: Resources, kustomization: Resource
) -> None:
    component = msgspec.yaml.decode((INGRESS_FOLDER / "kustomization.yaml").read_bytes())
    (merged,) = component["configMapGenerator"]
    assert (merged["name"], merged["behavior"]) == (kustomization["configMapGenerator"][0]["name"], "merge")
    settings = read_settings(dict(each.split("=", 1) for each in merged["literals"]))
    hosts = {rule["host"] for service in SERVICES for rule in of_ingress["Ingress", service]["spec"]["rules"]}
    assert hosts == {settings.allowed_hosts.split(",")[0]}
    (path,) = of_ingress["Ingress", "producer"]["spec"]["rules"][0]["http"]["paths"]
    assert path["path"].startswith(f"{settings.producer_url}(")


def test_an_ingress_passes_each_event_on_at_once_and_keeps_an_operator_at_one_consumer(of_ingress: Resources) -> None:
    annotations = of_ingress["Ingress", "consumer"]["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert annotations["nginx.ingress.kubernetes.io/affinity"] == "cookie"
    (path,) = of_ingress["Ingress", "consumer"]["spec"]["rules"][0]["http"]["paths"]
    assert path["path"].startswith(f"{annotations['nginx.ingress.kubernetes.io/session-cookie-path']}(")


def test_an_ingress_takes_bodies_of_any_length_and_repeats_no_call_that_a_silent_producer_may_still_do(
    of_ingress: Resources,
) -> None:
    annotations = of_ingress["Ingress", "producer"]["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == "0"
    assert annotations["nginx.ingress.kubernetes.io/proxy-next-upstream"] == "error"
