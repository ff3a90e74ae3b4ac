"""The cluster file is one that Ray takes."""

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config


def test_the_cluster_file_passes_rays_own_check() -> None:
    config = prepare_config(yaml.safe_load(Path("cluster.yaml").read_text()))
    validate_config(config)
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])
