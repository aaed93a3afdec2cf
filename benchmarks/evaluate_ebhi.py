"""Evaluate F-SEG on the glands of EBHI-Seg, with and without factorization; write the table in results/.

    FSEG_DATA=/path/to/data python -m benchmarks.evaluate_ebhi [K ...]

``$FSEG_DATA/ebhi`` holds EBHI-Seg (Shi et al. 2023, figshare 21540159, CC BY 4.0) as CLASS/images and
CLASS/masks. The encoders are ``he-small`` and ``classical``, which need no download; ``fseg evaluate`` takes
others. he-small was not trained on images of the test cases.
"""

import shutil
import tempfile
import time
from pathlib import Path

import click

from benchmarks.examples import find_examples
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.load import load_encoder
from fseg_jax.evaluation.data.layouts import open_dataset
from fseg_jax.evaluation.run import evaluate_fseg
from fseg_jax.evaluation.settings import EvaluationSettings

RESULTS = Path(__file__).parent / "results"
RESULT_NAMES = {
    "results.csv": "evaluation_ebhi.csv",
    "results.md": "evaluation_ebhi.md",
    "evaluation.json": "evaluation_ebhi.json",
    "figure_matching.png": "evaluation_ebhi_matching.png",
    "figure_matching.svg": "evaluation_ebhi_matching.svg",
    "figure_probing.png": "evaluation_ebhi_probing.png",
    "figure_probing.svg": "evaluation_ebhi_probing.svg",
}


@click.command()
@click.argument("k", nargs=-1, type=click.IntRange(2))
def main(k: tuple[int, ...]) -> None:
    """Evaluate with K centres (16, 32, 64, 128 and 256 by default)."""
    started = time.time()

    def print_progress(phase: str, done: int, total: int) -> None:
        if done == total or phase.startswith("cluster"):
            print(f"{time.time() - started:7.0f} s  {phase}: {done} of {total}", flush=True)

    dataset = open_dataset(find_examples() / "ebhi")
    settings = EvaluationSettings(k=k or (16, 32, 64, 128, 256), same_split=True, panels=0)
    with tempfile.TemporaryDirectory() as folder:
        encoders = [load_encoder("he-small"), classical()]
        evaluate_fseg(dataset, encoders, settings, out=Path(folder), progress=print_progress)
        for name, result_name in RESULT_NAMES.items():
            shutil.copyfile(Path(folder) / name, RESULTS / result_name)


if __name__ == "__main__":
    main()
