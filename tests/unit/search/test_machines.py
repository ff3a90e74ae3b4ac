"""The cluster files: Ray takes them, idle workers cost nothing, and nobody else is let in."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.session import get_session
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

FILES = [Path("cluster.yaml"), Path("experiments/clusters/on_premises.yaml")]


def prepared(file: Path) -> dict[str, Any]:
    """The file with Ray's defaults."""
    config: dict[str, Any] = prepare_config(yaml.safe_load(file.read_text()))
    return config


def commands(config: dict[str, Any]) -> list[str]:
    return [line for key, lines in config.items() if key.endswith("_commands") for line in lines]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_ray_takes_the_file(file: Path) -> None:
    validate_config(prepared(file))


def test_amazon_takes_the_machines() -> None:
    operation = get_session().get_service_model("ec2").operation_model("RunInstances")
    for node_type in prepared(FILES[0])["available_node_types"].values():
        request = {"MinCount": 1, "MaxCount": 1, **node_type["node_config"]}
        report = ParamValidator().validate(request, operation.input_shape)
        assert report.generate_report() == ""


@pytest.mark.parametrize("file", FILES, ids=str)
def test_nothing_listens_to_the_world_and_ray_asks_for_the_token(file: Path) -> None:
    config = prepared(file)
    assert "0.0.0.0" not in file.read_text()
    starts = [line for line in commands(config) if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert sum("--dashboard-host=127.0.0.1" in line for line in starts) == 1
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert config["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_prometheus_which_asks_for_no_token_has_no_pages(file: Path) -> None:
    starts = [line for line in commands(prepared(file)) if "ray start" in line]
    assert all("RAY_enable_metrics_collection=0" in line for line in starts)
    (head,) = [line for line in starts if "--head" in line]
    for name in ("AUTOSCALER", "DASHBOARD"):
        (port,) = re.findall(rf"{name}_METRIC_PORT=(\d+)", head)
        assert int(port) > 65535, "there would be such a port"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_whoever_works_on_the_head_has_its_tracking_server_and_token(file: Path) -> None:
    (profile,) = [line for line in prepared(file)["head_setup_commands"] if "echo 'export" in line]
    (start,) = [line for line in commands(prepared(file)) if "ray start --head" in line]
    for variable in ("RAY_AUTH_MODE=token", "MLFLOW_TRACKING_URI=http://127.0.0.1:5000"):
        assert variable in profile
        assert variable in start


def test_machines_of_ones_own_are_started_by_the_autoscaler_that_knows_their_head() -> None:
    aws, own = ("\n".join(prepared(file)["head_start_ray_commands"]) for file in FILES)
    assert "RAY_enable_autoscaler_v2=0" in own
    assert "autoscaler_v2" not in aws


def test_machines_on_aws_have_the_images_of_the_readmes_experiment() -> None:
    data = yaml.safe_load(Path("experiments/fashion_mnist.yaml").read_text())["data"]
    assert data["root"] == "/usr/share/datasets/fashion-mnist"
    assert any("dataset-fashion-mnist" in line for line in commands(prepared(FILES[0])))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_mlflow_listens_on_the_head_alone_and_asks_for_a_password(file: Path) -> None:
    config = prepared(file)
    assert any("tracking_server.sh" in line for line in config["head_start_ray_commands"])
    assert not any("mlflow server" in line for line in commands(config))
    script = re.sub(r"\\\n\s*", "", Path("experiments/clusters/tracking_server.sh").read_text())
    (server,) = re.findall(r"^ *setsid mlflow server .*$", script, re.MULTILINE)
    assert "--app-name basic-auth" in server
    assert "--host 127.0.0.1" in server
    assert '--allowed-hosts "127.0.0.1:$port,localhost:$port"' in server
    assert "--auth=peer" in script
    assert "listen_addresses=''" in script
    assert "export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in script


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_secret_stands_in_the_file(file: Path) -> None:
    assert not re.search(
        r"(?i)(password|secret|token|key)\w*\s*[:=]\s*['\"]?[A-Za-z0-9+/]{16,}", file.read_text()
    )


def test_the_head_runs_no_trials_and_workers_come_and_go_as_spot_instances() -> None:
    config = prepared(FILES[0])
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    for worker in types.values():
        assert worker["min_workers"] == 0
        assert worker["resources"]["GPU"] >= 1
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert config["provider"]["cache_stopped_nodes"] is False
    (start,) = [line for line in prepared(FILES[1])["head_start_ray_commands"] if "--head" in line]
    assert "--num-cpus=0 --num-gpus=0" in start


@pytest.mark.parametrize("file", FILES, ids=str)
def test_workers_share_their_gpus_through_mps(file: Path) -> None:
    (start,) = [line for line in prepared(file)["worker_start_ray_commands"] if "ray start" in line]
    assert start.index("nvidia-cuda-mps-control -d") < start.index("ray start")
    assert "CUDA_MPS_PIPE_DIRECTORY" in start
