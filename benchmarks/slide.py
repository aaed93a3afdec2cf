"""Is a whole slide faster, end to end? Tiles a second, and what the parts add up to.

    FSEG_DATA=... python -m benchmarks.slide [--tiny]

ResNet-50 with random weights, k = 64 and 256, tiles of 256 pixels at 1 µm: reading, tissue, halos, encoding,
factorizing, blending and every output on our side; beside it the F-SEG authors' class (``segf``) fed tile by
tile from OpenSlide, which writes nothing. It gets a few of the same tiles, for at k = 256 it takes seconds
for each. Then the time of ours over that of its encoder, solver and decoding run alone, also for he-small.
The slide is made by ``benchmarks.make_slide``; the second run of each is timed, when all is compiled.
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

from benchmarks.examples import examples
from benchmarks.make_slide import made_slide
from benchmarks.measure import OURS, Timing, absent, cores, row, save, timed
from fseg_jax.codebook import Codebook
from fseg_jax.encoders.encoder import Encoder
from fseg_jax.encoders.load import load_encoder
from fseg_jax.files.tensor_writer import write_tensors
from fseg_jax.numerics import nmf
from fseg_jax.pipeline.plan import Plan, Settings, lay_out
from fseg_jax.pipeline.segment import segment_slide
from fseg_jax.slides.reader import open_slide, read_batches

TILE, SIDE, MPP, PEER_TILES = 256, 12_000, 1.0, 4
TARGETS = {64: 3, 256: 20}
OVERHEAD = 1.10


def parts(slide: Any, plan: Plan, encoder: Encoder, H: jax.Array, settings: Settings) -> dict[str, float]:
    """Seconds of decoding, encoding and solving all tiles, each alone."""
    boxes = [plan.grid.locate_tile(*tile) for tile in plan.tiles()]
    batch, threads = settings.batch, settings.threads

    def decode() -> list[np.ndarray]:
        return [images for _, images in read_batches(slide, boxes, plan.mpp, batch=batch, threads=threads)]

    decoding, images = timed(decode)
    device = [jnp.asarray(each) for each in images]
    encoder(device[0]).block_until_ready()
    encoding, grids = timed(lambda: [encoder(each) for each in device])
    tokens = [grid.reshape(grid.shape[0], -1, grid.shape[-1]) for grid in grids]
    solve = jax.jit(nmf.solve_weights)
    solve(tokens[0], H).block_until_ready()
    solving, _ = timed(lambda: [solve(A, H) for A in tokens])
    return {"decoding": decoding, "encoder": encoding, "solver": solving}


def ours(path: Path, out: Path, encoder: Encoder, k: int) -> dict[str, Any]:
    """The slide end to end, twice; the parts; and the plan."""
    settings = Settings(tile=TILE, mpp=MPP)
    with open_slide(path) as slide:
        plan = lay_out(slide, encoder.card, settings, None)
        boxes = [plan.grid.locate_tile(*tile) for tile in plan.tiles()]
        _, images = next(iter(read_batches(slide, boxes, plan.mpp, batch=8, threads=2)))
        A = np.asarray(encoder(jnp.asarray(images))).reshape(-1, encoder.card.channels)
        # Any tokens are centres that the others mix; enough of them lie on glass to be told apart.
        chosen = np.random.default_rng(0).choice(len(A), k, replace=False)
        H = np.maximum(A[chosen], 1e-3)
        codebook = Codebook(H)
        first, _ = timed(lambda: segment_slide(slide, out / "first", encoder, codebook, settings))
        whole, _ = timed(lambda: segment_slide(slide, out / "second", encoder, codebook, settings))
        alone = parts(slide, plan, encoder, jnp.asarray(H), settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"plan": plan, "H": H, "first": first, "whole": whole, "alone": alone, "peak_mb": round(peak)}


def theirs(path: Path, network: Any, plan: Plan, H: np.ndarray, count: int) -> Timing:
    """Time the F-SEG authors' class, seconds a tile, on a network and its layer.

    It is fed from OpenSlide; one tile before the timing warms it up.
    """
    import openslide
    import torch
    from PIL import Image

    fseg: Any = importlib.import_module("fseg.fseg")  # the distribution segf
    torch.set_num_threads(cores())
    model = fseg.FSeg(*network)
    slide = openslide.OpenSlide(str(path))
    own = float(slide.properties["openslide.mpp-x"])
    boxes = [plan.grid.locate_tile(*tile) for tile in plan.tiles()]
    boxes = boxes[:: max(len(boxes) // (count + 1), 1)][: count + 1]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    times = []
    for y, x, height, width in boxes:
        begin = time.perf_counter()
        scale = MPP / own
        corner, size = (round(x * scale), round(y * scale)), (round(width * scale), round(height * scale))
        pixels = (
            slide.read_region(corner, 0, size).convert("RGB").resize((width, height), Image.Resampling.BOX)
        )
        scaled = ((np.asarray(pixels) / 255 - mean) / std).astype(np.float32)
        model.predict_project_concepts(torch.from_numpy(scaled).permute(2, 0, 1)[None], H.copy())
        times.append(time.perf_counter() - begin)
    return Timing.of(times[1:], times[0])


def resnet50(folder: Path) -> tuple[Any, Any, Encoder]:
    """Timm's network with random weights, the layer that F-SEG reads, and the same as our encoder."""
    references: Any = importlib.import_module("weights_convert.references")
    timm = references.import_timm()
    module = references.randomise(timm.create_model("resnet50", num_classes=1000), seed=0)
    path = folder / "resnet50.safetensors"
    write_tensors(path, references.get_published(module))
    return module, module.layer3, load_encoder("resnet50-a1", weights=path, dtype="bfloat16")


@click.command()
@click.option("--tiny", is_flag=True, help="Sizes that only show that it runs.")
def main(tiny: bool) -> None:
    source = examples() / "slides" / "CMU-1-Small-Region.svs"
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = made_slide(source, folder / "slide.tif", 1_200 if tiny else SIDE)
        runs: list[tuple[str, int, Encoder, Any]] = []
        peers = [package for package in ("torch", "timm", "segf", "openslide-python") if absent(package)]
        if not peers:
            module, layer, encoder = resnet50(folder)
            runs += [("ResNet-50", k, encoder, (module, layer)) for k in ((8,) if tiny else (64, 256))]
        runs.append(("he-small", 8 if tiny else 64, load_encoder("he-small"), None))
        for number, (name, k, encoder, peer) in enumerate(runs):
            found = ours(path, folder / f"out-{number}", encoder, k)
            tiles = len(found["plan"].tiles())
            whole, together = found["whole"], sum(found["alone"].values())
            timings = {OURS: Timing.of([whole], found["first"])}
            work = {OURS: float(tiles)}
            if peer:
                count = 1 if tiny else PEER_TILES
                timings["segf, OpenSlide"] = theirs(path, peer, found["plan"], found["H"], count)
                work["segf, OpenSlide"] = 1.0
            rows.append(
                row(
                    f"{name}, k = {k}, {tiles} tiles of {TILE} px",
                    "tiles/s",
                    work,
                    timings,
                    target=TARGETS.get(k) if peer else None,
                    limit=tiles / together,
                    limited_by="encoder, solver and decoding alone, one after another",
                    alone_s={name: round(value, 3) for name, value in found["alone"].items()},
                    overhead=round(whole / together, 3),
                    overhead_target=OVERHEAD,
                    peak_mb=found["peak_mb"],
                )
            )
    save("slide", rows, tiny=tiny)


if __name__ == "__main__":
    main()
