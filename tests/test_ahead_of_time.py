"""Numerics and encoders compiled for TPUs, without one: nothing in them that is slow, and ceilings."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def compile_for(chip: str, *cases: str) -> list[dict]:
    """What the compiler says of some cases of ``benchmarks.ahead_of_time``; libtpu wants a fresh process."""
    if find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'fseg-jax[aot]'")
    command = [sys.executable, "-m", "benchmarks.ahead_of_time", "--chip", chip, *cases]
    # libtpu ends the process at a flag of XLA's CPU compiler that it does not know.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


# A tenth above what it was when written: milliseconds by estimate, MiB of temporaries and of code.
CEILINGS = {
    ("v5e", "vit"): (4.26, 113.4, 8.7),
    ("v6e", "vit"): (1.79, 112, 10.8),
    ("v5e", "vit-l"): (44.83, 148.3, 84.5),
    ("v6e", "vit-l"): (16.43, 133.1, 108.4),
    ("v5e", "vit-g"): (209.7, 448.8, 178.9),
    ("v5e", "resnet"): (12.69, 285.5, 13.1),
    ("v5e", "hals"): (15.71, 1, 2.8),
    ("v6e", "hals"): (7.5, 1, 5.8),
    ("v5e", "accelerated"): (4.76, 1, 2.9),
    ("v6e", "accelerated"): (2.28, 1, 5.9),
    ("v5e", "weights"): (2.98, 1, 2.6),
    ("v6e", "weights"): (1.56, 1, 2.6),
    ("v5e", "blend"): (10.95, 24.5, 7.3),
    ("v6e", "blend"): (3.75, 53.9, 8.4),
    ("v5e", "labels"): (4.08, 29.6, 2.6),
    ("v6e", "labels"): (2.45, 46.5, 3.1),
    ("v5e", "kmeans"): (190.52, 145.5, 7.6),
    ("v5e", "pass"): (13.8, 1, 1.3),
    ("v6e", "pass"): (5.8, 1, 1.4),
    ("v5e", "pass-float32"): (46.58, 1, 2.2),
}


@pytest.mark.long
@pytest.mark.parametrize(("chip", "case"), CEILINGS)
def test_a_tpu_program_stays_below_its_ceilings(chip, case):
    (program,) = compile_for(chip, case)
    assert not program["unwanted"]
    measured = tuple(program[name] for name in ("milliseconds", "temporaries", "code"))
    assert all(value <= ceiling for value, ceiling in zip(measured, CEILINGS[chip, case], strict=True)), (
        measured
    )
