"""The examples for SLURM, Kubernetes and TPU hosts call ``fseg cohort`` as it is."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tifffile
import yaml
from skimage import data as pictures

from fseg_jax.cli.cohort import cohort
from fseg_jax.cli.segment import segment

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


@pytest.mark.long
@pytest.mark.skipif(not importlib.util.find_spec("snakemake"), reason="pip install snakemake")
def test_snakemake_segments_a_folder(tmp_path):
    options = {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER", "tile": (64, 64)}
    (tmp_path / "slides").mkdir()
    for name in ("a", "b c"):
        image = pictures.immunohistochemistry()[:128, :128]
        tifffile.imwrite(tmp_path / "slides" / f"{name}.tif", image, **options)
    (tmp_path / "fseg").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fseg_jax "$@"\n')
    (tmp_path / "fseg").chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--snakefile", str(EXAMPLES / "Snakefile")]
    command += ["--config", f"slides={tmp_path / 'slides'}", "options=--encoder classical --k 3"]
    environment = os.environ | {"PATH": path, "HOME": str(tmp_path)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    for name in ("a", "b c"):
        line = json.loads((tmp_path / "results" / "logs" / f"{name}.jsonl").read_text())
        assert line["slide"] == name and line["status"] == "done" and len(line["areas_mm2"]) == 3
        assert all((tmp_path / output).exists() for output in line["outputs"])


def test_nextflow_gives_fseg_what_it_takes():
    """Nextflow is no Python package: its process's line is looked at, and the program not run."""
    script = (EXAMPLES / "main.nf").read_text(encoding="utf-8")
    (line,) = (line for line in script.splitlines() if line.strip().startswith("fseg segment"))
    given = line.replace("${slide}", "a.svs").replace("${task.cpus}", "2").replace("${book}", "")
    arguments = given.replace("${params.options}", "--k 4").replace("'", "").split()[2:]
    found = segment.make_context("segment", arguments).params
    assert found | {"as_json": True, "threads": 2, "k": 4, "output": Path("out")} == found


@pytest.mark.skipif(not importlib.util.find_spec("reftrace"), reason="pip install reftrace")
def test_nextflow_is_nextflow():
    from reftrace import Module

    module = Module.from_file(str(EXAMPLES / "main.nf"))
    (process,) = module.processes
    assert process.name == "SEGMENT" and process.cpus[0].num == 2 and process.publish_dirs[0].mode == "copy"
    assert {parameter.name for parameter in module.params} == {"slides", "codebook", "options", "out"}


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("nextflow"), reason="nextflow is not installed")
def test_nextflow_takes_the_script():
    subprocess.run(
        ["nextflow", "run", str(EXAMPLES / "main.nf"), "-preview", "--slides", "/dev/null"], check=True
    )


def test_tpu_hosts(stand_ins):
    found = asked(printed("tpu.sh", stand_ins))
    assert found["shard"] == (2, 4) and found["manifest"].startswith("gs://")
