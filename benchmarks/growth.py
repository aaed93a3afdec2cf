"""Measure how time and memory grow with the area of a slide, with k and with the number of slides.

    FSEG_DATA=... python -m benchmarks.growth [--tiny]

``fseg segment`` and ``fseg cohort`` run in processes of their own, on slides made by
``benchmarks.make_slide``. Peak memory is the resident maximum of the process. Exponents are of power laws
fitted to the points: 1 is linear; that of memory should be near 0.
"""

import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.examples import find_examples
from benchmarks.make_slide import make_slide_in_process
from benchmarks.measure import OURS, Cost, Timing, measure_command, report_row, save_result

SIDES, SMALL, CLUSTERS, SLIDES = (10_000, 20_000, 40_000), 5_000, (16, 64, 256), (4, 8, 16)


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Fit a power law and return its exponent."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def report_growth(title: str, unit: str, sizes: Sequence[float], costs: Sequence[Cost]) -> dict[str, Any]:
    """Report wall seconds and peak MB at each size, and their exponents."""
    times, memory = [cost.wall for cost in costs], [cost.peak_mb for cost in costs]
    return report_row(
        title,
        unit,
        float(sizes[-1]),
        {OURS: Timing.from_repeats(times[-1:], times[-1])},
        sizes=[float(size) for size in sizes],
        wall_s=[round(value, 2) for value in times],
        peak_mb=[round(value) for value in memory],
        time_exponent=round(fit_exponent(sizes, times), 2),
        memory_exponent=round(fit_exponent(sizes, memory), 2),
    )


@click.command()
@click.option("--tiny", is_flag=True, help="Sizes that only show that it runs.")
def main(tiny: bool) -> None:
    """Measure growth with the area, with k and with the slides."""
    source = find_examples() / "slides" / "CMU-1-Small-Region.svs"
    sides, small = ((600, 900), 600) if tiny else (SIDES, SMALL)
    clusters, slides = ((2, 3), (1, 2)) if tiny else (CLUSTERS, SLIDES)
    encoder = ("--encoder", "classical") if tiny else ()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = {
            side: make_slide_in_process(source, folder / f"{side}.tif", side) for side in {small, *sides}
        }

        def segment(side: int, k: int) -> Cost:
            out = ["-o", str(folder / f"out-{side}-{k}"), "--overwrite"]
            return measure_command(["segment", str(paths[side]), *out, "--k", str(k), *encoder])

        for k in clusters:
            segment(small, k)  # fills the compilation cache
        by_area = [segment(side, clusters[0]) for side in sides]
        by_k = [segment(small, k) for k in clusters]
        by_slides = []
        for count in slides:
            cohort = folder / f"slides-{count}"
            cohort.mkdir()
            for number in range(count):
                (cohort / f"slide-{number}.tif").symlink_to(paths[small])
            out = folder / f"cohort-{count}"
            codebook = ("--codebook", "he-small", "--k", "16") if not tiny else ("--k", "2")
            by_slides.append(measure_command(["cohort", str(cohort), "-o", str(out), *codebook, *encoder]))
    rows = [
        report_growth("area of a slide", "pixels/s", [side**2 for side in sides], by_area),
        report_growth(f"k, {small}² pixels", "k/s", clusters, by_k),
        report_growth(f"slides of {small}² pixels", "slides/s", slides, by_slides),
    ]
    save_result("growth", rows, tiny=tiny)


if __name__ == "__main__":
    main()
