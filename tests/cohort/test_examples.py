"""The examples for SLURM, Kubernetes and TPU hosts call ``fseg cohort`` as it is."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from fseg_jax.cli.cohort import cohort

EXAMPLES = Path(__file__).parents[2] / "docs" / "cohort"


def asked(arguments: list[str]) -> dict:
    """What the command line makes of arguments."""
    return cohort.make_context("cohort", list(arguments)).params


@pytest.fixture
def stand_ins(tmp_path) -> dict[str, str]:
    """An environment where fseg prints its arguments, and the metadata server of a TPU host answers."""
    answers = '*number) echo 2;; *endpoints) echo "a:b:10.0.0.1,a:b:10.0.0.2,a:b:10.0.0.3,a:b:10.0.0.4";;'
    for name, text in (
        ("fseg", 'printf "%s\\n" "$@"'),
        ("curl", f'for a in "$@"; do case $a in {answers} esac; done'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def printed(script: str, environment: dict[str, str], *arguments: str) -> list[str]:
    command = ["bash", str(EXAMPLES / script), *arguments]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert said.stderr == ""
    name, *rest = said.stdout.splitlines()
    assert name == "cohort"
    return rest


def test_slurm(stand_ins):
    array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "16"}
    given = printed("slurm.sh", stand_ins | array | {"SLURM_CPUS_PER_TASK": "8"}, "m.csv", "c", "out")
    assert asked(given) | {"manifest": "m.csv", "output": "out", "shard": (5, 16), "threads": 8} == asked(
        given
    )


def test_kubernetes():
    job = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["fseg", "cohort"] and job["spec"]["completionMode"] == "Indexed"
    last = job["spec"]["completions"] - 1
    found = asked([a.replace("$(JOB_COMPLETION_INDEX)", str(last)) for a in container["args"]])
    assert found["shard"] == (last, job["spec"]["completions"]) and found["output"].startswith("s3://")


def test_tpu_hosts(stand_ins):
    found = asked(printed("tpu.sh", stand_ins))
    assert found["shard"] == (2, 4) and found["manifest"].startswith("gs://")
