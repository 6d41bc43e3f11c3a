"""The files in cluster/ are what Ray and KubeRay accept, open nothing to the world, and fit the recipes."""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from rayvideo import capacity
from rayvideo.recipe import load_recipe

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
RAY_UP = ("aws", "gcp")
GROUPS = {"trainers": "trainer", "judges": "judge", "data": "data"}
RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))
TEXTS = {
    path.relative_to(CLUSTER).as_posix(): path.read_text() for path in sorted(CLUSTER.rglob("*")) if path.is_file()
}


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load(TEXTS[name])


def node_types(name: str) -> dict[str, dict[str, Any]]:
    """Group -> what Ray's autoscaler makes of it, as it does on a real cluster."""
    if name in RAY_UP:
        config = prepare_config(load(f"{name}.yaml"))
        validate_config(config)
    else:
        resource = load("kuberay/raycluster.yaml")
        resource["metadata"]["namespace"] = "default"
        config = _derive_autoscaling_config_from_ray_cr(resource)
    return config["available_node_types"]


def values(tree: Any, key: str) -> Iterator[Any]:
    """Everything that stands under `key` anywhere in a tree."""
    if isinstance(tree, dict):
        yield from (value for name, value in tree.items() if name == key)
        tree = list(tree.values())
    for value in tree if isinstance(tree, list) else ():
        yield from values(value, key)


@pytest.mark.parametrize("name", [*RAY_UP, "kuberay"])
def test_each_group_starts_from_nothing_and_has_its_resource(name):
    groups = node_types(name)
    for group, resource in GROUPS.items():
        kind = groups[group]
        assert kind["min_workers"] == 0 < kind["max_workers"]
        # One for each GPU, or for each CPU where there is none, so that a part that asks for 1 of both fits as often.
        assert kind["resources"][resource] == kind["resources"].get("GPU", kind["resources"]["CPU"])
        assert not (set(GROUPS.values()) - {resource}) & kind["resources"].keys()
    (head,) = groups.keys() - GROUPS.keys()
    assert groups[head]["resources"]["CPU"] == 0  # no task of a job lands beside the driver and MLflow


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
@pytest.mark.parametrize("name", [*RAY_UP, "kuberay"])
def test_every_part_of_a_recipe_that_names_groups_fits_on_a_node(name, path):
    recipe = load_recipe(path)
    kinds = [kind["resources"] for kind in node_types(name).values()]
    assert capacity.custom_resources(recipe) <= set(GROUPS.values())
    if capacity.custom_resources(recipe):
        for option, wanted in capacity.reservations(recipe).items():
            assert any(all(amount <= kind.get(key, 0) for key, amount in wanted.items()) for kind in kinds), option


def test_the_cluster_recipe_is_the_paper_s_but_for_places_and_reservations():
    here, there = (
        load_recipe(ROOT / f"jobs/recipes/modelscope-1.7b{name}.yaml").model_dump(mode="json")
        for name in ("", "-cluster")
    )
    own = ("encoder_gpus", "decode_resources", "encoder_resources", "resources", "gpus_per_worker", "num_gpus")
    moved = ("manifest", "root", "checkpoint", "in_domain", "new", "non")

    def strip(tree: Any, shared: str) -> Any:
        if isinstance(tree, dict):
            kept = {key: value for key, value in tree.items() if key not in (*own, "load_timeout_s", "storage")}
            return {
                key: value.removeprefix(shared) if key in moved and value else strip(value, shared)
                for key, value in kept.items()
            }
        return [strip(value, shared) for value in tree] if isinstance(tree, list) else tree

    assert strip(there, "/shared/") == strip(here, "")


def test_versions_are_those_of_the_constraints():
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert f"FROM rayproject/ray:{pinned['ray']}-py311-gpu\n" in TEXTS["Dockerfile"]
    image = f"registry.example.com/rayvideo:{version[1]}-ray{pinned['ray']}"
    found = {name: set(re.findall(r"\S+/rayvideo:\S+", text)) for name, text in TEXTS.items()}
    images = {"Dockerfile", "aws.yaml", "gcp.yaml", *(name for name in TEXTS if name.startswith("kuberay/"))}
    assert found == {name: {image} if name in images else set() for name in TEXTS}
    assert load("kuberay/raycluster.yaml")["spec"]["rayVersion"] == pinned["ray"]


def test_nothing_is_open_to_the_world():
    for name, text in TEXTS.items():
        for network in re.findall(r"(?:cidr|ranges|range)[ =:]+([\d.]+/\d+)", text, re.IGNORECASE):
            assert ipaddress.ip_network(network).is_private, name
        assert not re.search(
            r"\b(0\.0\.0\.0/0|LoadBalancer|NodePort|hostNetwork|hostPort|Ingress\b)",
            text.replace("policyTypes: [Ingress]", ""),
        ), name
    aws, gcp = (prepare_config(load(f"{name}.yaml")) for name in RAY_UP)
    for kind in aws["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"]  # or Ray makes a group that lets everybody ssh
    for group, kind in gcp["available_node_types"].items():
        (interface,) = kind["node_config"]["networkInterfaces"]  # or Ray takes the network "default"
        assert ("accessConfigs" in interface) == (group == "head")
    for config in (aws, gcp):
        (start,) = (command for command in config["head_start_ray_commands"] if "ray start" in command)
        assert "--dashboard-host=127.0.0.1" in start
        assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
        assert "/home/ray/.ray/auth_token" in config["file_mounts"]
    services = list(yaml.safe_load_all(TEXTS["kuberay/services.yaml"]))
    assert {s["spec"]["type"] for s in services if s["kind"] == "Service"} == {"ClusterIP"}
    guarded = [s["spec"]["podSelector"]["matchLabels"] for s in services if s["kind"] == "NetworkPolicy"]
    assert guarded == [{"ray.io/cluster": "rayvideo"}, {"app": "mlflow"}]


@pytest.mark.parametrize("name", ["kuberay/raycluster.yaml", "kuberay/rayjob.yaml", "kuberay/services.yaml"])
def test_pods_run_as_a_plain_user_with_limits(name):
    for document in yaml.safe_load_all(TEXTS[name]):
        pods = [pod for key in ("template", "submitterPodTemplate") for pod in values(document, key)]
        assert pods or document["kind"] in ("PersistentVolumeClaim", "Service", "NetworkPolicy")
        for pod in (pod["spec"] for pod in pods):
            assert pod["securityContext"]["runAsNonRoot"]
            for container in pod["containers"]:
                assert not container["securityContext"]["allowPrivilegeEscalation"]
                assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"] or (
                    container["name"] == "mlflow"
                )
            assert "nodePort" not in json.dumps(pod)


def closed(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


# The part of KubeRay's ray.io/v1 schema (1.6) that the files use; KubeRay's own are a megabyte.
TEXT, WHOLE, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
MAP_OF_TEXT = {"type": "object", "additionalProperties": TEXT}
AMOUNTS = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
RESERVED = closed({"requests": AMOUNTS, "limits": AMOUNTS}, ("requests", "limits"))
CONTAINER = closed(
    {
        "name": TEXT,
        "image": TEXT,
        "ports": {"type": "array", "items": closed({"name": TEXT, "containerPort": WHOLE}, ("containerPort",))},
        "resources": RESERVED,
        "env": {"type": "array", "items": closed({"name": TEXT, "value": TEXT}, ("name", "value"))},
        "securityContext": {"type": "object"},
        "volumeMounts": {"type": "array", "items": closed({"name": TEXT, "mountPath": TEXT}, ("name", "mountPath"))},
    },
    ("name", "image", "resources"),
)
POD = closed(
    {
        "spec": closed(
            {
                "nodeSelector": MAP_OF_TEXT,
                "tolerations": {"type": "array"},
                "terminationGracePeriodSeconds": WHOLE,
                "restartPolicy": {"const": "Never"},
                "securityContext": {"type": "object"},
                "containers": {"type": "array", "minItems": 1, "items": CONTAINER},
                "volumes": {"type": "array"},
            },
            ("containers",),
        )
    },
    ("spec",),
)
GROUP = {"resources": MAP_OF_TEXT, "rayStartParams": MAP_OF_TEXT, "template": POD}
RAY_CLUSTER = closed(
    {
        "rayVersion": TEXT,
        "authOptions": closed({"mode": {"enum": ["disabled", "token"]}}),
        "enableInTreeAutoscaling": FLAG,
        "autoscalerOptions": closed(
            {"version": {"enum": ["v1", "v2"]}, "idleTimeoutSeconds": WHOLE, "resources": RESERVED}
        ),
        "headGroupSpec": closed({**GROUP, "serviceType": {"const": "ClusterIP"}, "enableIngress": FLAG}, ("template",)),
        "workerGroupSpecs": {
            "type": "array",
            "items": closed(
                {**GROUP, "groupName": TEXT, "replicas": WHOLE, "minReplicas": WHOLE, "maxReplicas": WHOLE},
                ("groupName", "minReplicas", "maxReplicas", "template", "rayStartParams"),
            ),
        },
    },
    ("rayVersion", "headGroupSpec", "workerGroupSpecs"),
)
RAY_JOB = closed(
    {
        "clusterSelector": closed({"ray.io/cluster": TEXT}, ("ray.io/cluster",)),
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},  # SidecarMode excludes a selector
        "submitterConfig": closed({"backoffLimit": WHOLE}),
        "runtimeEnvYAML": TEXT,
        "entrypoint": TEXT,
        "submitterPodTemplate": POD,
    },
    ("clusterSelector", "entrypoint"),
)


@pytest.mark.parametrize(("kind", "spec"), [("RayCluster", RAY_CLUSTER), ("RayJob", RAY_JOB)])
def test_kuberay_takes_them(kind, spec):
    document = load(f"kuberay/{kind.lower()}.yaml")
    schema = closed(
        {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": {"const": kind},
            "metadata": {"type": "object"},
            "spec": spec,
        },
        ("apiVersion", "kind", "metadata", "spec"),
    )
    jsonschema.validate(document, schema)
    broken = deepcopy(document)
    broken["spec"]["workerGroupSpec"] = []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_the_kubernetes_job_starts_a_job_of_ours_on_the_cluster_of_ours():
    job, cluster = load("kuberay/rayjob.yaml")["spec"], load("kuberay/raycluster.yaml")
    assert job["clusterSelector"]["ray.io/cluster"] == cluster["metadata"]["name"]
    python, script, option, recipe, *_ = job["entrypoint"].split()
    assert (python, option) == ("python", "--recipe")
    assert (ROOT / script).is_file()
    assert (ROOT / recipe).is_file()
    folder = yaml.safe_load(job["runtimeEnvYAML"])["working_dir"]
    assert f"WORKDIR {folder}\n" in TEXTS["Dockerfile"]


def test_ray_takes_the_runtime_environment():
    packages = RuntimeEnv(**load("runtime-env.yaml")).pip_config()["packages"]
    # pip fills in the folder, in which the upload lies on each node.
    assert packages == [
        "--constraint ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt",
        "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}",
    ]


def test_the_image_is_not_root_and_has_what_jobs_read():
    text = TEXTS["Dockerfile"]
    assert re.findall(r"^USER (\w+)", text, re.MULTILINE) == ["ray"]
    for source in re.findall(r"^COPY --chown=ray:users (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split()), source


def test_a_submitted_job_takes_code_and_weights_along_and_nothing_else(tmp_path: Path):
    tree = tmp_path / "tree"
    for name in ("rayvideo", "jobs", "cluster", "docs", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".rayignore", ".gitignore", "constraints.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    unwanted = (
        ".git/HEAD",
        ".venv/bin/python",
        "runs/mlflow.db",
        ".cluster/log",
        ".mypy_cache/a",
        "rayvideo.egg-info/a",
    )
    for name in unwanted:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("x")
    create_package(str(tree), tmp_path / "package.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = set(package.namelist())
    weights = {f.relative_to(ROOT).as_posix() for f in (ROOT / "rayvideo/menagerie/weights").rglob("*") if f.is_file()}
    assert {"jobs/finetune.py", "rayvideo/recipe.py", "constraints.txt", "cluster/runtime-env.yaml", *weights} <= names
    assert {name.split("/")[0] for name in names} <= {
        *("rayvideo", "jobs", "cluster"),
        *(".rayignore", ".gitignore", "constraints.txt", "pyproject.toml", "README.md", "LICENSE"),
    }
    assert (tmp_path / "package.zip").stat().st_size < 30 * 2**20
