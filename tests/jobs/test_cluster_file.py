"""`cluster.yaml`, which brings a cluster up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

import gsae_ray


@pytest.mark.slow
def test_cluster_yaml_is_valid_and_its_commands_work(tmp_path: Path) -> None:
    """By Ray's own validator; the commands of set-up that need no cloud are run."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    repository = Path(__file__).parents[2]
    config = yaml.safe_load((repository / "cluster.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert {t.get("labels", {}).get("gsae-role") for t in types.values()} == {None, "producer", "trainer"}
    assert config["provider"].get("security_group") is None  # Ray's own: SSH only
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    for command in starts:
        assert "ray start" not in command or "RAY_AUTH_MODE=token" in command
        assert "mlflow server" not in command or ("--app-name basic-auth" in command and "127.0.0.1" in command)
        assert "mlflow server" not in command or "$HOME/gsae-ray/deploy/mlflow.ini" in command
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0
    (tmp_path / "gsae-ray").symlink_to(repository)
    environment = {**os.environ, "HOME": str(tmp_path), "PIP_NO_DEPS": "1"}  # what it needs is here already
    environment.pop("PYTHONPATH", None)
    for command in config["setup_commands"]:
        subprocess.run(["bash", "-c", command], check=True, env=environment, cwd=tmp_path, capture_output=True)
    version = [str(tmp_path / "gsae/bin/python"), "-c", "import gsae_ray; print(gsae_ray.__version__)"]
    said = subprocess.run(version, check=True, env=environment, cwd=tmp_path, capture_output=True, text=True).stdout
    assert said.strip() == gsae_ray.__version__
