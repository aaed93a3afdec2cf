"""Measure the speed of a whole slide, end to end: tiles a second, and the overhead over its parts.

    FSEG_DATA=... python -m benchmarks.slide [--tiny]

ResNet-50 with random weights, k = 64 and 256, tiles of 256 pixels at 1 µm. Our side reads, finds tissue,
encodes with halos, factorizes, blends and writes every output. The peer is the class of the F-SEG authors
(``segf``), fed tile by tile from OpenSlide, which writes nothing; it gets a few of the same tiles, for at k =
256 a tile takes it seconds. The overhead, also of he-small, is our time over that of decoding, encoder and
solver run alone. The slide is made by ``benchmarks.make_slide``; of two runs the second, with all compiled,
is timed.
"""

import importlib
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.examples import find_examples
from benchmarks.make_slide import make_slide_in_process
from benchmarks.measure import OURS, Timing, count_cores, is_missing, report_row, save_result, time_call
from fseg_jax.codebook import Codebook
from fseg_jax.encoders.encoder import Encoder
from fseg_jax.encoders.load import load_encoder
from fseg_jax.files.tensor_writer import write_tensors
from fseg_jax.numerics import nmf
from fseg_jax.pipeline.plan import Plan, Settings, lay_out
from fseg_jax.pipeline.segment import segment_slide
from fseg_jax.slides.reader import open_slide, read_batches

TILE, SIDE, MPP, PEER_TILES = 256, 12_000, 1.0, 4
BATCH, THREADS = 8, 2
TARGETS = {64: 3, 256: 20}  # times as fast as the peer, by k
MAX_OVERHEAD = 1.10


def time_parts(slide: Any, plan: Plan, encoder: Encoder, H: jax.Array) -> dict[str, float]:
    """Measure the seconds of decoding, encoding and solving all tiles, each alone."""
    boxes = [plan.grid.locate_tile(*tile) for tile in plan.tiles()]

    def decode() -> list[np.ndarray]:
        return [images for _, images in read_batches(slide, boxes, plan.mpp, batch=BATCH, threads=THREADS)]

    decoding, images = time_call(decode)
    device = [jnp.asarray(each) for each in images]
    encoder(device[0]).block_until_ready()
    encoding, grids = time_call(lambda: [encoder(each) for each in device])
    tokens = [grid.reshape(grid.shape[0], -1, grid.shape[-1]) for grid in grids]
    solve = jax.jit(nmf.solve_weights)
    solve(tokens[0], H).block_until_ready()
    solving, _ = time_call(lambda: [solve(A, H) for A in tokens])
    return {"decoding": decoding, "encoder": encoding, "solver": solving}


def run_ours(path: Path, out: Path, encoder: Encoder, k: int) -> dict[str, Any]:
    """Segment a slide twice and run its parts alone; return the seconds, the plan and the centres.

    Keys: ``plan``, ``H`` (k, channels), ``first`` and ``whole`` (seconds of both runs), ``alone`` (seconds of
    each part) and ``peak_mb``.
    """
    settings = Settings(tile=TILE, mpp=MPP, batch=BATCH, threads=THREADS)
    with open_slide(path) as slide:
        plan = lay_out(slide, encoder.card, settings, None)
        boxes = [plan.grid.locate_tile(*tile) for tile in plan.tiles()]
        _, images = next(iter(read_batches(slide, boxes, plan.mpp, batch=BATCH, threads=THREADS)))
        A = np.asarray(encoder(jnp.asarray(images))).reshape(-1, encoder.card.channels)
        # Tokens drawn at random serve as centres: others are mixtures of them.
        indices = np.random.default_rng(0).choice(len(A), k, replace=False)
        H = np.maximum(A[indices], 1e-3)
        codebook = Codebook(H)
        first, _ = time_call(lambda: segment_slide(slide, out / "first", encoder, codebook, settings))
        whole, _ = time_call(lambda: segment_slide(slide, out / "second", encoder, codebook, settings))
        alone = time_parts(slide, plan, encoder, jnp.asarray(H))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"plan": plan, "H": H, "first": first, "whole": whole, "alone": alone, "peak_mb": round(peak)}


def time_segf(path: Path, network: Any, plan: Plan, H: np.ndarray, count: int) -> Timing:
    """Time the class of the F-SEG authors on ``count`` tiles from OpenSlide, after one that warms it up.

    Args:
        path: of the slide.
        network: a torch module and its layer that F-SEG reads.
        plan: of our run; some of its tiles are used.
        H: centres (k, channels).
        count: of tiles.
    """
    import openslide
    import torch
    from PIL import Image

    fseg: Any = importlib.import_module("fseg.fseg")  # the distribution segf
    torch.set_num_threads(count_cores())
    model = fseg.FSeg(*network)
    slide = openslide.OpenSlide(str(path))
    slide_mpp = float(slide.properties["openslide.mpp-x"])
    boxes = [plan.grid.locate_tile(*tile) for tile in plan.tiles()]
    boxes = boxes[:: max(len(boxes) // (count + 1), 1)][: count + 1]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    times = []
    for y, x, height, width in boxes:
        begin = time.perf_counter()
        scale = MPP / slide_mpp
        corner, size = (round(x * scale), round(y * scale)), (round(width * scale), round(height * scale))
        pixels = (
            slide.read_region(corner, 0, size).convert("RGB").resize((width, height), Image.Resampling.BOX)
        )
        scaled = ((np.asarray(pixels) / 255 - mean) / std).astype(np.float32)
        model.predict_project_concepts(torch.from_numpy(scaled).permute(2, 0, 1)[None], H.copy())
        times.append(time.perf_counter() - begin)
    return Timing.from_repeats(times[1:], times[0])


def build_resnet50(folder: Path) -> tuple[Any, Any, Encoder]:
    """Build timm's network with random weights; return it, its layer that F-SEG reads, and our encoder."""
    references: Any = importlib.import_module("weights_convert.references")
    timm = references.import_timm()
    module = references.randomise(timm.create_model("resnet50", num_classes=1000), seed=0)
    path = folder / "resnet50.safetensors"
    write_tensors(path, references.get_published(module))
    return module, module.layer3, load_encoder("resnet50-a1", weights=path, dtype="bfloat16")


@click.command()
@click.option("--tiny", is_flag=True, help="Sizes that only show that it runs.")
def main(tiny: bool) -> None:
    """Time the slide with each encoder and k."""
    source = find_examples() / "slides" / "CMU-1-Small-Region.svs"
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = make_slide_in_process(source, folder / "slide.tif", 1_200 if tiny else SIDE)
        runs: list[tuple[str, int, Encoder, Any]] = []
        missing = [
            package for package in ("torch", "timm", "segf", "openslide-python") if is_missing(package)
        ]
        if not missing:
            module, layer, encoder = build_resnet50(folder)
            runs += [("ResNet-50", k, encoder, (module, layer)) for k in ((8,) if tiny else (64, 256))]
        runs.append(("he-small", 8 if tiny else 64, load_encoder("he-small"), None))
        for number, (name, k, encoder, peer) in enumerate(runs):
            result = run_ours(path, folder / f"out-{number}", encoder, k)
            tiles = len(result["plan"].tiles())
            whole, parts = result["whole"], sum(result["alone"].values())
            timings = {OURS: Timing.from_repeats([whole], result["first"])}
            work = {OURS: float(tiles)}
            if peer:
                count = 1 if tiny else PEER_TILES
                timings["segf, OpenSlide"] = time_segf(path, peer, result["plan"], result["H"], count)
                work["segf, OpenSlide"] = 1.0
            rows.append(
                report_row(
                    f"{name}, k = {k}, {tiles} tiles of {TILE} px",
                    "tiles/s",
                    work,
                    timings,
                    target=TARGETS.get(k) if peer else None,
                    limit=tiles / parts,
                    limited_by="encoder, solver and decoding alone, one after another",
                    alone_s={name: round(value, 3) for name, value in result["alone"].items()},
                    overhead=round(whole / parts, 3),
                    overhead_target=MAX_OVERHEAD,
                    peak_mb=result["peak_mb"],
                )
            )
    save_result("slide", rows, tiny=tiny)


if __name__ == "__main__":
    main()
