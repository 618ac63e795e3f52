"""The chart, rendered with helm (or, where that cannot be had, with its template language) and
checked against the schemas of Kubernetes."""

import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from threadmill.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kubernetes_validate

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "threadmill"
DEBIANS_GO = Path("/usr/share/gocode")
OLDEST, NEWEST = "1.25", "1.33"
LEAST: dict[str, Any] = {
    "image": {"repository": "registry.example/threadmill"},
    "existingSecret": "keys",
    "files": {"url": "s3://bucket/files"},
}

Json = dict[str, Any]
Render = Callable[[Json], list[Json]]


class Refused(Exception):
    pass


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Render:
    folder = tmp_path_factory.mktemp("render")
    command = _helm() or _stand_in(folder)
    if command is None:
        pytest.skip(
            "there is neither helm nor Debian's golang-go and golang-github-masterminds-sprig-dev"
        )

    def rendered(values: Json) -> list[Json]:
        path = folder / "values.json"
        path.write_text(json.dumps(values))
        done = subprocess.run(command(path), capture_output=True, text=True)
        if done.returncode:
            raise Refused(done.stderr)
        return [one for one in yaml.safe_load_all(_without_notes(done.stdout)) if one is not None]

    return rendered


def _helm() -> Callable[[Path], list[str]] | None:
    if shutil.which("helm") is None:
        return None
    return lambda values: [
        *("helm", "template", "tm", str(CHART), "--namespace", "agents", "--values", str(values))
    ]


def _stand_in(folder: Path) -> Callable[[Path], list[str]] | None:
    sprig = DEBIANS_GO / "src/github.com/Masterminds/sprig"
    if shutil.which("go") is None or not sprig.exists():
        return None
    program = folder / "render"
    environment = {
        "GO111MODULE": "off",
        "GOPATH": str(DEBIANS_GO),
        "GOFLAGS": "",
        "GOCACHE": str(folder / "cache"),
    }
    subprocess.run(
        ["go", "build", "-o", program, Path(__file__).parent / "render" / "main.go"],
        env=os.environ | environment,
        check=True,
    )
    return lambda values: [str(program), str(CHART), str(values), "tm", "agents"]


def _without_notes(text: str) -> str:
    """helm leaves them out of what it renders; the stand-in shows that they can be."""
    parts = text.split("---\n")
    return "---\n".join(part for part in parts if not part.startswith("# Source: NOTES.txt"))


def of_kind(objects: list[Json], kind: str) -> list[Json]:
    return [one for one in objects if one["kind"] == kind]


MUCH: Json = {
    "image": {"repository": "registry.example/threadmill", "tag": "1.2.3"},
    "imagePullSecrets": [{"name": "registry"}],
    "secret": {
        "THREADMILL_DATABASE_URL": "postgresql://u:p#\"'{{@host/db",
        "THREADMILL_API_KEYS": "sk-a,sk-b",
    },
    "settings": {
        "THREADMILL_MODEL_BASE_URL": "http://model/v1",
        "THREADMILL_MAX_CONCURRENT_RUNS": "5",
    },
    "files": {"existingClaim": "files"},
    "api": {
        "extraArgs": ["--port", "8000"],
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    },
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "host": "threadmill.example",
        "tlsSecretName": "tls",
        "annotations": {"nginx.ingress.kubernetes.io/proxy-read-timeout": "900"},
    },
    "worker": {"autoscaling": {"enabled": True}},
}


@pytest.mark.parametrize("values", [LEAST, MUCH], ids=["least", "much"])
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_what_it_makes_is_valid(render: Render, values: Json, version: str) -> None:
    objects = render(values)
    assert {"Deployment", "Job", "Service", "PodDisruptionBudget"} <= {
        one["kind"] for one in objects
    }
    for one in objects:
        kubernetes_validate.validate(one, version, strict=True)


def test_the_values_fit_their_schema_and_others_do_not() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.validate(defaults | LEAST, schema)
    for wrong in (
        {"image": {"repository": ""}},
        {"replicas": 3},
        {"settings": {"THREADMILL_PORT": 8000}},
        {"worker": {"autoscaling": {"kind": "cron"}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(defaults | LEAST | wrong, schema)


def test_without_database_or_shared_files_it_says_what_is_missing(render: Render) -> None:
    with pytest.raises(Refused, match="existingSecret"):
        render(LEAST | {"existingSecret": ""})
    with pytest.raises(Refused, match=r"files\.url"):
        render(LEAST | {"files": {"url": ""}})
    with pytest.raises(Refused, match=r"ingress\.host"):
        render(LEAST | {"ingress": {"enabled": True}})


def test_no_pod_runs_as_root_or_writes_to_its_image(render: Render) -> None:
    objects = render(MUCH)
    workloads = of_kind(objects, "Deployment") + of_kind(objects, "Job")
    assert len(workloads) == 3
    for workload in workloads:
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["image"] == "registry.example/threadmill:1.2.3"
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_service_finds_the_api_alone_and_every_budget_its_own(render: Render) -> None:
    objects = render(LEAST)
    api, worker = sorted(of_kind(objects, "Deployment"), key=lambda one: one["metadata"]["name"])
    [service] = of_kind(objects, "Service")
    labels = {
        "api": api["spec"]["template"]["metadata"]["labels"],
        "worker": worker["spec"]["template"]["metadata"]["labels"],
        "migrate": of_kind(objects, "Job")[0]["spec"]["template"]["metadata"]["labels"],
    }

    def selected(selector: Json) -> list[str]:
        return [name for name, own in labels.items() if selector.items() <= own.items()]

    assert selected(service["spec"]["selector"]) == ["api"]
    budgets = of_kind(objects, "PodDisruptionBudget")
    assert [selected(one["spec"]["selector"]["matchLabels"]) for one in budgets] == [
        ["api"],
        ["worker"],
    ]
    for workload in (api, worker):
        selector = workload["spec"]["selector"]["matchLabels"]
        assert selector.items() <= workload["spec"]["template"]["metadata"]["labels"].items()


def test_the_secret_is_there_before_the_migration_and_that_before_the_rest(render: Render) -> None:
    objects = render(MUCH)
    [secret], [job] = of_kind(objects, "Secret"), of_kind(objects, "Job")
    assert secret["stringData"] == MUCH["secret"]
    weights = [int(one["metadata"]["annotations"]["helm.sh/hook-weight"]) for one in (secret, job)]
    assert weights == sorted(weights)
    assert weights[0] < weights[1]
    for one in (secret, job):
        assert one["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert not of_kind(render(LEAST), "Secret")


@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_workers_grow_with_the_age_of_the_queue(render: Render, kind: str) -> None:
    objects = render(LEAST | {"worker": {"autoscaling": {"enabled": True, "kind": kind}}})
    [worker] = [
        one for one in of_kind(objects, "Deployment") if "worker" in one["metadata"]["name"]
    ]
    assert "replicas" not in worker["spec"]
    text = json.dumps(objects)
    assert "threadmill_runs_oldest_queued_age_seconds" in text
    assert len(of_kind(objects, "HorizontalPodAutoscaler")) == (kind == "hpa")
    [scaled] = of_kind(objects, "ScaledObject") or of_kind(objects, "HorizontalPodAutoscaler")
    assert scaled["spec"]["scaleTargetRef"]["name"] == worker["metadata"]["name"]


def test_every_setting_that_it_names_exists(render: Render) -> None:
    for workload in of_kind(render(MUCH), "Deployment"):
        [container] = workload["spec"]["template"]["spec"]["containers"]
        for variable in container["env"]:
            field = variable["name"].removeprefix("THREADMILL_").lower()
            assert field in Settings.model_fields, variable
