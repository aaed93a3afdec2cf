"""How long until something happens? ``fseg --help``, and the first tile of a cold start.

    python -m benchmarks.startup [--tiny]

Each in a process of its own, modules compiled to bytecode as ``pip install`` leaves them; the first tile with
the compilation cache warm: imports, he-small loaded, its codebook, one tile of 512 pixels encoded and solved.
"""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import click

from benchmarks.measure import OURS, REPEATS, interleaved, row, save

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

        # The first of each, which may fill caches, is apart.
        help_s = interleaved({OURS: partial(start, "-m", "fseg_jax", "--help")}, repeats)
        tile_s = interleaved({OURS: partial(start, "-c", FIRST_TILE)}, repeats)
        kept = sum(1 for _ in Path(folder, "programs").iterdir())
    rows = [
        row("fseg --help", "starts/s", 1, help_s, limit=1 / 0.5, limited_by="0.5 s, the aim"),
        row("first tile, cache warm", "starts/s", 1, tile_s, limit=1 / 3, limited_by="3 s, the aim"),
    ]
    save("startup", rows, tiny=tiny, cached_programs=kept)


if __name__ == "__main__":
    main()
