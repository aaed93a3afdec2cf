"""Measure how fast slides are read, beside how fast their codec decodes the same bytes.

    FSEG_DATA=... python -m benchmarks.reading [--tiny] [--threads N] [--keep FOLDER]

Slides of islands of tissue (``benchmarks.make_slide``) in several formats are read whole at 1.0 µm, as the
pipeline does: in tiles of 512 pixels with a halo of 1/16. A rate is of the megapixels of the level that is
read: those of a halo count once, as they are decoded once. The limit is ``imagecodecs`` on the level's own
tiles, which are in memory, with as many threads. The peers read the boxes of the level that the tiles cover,
and do not resample them. On a shared machine the seconds of CPU time say more than the rates.
"""

import importlib
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import imagecodecs
import numpy as np
import tifffile
import zarr

from benchmarks.examples import find_examples
from benchmarks.make_slide import Islands
from benchmarks.measure import OURS, Timing, count_cores, is_missing, report_row, save_result
from fseg_jax.slides.reader import compute_shape, open_slide, read_batches
from fseg_jax.slides.tiles import make_grid

SIDE, SIDE_JPEG2000 = 20_000, 3_000  # pixels of level 0; JPEG 2000 takes ten times as long
TILE, MPP, BATCH, CHUNK = 512, 1.0, 8, 512
TARGET_OF_LIMIT = 0.6
ROUNDS = 3
THREADS = (1, 2, 8, 16)  # as many as there are cores

Box = tuple[int, int, int, int]  # y, x, height, width
ReadBox = Callable[[Box], Any]


class _Level(NamedTuple):
    """The level of a slide that is read, and how to decode its tiles.

    Attributes:
        megapixels: of the level.
        scale: level pixels per pixel that is asked for.
        tiles: the tiles' bytes.
        decode: decodes one tile.
        peers: by name, functions that open the level and return a function that reads a box of it.
    """

    megapixels: float
    scale: float
    tiles: list[bytes]
    decode: Callable[[bytes], Any]
    peers: Mapping[str, Callable[[], ReadBox]]


# ------------------------------------------------------------------------------------------ the slides' files


def write_tiff(islands: Islands, path: Path, mpp: float, compression: str, kind: str) -> None:
    """Write a pyramid of tiles of 256².

    Args:
        islands: What it shows.
        path: The file.
        mpp: µm per level-0 pixel.
        compression: tifffile's name.
        kind: ``plain``, ``aperio`` (pages with a description, levels 4 times as coarse as the last) or
            ``ome`` (levels in SubIFDs).
    """
    levels = range(0, islands.levels, 2 if kind == "aperio" else 1)
    aperio = f"Aperio Image Library v12\n256x256 |AppMag = 20|MPP = {mpp:.4f}"
    size = {f"PhysicalSize{axis}": mpp for axis in "XY"}
    with tifffile.TiffWriter(path, bigtiff=True, ome=kind == "ome") as writer:
        for level in levels:
            per_cm = 10_000 / (mpp * (1 << level))
            extra: dict[str, Any] = {"metadata": None}
            if kind == "ome":
                extra["metadata"] = {"axes": "YXS", **size} if level == 0 else None
                extra["subifds"] = len(levels) - 1 if level == 0 else None
            writer.write(
                islands.draw_tiles(level),
                shape=islands.get_shape(level),
                dtype=np.uint8,
                tile=(256, 256),
                photometric="rgb",
                compression=compression,
                compressionargs={"level": 40 if "2000" in compression else 80},
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                description=aperio if kind == "aperio" else None,
                **extra,
            )


def write_zarr(islands: Islands, path: Path, mpp: float) -> None:
    """Write OME-Zarr 0.4 as bioformats2raw does: an array for each channel, chunks by Blosc's LZ4."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    axes: list[Any] = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    datasets: list[Any] = []
    for level in range(min(islands.levels, 3)):
        height, width, _ = islands.get_shape(level)
        array = group.create_array(
            str(level), shape=(3, height, width), chunks=(1, CHUNK, CHUNK), dtype="uint8"
        )
        for row in range(0, height, CHUNK):
            strip = [
                np.concatenate([islands.draw_tile(level, y, x) for x in range(-(-width // 256))], axis=1)
                for y in (row // 256, row // 256 + 1)
            ]
            pixels = np.concatenate(strip)[: height - row, :width]
            array[:, row : row + CHUNK] = np.moveaxis(pixels, 2, 0)
        scale = [1.0, mpp * 2**level, mpp * 2**level]
        datasets.append(
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]


# --------------------------------------------------------------------------------------- decoders and peers


def describe_tiff(path: Path, level: int, mpp: float) -> _Level:
    """Describe a level of a TIFF that ``write_tiff`` wrote."""
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.series[0].levels[level].keyframe
        first: Any = tiff.series[0].keyframe
        tiles = []
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            tiff.filehandle.seek(offset)
            tiles.append(tiff.filehandle.read(count))
        tables, is_jpeg = page.jpegtables, page.compression == 7
        megapixels = page.imagelength * page.imagewidth / 1e6
        downsample = round(first.imagewidth / page.imagewidth)

    def decode(data: bytes) -> Any:
        if is_jpeg:
            return imagecodecs.jpeg_decode(data, tables=tables, colorspace="YCBCR", outcolorspace="RGB")
        return imagecodecs.jpeg2k_decode(data)

    def open_tifffile() -> ReadBox:
        array: Any = zarr.open_array(tifffile.imread(path, aszarr=True, level=level), mode="r")
        return lambda box: array[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]

    def open_tiffslide() -> ReadBox:
        tiffslide: Any = importlib.import_module("tiffslide")
        slide = tiffslide.TiffSlide(path)
        return lambda box: slide.read_region(
            (box[1] * downsample, box[0] * downsample), level, (box[3], box[2]), as_array=True
        )

    def open_cucim() -> ReadBox:
        cucim: Any = importlib.import_module("cucim")
        image = cucim.CuImage(str(path))
        return lambda box: np.asarray(
            image.read_region((box[1] * downsample, box[0] * downsample), (box[3], box[2]), level)
        )

    peers = {"tifffile": open_tifffile}
    if not is_missing("tiffslide"):
        peers["tiffslide"] = open_tiffslide
    if not is_missing("cucim-cu12") and is_jpeg:
        peers["cuCIM"] = open_cucim
    return _Level(megapixels, MPP / (mpp * downsample), tiles, decode, peers)


def describe_zarr(path: Path, level: int, mpp: float) -> _Level:
    """Describe a level of an OME-Zarr that ``write_zarr`` wrote."""
    files = [file for file in (path / str(level)).rglob("*") if file.is_file() and file.name[0].isdigit()]
    array: Any = zarr.open_array(path / str(level), mode="r")

    def open_zarr() -> ReadBox:
        return lambda box: array[:, box[0] : box[0] + box[2], box[1] : box[1] + box[3]]

    megapixels = array.shape[1] * array.shape[2] / 1e6
    tiles = [file.read_bytes() for file in files]
    return _Level(
        megapixels, MPP / (mpp * 2**level), tiles, imagecodecs.blosc_decode, {"zarr-python": open_zarr}
    )


def run_in_threads(run: Callable[[Any], Any], work: Iterable[Any], threads: int) -> None:
    """Call a function for each piece of work and drop the results."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda piece: run(piece) is None, work):
            pass


# ------------------------------------------------------------------------------------------------ measurement


def measure(path: Path, level: _Level, threads: int, repeats: int) -> dict[str, Any]:
    """Read a slide by every side in turn; return a row of the result."""
    with open_slide(path) as slide:
        grid = make_grid(*compute_shape(slide, MPP), 16, TILE)
        boxes = [grid.locate_tile(y, x) for y in range(grid.rows) for x in range(grid.columns)]
    height, width = (round(side * level.scale) for side in (grid.height, grid.width))

    def read_ours() -> None:
        with open_slide(path) as slide:
            for _ in read_batches(slide, boxes, MPP, batch=BATCH, threads=threads):
                pass

    def read_peer(open_level: Callable[[], ReadBox]) -> None:
        parts = []
        for y, x, h, w in boxes:
            y0, x0 = max(0, round(y * level.scale)), max(0, round(x * level.scale))
            y1, x1 = min(height, round((y + h) * level.scale)), min(width, round((x + w) * level.scale))
            parts.append((y0, x0, y1 - y0, x1 - x0))
        run_in_threads(open_level(), parts, threads)

    sides: dict[str, Callable[[], None]] = {
        OURS: read_ours,
        **{name: partial(read_peer, open_level) for name, open_level in level.peers.items()},
        "codec": lambda: run_in_threads(level.decode, level.tiles, threads),
    }
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(1 + repeats):
        for name, run in sides.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - begin)
            cpu[name].append(time.process_time() - begin_cpu)
    timings = {name: Timing.from_repeats(times[1:], times[0]) for name, times in wall.items()}
    codec = timings.pop("codec")
    milliseconds = {name: round(1e3 * min(times[1:]) / level.megapixels, 2) for name, times in cpu.items()}
    print({name: f"{value} ms CPU/MP" for name, value in milliseconds.items()}, flush=True)
    return report_row(
        f"{path.name}, scale {level.scale:.4g}, {threads} threads",
        "MP/s",
        level.megapixels,
        timings,
        target=1,
        limit=level.megapixels / codec.median,
        limited_by="the codec",
        cpu_ms_per_megapixel=milliseconds,
        of_codec_cpu=round(milliseconds["codec"] / milliseconds[OURS], 3),
        of_codec_target=TARGET_OF_LIMIT,
    )


@click.command()
@click.option("--tiny", is_flag=True, help="Sizes that only show that it runs.")
@click.option("--threads", "counts", multiple=True, type=int, help="Numbers of threads, in place of all.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder that keeps the slides for another run.")
def main(tiny: bool, counts: tuple[int, ...], keep: Path | None) -> None:
    """Time the reading of each format with each number of threads."""
    source = find_examples() / "slides" / "CMU-1-Small-Region.svs"
    side, side_jpeg2000 = (2_048, 1_024) if tiny else (SIDE, SIDE_JPEG2000)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with open_slide(source) as slide:
            islands, small = Islands(slide, side), Islands(slide, side_jpeg2000)
        slides: dict[str, tuple[Callable[[Path], None], int, float]] = {
            "JPEG 0.4990.tif": (lambda path: write_tiff(islands, path, 0.499, "jpeg", "plain"), 1, 0.499),
            "JPEG 0.5.tif": (lambda path: write_tiff(islands, path, 0.5, "jpeg", "plain"), 1, 0.5),
            "JPEG 2000 0.4990.svs": (
                lambda path: write_tiff(small, path, 0.499, "aperio_jp2000_rgb", "aperio"),
                0,
                0.499,
            ),
            "JPEG 0.4990.ome.tif": (lambda path: write_tiff(islands, path, 0.499, "jpeg", "ome"), 1, 0.499),
            "Blosc 0.4990.ome.zarr": (lambda path: write_zarr(islands, path, 0.499), 1, 0.499),
        }
        for name, (write, level, mpp) in slides.items():
            path = folder / name
            if not path.exists():
                write(path)
            describe = describe_zarr if path.suffix == ".zarr" else describe_tiff
            described = describe(path, level, mpp)
            for threads in counts or [n for n in THREADS if n <= count_cores()]:
                rows.append(measure(path, described, threads, 1 if tiny else ROUNDS))
    save_result("reading", rows, tiny=tiny)


if __name__ == "__main__":
    main()
