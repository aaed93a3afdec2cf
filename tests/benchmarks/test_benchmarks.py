"""The benchmarks of speed run on tiny sizes, and their page agrees with their results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.devices import format_page

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize(
    "question",
    [
        "kmeans",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("nmf", "startup", "processors", "race")),
    ],
)
def test_a_benchmark_runs(question: str) -> None:
    path = RESULTS / f"speed_{question}.json"
    before = path.read_bytes() if path.exists() else None
    run = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{question}", "--tiny"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "fseg_jax" in run.stdout
    assert (path.read_bytes() if path.exists() else None) == before  # results of tiny sizes are not written


@pytest.mark.long
def test_what_an_accelerator_does_is_measured_by_one_command() -> None:
    command = [sys.executable, "-m", "benchmarks", "--device", "--tiny"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for what in ("H fixed", "W and H free", "labels", "k-means"):
        assert f"{what}, k = 4: fseg_jax" in run.stdout


@pytest.mark.long
@pytest.mark.parametrize("question", ["slide", "growth", "reading", "cohort"])
def test_a_benchmark_of_slides_runs(question: str, data: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{question}", "--tiny"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("name", "variables"),
    [("growth", {}), ("evaluate_ebhi", {"FSEG_DATA": "/no/such/folder"})],
    ids=["not set", "not there"],
)
def test_missing_example_data_is_one_line_on_stderr(name: str, variables: dict[str, str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "FSEG_DATA"} | variables
    run = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("FSEG_DATA=") and len(run.stderr.splitlines()) == 1


def test_devices_stand_side_by_side_and_what_was_not_measured_is_said() -> None:
    row = {"what": "H fixed", "unit": "tiles/s", "ours": "fseg_jax", "peer": None, "ratio": None}
    cpu = {
        "device": "cpu",
        "processor": "A processor",
        "cores": 2,
        "rows": [{**row, "rates": {"fseg_jax": 5.0}}],
    }
    gpu_row = {**row, "rates": {"fseg_jax": 50.0, "torch": 25.0}, "peer": "torch", "ratio": 2.0}
    gpu = {"device": "A card", "rows": [gpu_row]}
    page = format_page({"Both": ([cpu], gpu, "a"), "One": ([cpu], None, "measure it")})
    assert "| what | A processor, 2 cores | A card |" in page
    assert "| H fixed | 5 tiles/s | 50 tiles/s (2 × torch) |" in page
    assert "not measured: `measure it` does" in page and "| H fixed | 5 tiles/s | not measured |" in page


def test_the_page_is_of_the_results() -> None:
    """The page has every row and ratio of the results."""
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for path in RESULTS.glob("speed_*.json"):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            assert row["what"] in page
            if row["ratio"]:
                assert f"**{row['ratio']:.3g} ×**" in page
