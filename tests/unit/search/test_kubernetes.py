"""The search on Kubernetes and its image. Neither a cluster nor Docker is asked; but what the files
name is there, and nobody has more rights than it needs."""

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.specifiers import SpecifierSet

from search.cli.app import app
from search.experiment.reading import read_experiment

FILE = Path("experiments/clusters/kuberay.yaml")
DOCKERFILE = Path("experiments/clusters/Dockerfile")
TEXT = FILE.read_text()
DOCUMENTS = {each["kind"]: each for each in yaml.safe_load_all(TEXT)}
JOB = DOCUMENTS["RayJob"]["spec"]
CLUSTER = JOB["rayClusterSpec"]
(WORKERS,) = CLUSTER["workerGroupSpecs"]
PODS = {
    "head": CLUSTER["headGroupSpec"]["template"],
    "worker": WORKERS["template"],
    "mlflow": DOCUMENTS["Deployment"]["spec"]["template"],
}

# Of KubeRay 1.6: what a field is called that the file may have.
FIELDS = {
    "RayJob": {
        *("entrypoint", "metadata", "runtimeEnvYAML", "jobId", "submissionMode", "suspend"),
        *("shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "activeDeadlineSeconds"),
        *("backoffLimit", "rayClusterSpec", "clusterSelector", "submitterPodTemplate"),
    },
    "RayCluster": {
        *("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions"),
        *("headGroupSpec", "workerGroupSpecs", "gcsFaultToleranceOptions", "suspend"),
    },
    "autoscaler": {
        *("version", "idleTimeoutSeconds", "upscalingMode", "securityContext", "resources"),
        *("image", "imagePullPolicy", "env", "envFrom", "volumeMounts"),
    },
    "auth": {"mode", "secretName"},
    "head": {"rayStartParams", "template", "serviceType", "labels", "resources"},
    "workers": {
        *("groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds"),
        *("rayStartParams", "template", "numOfHosts", "labels", "resources"),
    },
}


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod in PODS.items():
        for container in pod["spec"]["containers"]:
            yield name, container


def found(key: str, value: Any = DOCUMENTS) -> Iterator[Any]:
    """What stands below a key, wherever it is."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name == key:
                yield each
            yield from found(key, each)
    elif isinstance(value, list):
        for each in value:
            yield from found(key, each)


def test_kuberay_knows_the_fields() -> None:
    assert DOCUMENTS["RayJob"]["apiVersion"] == "ray.io/v1"
    for name, there in {
        "RayJob": JOB,
        "RayCluster": CLUSTER,
        "autoscaler": CLUSTER["autoscalerOptions"],
        "auth": CLUSTER["authOptions"],
        "head": CLUSTER["headGroupSpec"],
        "workers": WORKERS,
    }.items():
        assert there.keys() <= FIELDS[name], name
    for params in found("rayStartParams"):
        assert all(isinstance(value, str) for value in params.values())


def test_the_entrypoint_is_a_command_that_can_be_launched() -> None:
    program, command, *words = JOB["entrypoint"].split()
    assert (program, command) == ("kdsearch", "launch")
    context = typer.main.get_command(app).commands[command].make_context(command, list(words))
    asked = context.params
    assert asked["address"] == "auto"
    # By these the other commands find it.
    assert JOB["metadata"] == {
        "kdsearch.search": asked["name"],
        "kdsearch.storage": asked["storage"],
    }
    home = "/home/kdsearch/"
    assert str(asked["file"]).startswith(home)
    experiment = read_experiment(Path(str(asked["file"])[len(home) :]), asked["overrides"])
    assert experiment.search.concurrent_trials == WORKERS["maxReplicas"], "there is none at first"
    stopping = yaml.safe_load(JOB["runtimeEnvYAML"])["env_vars"]
    assert stopping == {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "120"}


def test_gpu_workers_come_and_go_and_the_head_runs_no_trials() -> None:
    assert CLUSTER["enableInTreeAutoscaling"] is True
    assert CLUSTER["autoscalerOptions"]["version"] == "v2"
    assert (WORKERS["replicas"], WORKERS["minReplicas"]) == (0, 0)
    assert WORKERS["maxReplicas"] > 1
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for name, container in containers():
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) == (name == "worker")
        assert "memory" in limits
        if name != "mlflow":  # Ray takes what it sees for its own
            assert requests == limits
    assert all(pod["spec"]["restartPolicy"] == "Never" for pod in (PODS["head"], PODS["worker"]))


def test_the_versions_are_the_tested_ones() -> None:
    pinned = re.search(r"^ray==(.+)$", Path("constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert CLUSTER["rayVersion"] == pinned[1]
    version = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for _, container in containers()}
    assert images == {f"YOUR-REGISTRY/kdsearch:{version}", "postgres:17"}


def test_secrets_are_made_beforehand_and_none_stands_in_the_file() -> None:
    comments = "\n".join(line for line in TEXT.splitlines() if line.startswith("#"))
    comments = re.sub(r" \\\n#\s*", " ", comments)
    made = {
        name: set(re.findall(r"--from-(?:literal|file)=(\w+)=", rest))
        for name, rest in re.findall(r"kubectl create secret generic (\S+)(.*)", comments)
    }
    used = {each["name"]: {each["key"]} for each in found("secretKeyRef")}
    for each in found("secretKeyRef"):
        assert each["key"] in made[each["name"]]
        used[each["name"]].add(each["key"])
    for each in found("secretRef"):
        used[each["name"]] = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    used[CLUSTER["authOptions"]["secretName"]] = {"auth_token"}
    assert CLUSTER["authOptions"]["mode"] == "token"
    assert used == made
    assert not re.search(
        r"(?i)(password|secret|token|key)\w*\s*[:=]\s*['\"]?[A-Za-z0-9+/]{16,}", TEXT
    )


def test_nobody_is_root_and_only_the_autoscaler_talks_to_kubernetes() -> None:
    user = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE.read_text(), re.MULTILINE)
    for name, pod in PODS.items():
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert [(str(context["runAsUser"]), str(context["runAsGroup"]))] == user
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        # KubeRay gives the head, beside whose driver the autoscaler runs, an account for that.
        assert "serviceAccountName" not in pod["spec"]
        assert pod["spec"].get("automountServiceAccountToken", True) is (name == "head")
    locked = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for _, container in containers():
        assert container["securityContext"].items() >= locked.items()
    assert CLUSTER["autoscalerOptions"]["securityContext"] == locked


def test_mlflow_asks_for_a_password_and_only_the_searchs_pods_reach_it() -> None:
    database, mlflow = PODS["mlflow"]["spec"]["containers"]
    assert database["args"] == ["-c", "listen_addresses="], "a socket alone"
    assert mlflow["command"] == ["mlflow", "server"]
    asked = dict(word.removeprefix("--").split("=", 1) for word in mlflow["args"])
    assert asked["app-name"] == "basic-auth"
    name = DOCUMENTS["Service"]["metadata"]["name"]
    assert asked["allowed-hosts"].split(",")[0] == f"{name}:{asked['port']}"
    settings = {each["name"]: each for each in mlflow["env"]}
    assert settings["MLFLOW_AUTH_ADMIN_PASSWORD"]["valueFrom"]["secretKeyRef"] == {
        "name": "kdsearch-mlflow",
        "key": "password",
    }
    head = {each["name"]: each for each in PODS["head"]["spec"]["containers"][0]["env"]}
    assert head["MLFLOW_TRACKING_URI"]["value"] == f"http://{name}:{asked['port']}"
    labels = PODS["mlflow"]["metadata"]["labels"]
    assert DOCUMENTS["Service"]["spec"]["selector"] == labels
    policy = DOCUMENTS["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    (rule,) = policy["ingress"]
    (admitted,) = rule["from"]
    for pod in ("head", "worker"):
        assert admitted == {"podSelector": {"matchLabels": PODS[pod]["metadata"]["labels"]}}
    assert rule["ports"] == [{"protocol": "TCP", "port": int(asked["port"])}]


def test_whatever_is_mounted_is_there() -> None:
    files = {DOCUMENTS["ConfigMap"]["metadata"]["name"]}
    claims = {DOCUMENTS["PersistentVolumeClaim"]["metadata"]["name"]}
    for pod in PODS.values():
        volumes = {each["name"] for each in pod["spec"]["volumes"]}
        for container in pod["spec"]["containers"]:
            assert {each["name"] for each in container["volumeMounts"]} <= volumes
        for volume in pod["spec"]["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            elif "configMap" in volume:
                known = volume["configMap"]["name"] in files
                assert known or volume["configMap"]["optional"]


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with what follows it."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", "\n").split("\n")
    joined: list[str] = []
    for line in whole:
        if re.match(r"[A-Z]+ ", line):
            joined.append(line)
        elif line.strip():
            joined[-1] += f"\n{line}"
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined]


def test_the_image_is_made_of_files_that_are_there_and_that_docker_may_see() -> None:
    sources = [name for word, rest in steps() if word == "COPY" for name in rest.split()[:-1]]
    kept = re.findall(r"^!(.+)$", Path(".dockerignore").read_text(), re.MULTILINE)
    assert sorted(sources) == sorted(kept)
    assert all(Path(name).exists() for name in sources)
    project = tomllib.loads(Path("pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert all(any(fnmatch(name, pattern) for name in sources) for pattern in packages)
    (base,) = [rest for word, rest in steps() if word == "FROM"]
    python = re.match(r"python:([\d.]+)-", base)
    assert python is not None
    assert python[1] in SpecifierSet(project["project"]["requires-python"])
    installs = [rest for word, rest in steps() if word == "RUN" and "pip install" in rest]
    assert all("-c constraints.txt" in rest for rest in installs)
    (extras,) = re.findall(r"'\.\[(.+)\]'", installs[-1])
    assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()


def test_the_image_runs_the_quickstart_as_the_readme_does_without_root() -> None:
    *_, (word, last) = steps()
    assert word == "CMD"
    command = " ".join(json.loads(last))
    assert f"\n{command}\n" in Path("README.md").read_text()
    assert Path(command.split()[-1]).exists()
    words = [word for word, _ in steps()]
    assert words[-2:] == ["USER", "CMD"]
    assert ("WORKDIR", "/home/kdsearch") in steps()


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda", "install --no-cache-dir -c constraints.txt torch torchvision"),
        (
            "cpu",
            "install --no-cache-dir -c constraints.txt --extra-index-url "
            "https://download.pytorch.org/whl/cpu torch torchvision",
        ),
        ("gpu", "DEVICE is gpu, but must be cuda or cpu"),
    ],
)
def test_one_argument_chooses_cuda_or_the_cpu(device: str, said: str) -> None:
    (step,) = [rest for word, rest in steps() if word == "RUN" and "$DEVICE" in rest]
    # As Docker hands it to the shell, where a backslash had ended each line.
    script = 'pip() { echo "$@"; }\n' + step.replace("\n", " ")
    ran = subprocess.run(
        ["sh", "-c", script], env={"DEVICE": device}, capture_output=True, text=True, check=False
    )
    assert (ran.stdout + ran.stderr).strip() == said
    assert (ran.returncode == 0) == (device != "gpu")
