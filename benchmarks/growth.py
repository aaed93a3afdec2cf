"""What grows with what? Time and memory against the area of a slide, the tiles, k and the slides.

    FSEG_DATA=... python -m benchmarks.growth [--tiny]

``fseg segment`` and ``fseg cohort`` in processes of their own, on slides made by ``benchmarks.make_slide``;
peak memory is the process's resident maximum. The exponents are those of power laws through the points: 1 is
linear, and memory should be near 0.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.examples import examples
from benchmarks.make_slide import made_slide
from benchmarks.measure import OURS, Timing, row, save

SIDES, SMALL, CLUSTERS, SLIDES = (10_000, 20_000, 40_000), 5_000, (16, 64, 256), (4, 8, 16)


def measured(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall seconds and peak memory in MB of an ``fseg`` command."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "fseg_jax", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"fseg {' '.join(arguments)} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - begin, usage.ru_maxrss * unit / 1e6


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def line(
    what: str, unit: str, sizes: Sequence[float], found: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    times, memory = zip(*found, strict=True)
    return row(
        what,
        unit,
        float(sizes[-1]),
        {OURS: Timing.of(times[-1:], times[-1])},
        sizes=[float(size) for size in sizes],
        wall_s=[round(value, 2) for value in times],
        peak_mb=[round(value) for value in memory],
        time_exponent=round(exponent(sizes, times), 2),
        memory_exponent=round(exponent(sizes, memory), 2),
    )


@click.command()
@click.option("--tiny", is_flag=True, help="Sizes that only show that it runs.")
def main(tiny: bool) -> None:
    source = examples() / "slides" / "CMU-1-Small-Region.svs"
    sides, small = ((600, 900), 600) if tiny else (SIDES, SMALL)
    clusters, slides = ((2, 3), (1, 2)) if tiny else (CLUSTERS, SLIDES)
    encoder = ("--encoder", "classical") if tiny else ()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = {side: made_slide(source, folder / f"{side}.tif", side) for side in {small, *sides}}

        def segment(side: int, k: int) -> tuple[float, float]:
            out = ["-o", str(folder / f"out-{side}-{k}"), "--overwrite"]
            return measured(["segment", str(made[side]), *out, "--k", str(k), *encoder])

        for k in clusters:
            segment(small, k)  # fills the compilation cache
        by_area = [segment(side, clusters[0]) for side in sides]
        by_k = [segment(small, k) for k in clusters]
        by_slides = []
        for count in slides:
            listed = folder / f"slides-{count}"
            listed.mkdir()
            for number in range(count):
                (listed / f"slide-{number}.tif").symlink_to(made[small])
            out = folder / f"cohort-{count}"
            book = ("--codebook", "he-small", "--k", "16") if not tiny else ("--k", "2")
            by_slides.append(measured(["cohort", str(listed), "-o", str(out), *book, *encoder]))
    rows = [
        line("area of a slide", "pixels/s", [side**2 for side in sides], by_area),
        line(f"k, {small}² pixels", "k/s", clusters, by_k),
        line(f"slides of {small}² pixels", "slides/s", slides, by_slides),
    ]
    save("growth", rows, tiny=tiny)


if __name__ == "__main__":
    main()
