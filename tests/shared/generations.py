"""Outputs of numbered generations, each published in place of the last; run as a program, without an end."""

import sys
from itertools import count
from pathlib import Path

from fseg_jax.files.exchange import exchange_outputs
from fseg_jax.files.partial_folders import open_partial_folder

SUFFIXES = (".json", ".ome.zarr", ".geojson", ".png", ".h5ad")
NAMES = [*(f"S{suffix}" for suffix in SUFFIXES), "thumbnails/S.jpg", "masks/deep/S.png"]


def expect_files(generation: int) -> dict[str, str]:
    """Name all files of a generation, with their text.

    Every other generation has an .h5ad; the number of chunks differs.
    """
    chunks = [f"S.ome.zarr/0/c/{i}" for i in range(1 + generation % 3)]
    names = [name for name in NAMES if name != "S.ome.zarr" and (generation % 2 or name != "S.h5ad")]
    return {name: f"{name} of {generation}" for name in (*names, *chunks, "S.ome.zarr/zarr.json")}


def write_files(folder: Path, generation: int) -> None:
    for name, text in expect_files(generation).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def publish(out: Path, generation: int) -> None:
    with open_partial_folder("S", out) as folder:
        write_files(folder, generation)
        exchange_outputs(folder, NAMES)


def read_files(out: Path) -> dict[str, str]:
    """Read every file of a folder, hidden ones too."""
    return {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*") if p.is_file()}


if __name__ == "__main__":
    for generation in count(int(sys.argv[2]) + 1):
        publish(Path(sys.argv[1]), generation)
        print(generation, flush=True)
