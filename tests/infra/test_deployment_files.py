"""Images, compose, Kubernetes and Prometheus: valid by published schemas, and what they name is there.

Nothing here starts a container. What an image would run is run as a plain command instead.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipelines.triggers.config import parse_config as parse_triggers
from serving.deploy.config import load_config, parse_config

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
DOCKERFILE = (INFRA / "images/Dockerfile").read_text()
KUBERNETES = "1.35"
TORCH = {"torch", "torchvision", "timm", "triton", "onnxscript"}
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
sys.argv = {argv}
import runpy
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


# images


def needs(image: str, device: str) -> list[Requirement]:
    command = [sys.executable, str(INFRA / "images/requirements.py"), image, device]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [Requirement(line) for line in lines]


def closure(wanted: list[Requirement]) -> set[str]:
    """What pip would install, by what is installed here."""
    found: set[str] = set()
    left = [(each.name, frozenset(each.extras)) for each in wanted]
    while left:
        name, extras = left.pop()
        found.add(canonicalize_name(name))
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # the other wheel of ONNX Runtime
            continue
        for each in map(Requirement, requires):
            holds = each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in {*extras, ""})
            if holds and canonicalize_name(each.name) not in found:
                left.append((each.name, frozenset(each.extras)))
    return found


def test_the_servers_image_is_slim() -> None:
    cpu, gpu = closure(needs("serving", "cpu")), closure(needs("serving", "gpu"))
    assert not cpu & TORCH and not gpu & TORCH
    assert "onnxruntime" in cpu and "onnxruntime-gpu" not in cpu
    assert "onnxruntime-gpu" in gpu and "onnxruntime" not in gpu


@pytest.mark.parametrize("image", ["serving", "training", "mlflow"])
def test_what_an_image_installs_is_locked(image: str) -> None:
    lock = {canonicalize_name(Requirement(line).name) for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert closure(needs(image, "cpu")) <= lock
    assert not {"pytest", "mkdocs", "ruff"} & closure(needs(image, "cpu"))


def test_the_dockerfile_is_well_formed_and_its_images_are_not_roots() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or "hadolint"
    done = subprocess.run([hadolint, str(INFRA / "images/Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for target in ("mlflow", "training", "serving"):
        assert "\nUSER 1000:1000\n" in stage(target)
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+|python@sha256:[0-9a-f]{64}", base)


def stage(target: str) -> str:
    return re.findall(rf"^FROM \w+ AS {target}$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)[0]


def test_what_is_copied_into_images_is_sent_to_the_builder() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    for name in " ".join(copied).split():
        assert any(name == each or name.startswith(f"{each}/") for each in sent), name
        assert (ROOT / name).exists() or name.startswith("build/"), name


@pytest.mark.parametrize(
    ("target", "shown"),
    [("serving", "a file such as infra/serving.yaml"), ("training", None), ("mlflow", "--backend-store-uri")],
)
def test_an_images_entry_point_is_a_command_that_runs(target: str, shown: str | None, tmp_path: Path) -> None:
    entry, first = (
        json.loads(re.findall(rf"^{word} (\[.*\])$", stage(target), re.M)[0]) for word in ("ENTRYPOINT", "CMD")
    )
    if entry == ["python", "-m"]:
        assert importlib.util.find_spec(first[0]) is not None
        return
    module, blocked = ("csr", TORCH | {"onnx", "safetensors"}) if entry == ["csr"] else (entry[0], set())
    argv = [*entry, first[0], "--help"]
    code = BLOCKED.format(blocked=blocked, argv=argv, module=module)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0 and shown is not None and shown in done.stdout, done.stderr
    for option in (word for word in first[1:] if word.startswith("--")):
        assert option in done.stdout


# compose

COMPOSE = yaml.safe_load((INFRA / "compose/compose.yaml").read_text())


def test_compose_is_valid_by_the_published_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(INFRA / "compose/compose.yaml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_compose_has_what_it_names() -> None:
    services = COMPOSE["services"]
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        assert {each["source"] for each in service.get("configs", [])} <= set(COMPOSE["configs"])
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
        assert set(service.get("networks", [])) <= set(COMPOSE["networks"])
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            own = source in COMPOSE["volumes"] or source.startswith("../../build/")
            assert own or (INFRA / "compose" / source).exists(), source
        if "build" in service:
            assert service["build"]["target"] in targets
            assert (INFRA / "compose" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        else:
            assert re.search(r":\S*\d", service["image"]), f"{name}: no exact tag"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "nothing listens to strangers"
    for config in COMPOSE["configs"].values():
        assert "content" in config or (INFRA / "compose" / config["file"]).is_file()


def test_compose_names_variables_that_the_script_makes(tmp_path: Path) -> None:
    shutil.copy(INFRA / "compose/environment.sh", tmp_path)
    for said in ("made", "is there already"):
        done = subprocess.run(["bash", str(tmp_path / "environment.sh")], capture_output=True, text=True, check=True)
        assert said in done.stdout
    made = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines())
    used = set(re.findall(r"\$\{(\w+)", (INFRA / "compose/compose.yaml").read_text()))
    used |= {secret["environment"] for secret in COMPOSE["secrets"].values()}
    assert used == set(made)
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    required = set(re.findall(r"\$\{(\w+):\?", (INFRA / "compose/compose.yaml").read_text()))
    assert all(made[name] for name in required)
    assert len({made[name] for name in required}) == len(required)


def test_configurations_of_compose_are_ones() -> None:
    for name in ("serving", "serving-triton"):
        load_config(INFRA / f"compose/{name}.yaml")
    triggers = yaml.safe_load(COMPOSE["configs"]["triggers"]["content"].replace("${GITHUB_REPOSITORY:?}", "a/b"))
    assert parse_triggers(triggers).receiver is not None
    routes = yaml.safe_load((INFRA / "compose/alertmanager.yml").read_text())
    (hook,) = routes["receivers"][1]["webhook_configs"]
    assert hook["url"].endswith(":8090/webhooks/alertmanager")
    named = set(re.findall(r"Csr\w+", routes["route"]["routes"][0]["matchers"][0]))
    assert named == set(parse_triggers({"github": {"repository": "a/b"}}).receiver.alertmanager.alerts)  # type: ignore[union-attr]


# Kubernetes


def documents() -> Iterator[dict[str, Any]]:
    folder = INFRA / "kubernetes/base"
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        yield from yaml.safe_load_all((folder / name).read_text())


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in documents() if each["kind"] == kind}


def pods(content: Any) -> Iterator[dict[str, Any]]:
    """Every pod template, also those inside of KubeRay's kinds."""
    if isinstance(content, dict):
        if "containers" in content.get("spec", {}):
            yield content
        for value in content.values():
            yield from pods(value)
    elif isinstance(content, list):
        for value in content:
            yield from pods(value)


def test_manifests_are_valid_by_kubernetes_published_schemas() -> None:
    """KubeRay's and External Secrets' kinds are theirs; the pods in them are Kubernetes' own."""
    for each in documents():
        if each["apiVersion"].partition("/")[0] not in ("ray.io", "external-secrets.io"):
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
        for pod in pods(each):
            template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "a"}, "template": pod}
            kubernetes_validate.validate(template, KUBERNETES, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        broken = {"metadata": {}, "spec": {"containers": [{"name": "a", "imag": "b"}]}}
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "a"}, "template": broken}
        kubernetes_validate.validate(template, KUBERNETES, strict=True)


def test_pods_are_nobody_and_may_nothing() -> None:
    found = [pod["spec"] for each in documents() for pod in pods(each)]
    assert len(found) == 9
    for spec in found:
        assert spec["securityContext"]["runAsNonRoot"] and spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["name"] == "submitter" or "memory" in container["resources"]["limits"]


def test_secrets_and_volumes_that_pods_name_are_there() -> None:
    secrets = set(of_kind("ExternalSecret"))
    used: set[str] = set()
    for pod in (pod["spec"] for each in documents() for pod in pods(each)):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= set(volumes)
            used |= {each["secretRef"]["name"] for each in container.get("envFrom", ())}
        for volume in volumes.values():
            used |= {volume["secret"]["secretName"]} if "secret" in volume else set()
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or claim in of_kind("PersistentVolumeClaim")
    assert used | {"csr-redis"} == secrets
    assert not of_kind("Secret"), "none is written down"


def test_the_ray_service_is_given_a_configuration_of_the_server() -> None:
    for file in (INFRA / "kubernetes/base/serving.yaml", INFRA / "kubernetes/overlays/gpu/serving.yaml"):
        loaded = yaml.safe_load(file.read_text())
        text = loaded[0]["value"] if isinstance(loaded, list) else loaded["spec"]["serveConfigV2"]
        (app,) = yaml.safe_load(text)["applications"]
        assert app["import_path"] == "serving.app:build"
        config = parse_config(app["args"])
        assert config.model.alias == "champion"
        assert (config.engine.device, config.replicas.gpus) == (("cuda", 1) if "gpu" in file.parts else ("cpu", 0))
        mounted = of_kind("RayService")["csr-serving"]["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
        (keys,) = (each for each in mounted["containers"][0]["volumeMounts"] if each["name"] == "keys")
        assert str(config.store.ledger_key_file.parent) == keys["mountPath"] == str(config.dicom.salt_file.parent)


def test_ray_is_the_version_that_is_locked() -> None:
    (ray,) = re.findall(r"^ray==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    for file in (INFRA / "kubernetes/base").glob("*.yaml"):
        assert set(re.findall(r"rayVersion: (\S+)", file.read_text())) <= {ray}


def test_the_weekly_retraining_is_the_one_by_hand() -> None:
    once, weekly = of_kind("RayJob")["csr-retrain"], of_kind("RayCronJob")["csr-retrain-weekly"]
    assert weekly["spec"]["jobTemplate"] == once["spec"]
    patch, other = (
        (INFRA / f"kubernetes/overlays/gpu/{name}.yaml").read_text() for name in ("retrain", "retrain-weekly")
    )
    assert other == patch.replace("path: /spec/", "path: /spec/jobTemplate/")


def test_nothing_passes_that_no_policy_names() -> None:
    policies = of_kind("NetworkPolicy")
    closed = policies.pop("deny-all")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    labels = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]
        for each in documents()
        for pod in pods(each)
        if "metadata" in pod
    }
    chosen = {
        policy["spec"]["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/component")
        for policy in policies.values()
    }
    assert labels <= chosen
    for name, policy in policies.items():
        for rule in policy["spec"].get("egress", ()):
            open_to_all = "to" not in rule
            assert not open_to_all or [port["port"] for port in rule["ports"]] == [443], name
        assert all("from" in rule for rule in policy["spec"].get("ingress", ())), name


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_overlays_patch_what_is_there(overlay: str) -> None:
    folder = INFRA / "kubernetes/overlays" / overlay
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    used = {each["image"] for doc in documents() for pod in pods(doc) for each in pod["spec"]["containers"]}
    assert {each["name"] for each in content["images"]} == used
    for patch in content.get("patches", ()):
        target = of_kind(patch["target"]["kind"])[patch["target"]["name"]]
        for step in yaml.safe_load((folder / patch["path"]).read_text()):
            *parents, last = (part.replace("~1", "/") for part in step["path"].strip("/").split("/"))
            place: Any = target
            for part in parents:
                place = place[int(part) if isinstance(place, list) else part]
            assert (last in place) == (step["op"] == "replace"), step["path"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed; it renders the overlays")
@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_overlays_render(overlay: str) -> None:
    command = ["kubectl", "kustomize", str(INFRA / "kubernetes/overlays" / overlay)]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    images = set(re.findall(r"image: (\S+)", rendered))
    assert images and all(re.fullmatch(rf"ghcr\.io/owner/name/\w+:[\d.]+-{overlay}", image) for image in images)


# Prometheus


def promtool(*arguments: str) -> None:
    assert shutil.which("promtool"), "apt-get install prometheus"
    done = subprocess.run(["promtool", *arguments], cwd=INFRA, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_not_before() -> None:
    promtool("test", "rules", "prometheus/alerts_test.yml")
    tried = (INFRA / "prometheus/alerts_test.yml").read_text()
    rules = yaml.safe_load((INFRA / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    assert all(f"alertname: {rule['alert']}" in tried for rule in rules)


def test_prometheus_takes_its_configurations(tmp_path: Path) -> None:
    promtool("check", "config", "--syntax-only", "prometheus/prometheus.yml")
    promtool("check", "config", "--syntax-only", "compose/prometheus.yml")
