"""Time the start: ``fseg --help``, and the first tile of a new process.

    python -m benchmarks.startup [--tiny]

Each runs in a process of its own, with modules compiled to bytecode as ``pip install`` leaves them. The first
tile has a warm compilation cache; its process imports fseg_jax, loads he-small and its codebook, and encodes
and solves one tile of 512 pixels.
"""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import click

from benchmarks.measure import OURS, REPEATS, report_row, save_result, time_interleaved

FIRST_TILE = """
import numpy as np, jax
import fseg_jax as fseg
encoder = fseg.load_encoder("he-small")
H = fseg.Codebook.load("he-small", k=32).centers
image = np.random.default_rng(0).integers(0, 256, (1, 512, 512, 3), dtype=np.uint8)
A = encoder(jax.numpy.asarray(image))
jax.block_until_ready(fseg.nmf.solve_weights(A.reshape(1, -1, A.shape[-1]), jax.numpy.asarray(H)))
"""


@click.command()
@click.option("--tiny", is_flag=True, help="Once each.")
def main(tiny: bool) -> None:
    """Time both starts."""
    repeats = 1 if tiny else REPEATS
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PYTHONPYCACHEPREFIX": f"{folder}/bytecode",
            "PYTHONDONTWRITEBYTECODE": "",
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/programs",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

        def start(*arguments: str) -> None:
            command = [sys.executable, *arguments]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)

        # The first call of each may fill caches, and is recorded apart.
        help_timings = time_interleaved({OURS: partial(start, "-m", "fseg_jax", "--help")}, repeats)
        tile_timings = time_interleaved({OURS: partial(start, "-c", FIRST_TILE)}, repeats)
        programs = sum(1 for _ in Path(folder, "programs").iterdir())
    rows = [
        report_row("fseg --help", "starts/s", 1, help_timings, limit=1 / 0.5, limited_by="0.5 s, the aim"),
        report_row(
            "first tile, cache warm", "starts/s", 1, tile_timings, limit=1 / 3, limited_by="3 s, the aim"
        ),
    ]
    save_result("startup", rows, tiny=tiny, cached_programs=programs)


if __name__ == "__main__":
    main()
