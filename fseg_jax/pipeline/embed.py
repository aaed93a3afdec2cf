"""A slide's patches embedded, once and anywhere; ``cohort.seeds`` segments them as often as seeds change.

The paper (SIC, §2.1) pools a network's last layer. Here a patch's embedding is the mean over its grid of the
encoder's features (``card.layer``, negative values set to zero): of a CNN, its globally pooled last layer; of
a vision transformer, the mean of the final block's patch tokens, not the class token.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fseg_jax.encoders.encoder import Encoder
from fseg_jax.errors import InputError
from fseg_jax.files.partial_folders import partial_folder
from fseg_jax.numerics.areas import summed_area_table
from fseg_jax.outputs.anndata_export import import_anndata, try_write_anndata
from fseg_jax.outputs.embeddings import EmbeddingsWriter, open_embeddings
from fseg_jax.pipeline.plan import FIGURE_SIDE
from fseg_jax.pipeline.record import Clock, check_outputs, finish, made_with, slide_facts
from fseg_jax.process import Progress
from fseg_jax.slides.reader import Slide, compute_shape, open_slide, read_batches, read_thumbnail
from fseg_jax.slides.tissue import Tissue, choose_tissue

FORMAT = 1  # of the outputs: raised when what they hold changes


@dataclass(frozen=True)
class PatchSettings:
    """How to lay patches over a slide; whatever here affects the embeddings is in their record.

    Patches of ``patch`` pixels at ``mpp`` µm each overlap their neighbours by the fraction ``overlap``; those
    are embedded of which at least ``min_tissue`` is tissue, which is ``"find"``, ``"all"`` or a file.
    ``dtype`` is what embeddings are stored in. ``batch`` patches go to the encoder at once and ``threads``
    decode: neither affects the result.
    """

    patch: int = 256
    overlap: float = 0.5
    mpp: float = 0.5
    tissue: str = "find"
    min_tissue: float = 0.25
    dtype: str = "float32"
    mpp_override: float | None = None
    batch: int = 8
    threads: int = 2


def embedding_paths(name: str, out: Path) -> list[Path]:
    """Everything that ``embed_slide`` may write for a slide of this name, its record first."""
    return [
        out / f"{name}{suffix}" for suffix in (".embeddings.json", ".embeddings.zarr", ".embeddings.h5ad")
    ]


def embed_slide(
    slide: Slide | str | Path,
    out: str | Path,
    encoder: Encoder,
    settings: PatchSettings | None = None,
    *,
    anndata: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Embed a slide's patches, and write them and all that seeding needs of the slide to a folder.

    ``slide`` is an open slide, or a path. Writes ``out/NAME.embeddings.zarr``, with ``anndata`` also
    ``.h5ad``, and last ``.json``, whose content it returns. Raises ``InputError``, with nothing written, for
    anything wrong with what was given; and where the ``.h5ad`` cannot be made, with all else written.
    """
    settings = settings or PatchSettings()
    if not isinstance(slide, Slide):
        with open_slide(slide, settings.mpp_override) as opened:
            return embed_slide(
                opened, out, encoder, settings, anndata=anndata, overwrite=overwrite, progress=progress
            )
    out = Path(out)
    card = encoder.card
    patch, mpp = settings.patch, settings.mpp
    if patch < 1 or patch % card.stride:
        near = max(1, round(patch / card.stride)) * card.stride
        raise InputError(
            f"--patch {patch}: must be a multiple of {card.name}'s stride, {card.stride}: try {near}"
        )
    if not 0 <= settings.overlap < 1 or not 0 <= settings.min_tissue <= 1:
        raise InputError("--overlap must be from 0 to below 1, --min-tissue from 0 to 1")
    if anndata:
        import_anndata()
    paths = embedding_paths(slide.name, out)
    check_outputs(paths, out, overwrite)
    clock = Clock()
    height, width = compute_shape(slide, mpp)
    step = max(1, round(patch * (1 - settings.overlap)))
    rows, columns = (1 + max(0, -(-(size - patch) // step)) for size in (height, width))
    tissue = choose_tissue(slide, settings.tissue)
    share = tissue_share(tissue, rows, columns, step * mpp, patch * mpp)
    grid = np.argwhere((share >= settings.min_tissue) & (share > 0)).astype(np.int32)
    if not len(grid) and patch > max(height, width):
        raise InputError(
            f"--mpp {mpp:g}: {slide.path.name} is {width} × {height} pixels at this resolution, and a patch "
            f"has {patch}: choose a finer --mpp"
        )
    if not len(grid):
        raise InputError(
            f"{slide.path}: no patch of {patch} pixels has {settings.min_tissue:.0%} of tissue; lower "
            "--min-tissue, --no-tissue embeds everything, --tissue FILE says where it is"
        )
    scale = mpp / slide.mpp
    provenance = {
        "format": FORMAT,
        "method": "SIC (Seeded iterative clustering, LMRL workshop 2022): patch embeddings",
        **made_with().to_json(),
        "slide": slide_facts(slide).to_json(),
        "encoder": {**card.to_json(), "pooling": "mean over the grid"},
        "parameters": {
            **{k: v for k, v in asdict(settings).items() if k not in ("batch", "threads")},
            "step": step,
            "side_level0": patch * scale,
        },
        "height": height,
        "width": width,
        "tissue_mpp": tissue.mpp,
        "patches": len(grid),
    }
    picture, _ = read_thumbnail(slide, FIGURE_SIDE)
    clock.lap("tissue")
    with partial_folder(f"{slide.name}.embeddings", out) as folder:
        writer = EmbeddingsWriter(
            folder / f"{slide.name}.embeddings.zarr",
            card.channels,
            centers=(grid * step + patch / 2) * scale,
            grid=grid,
            tissue=tissue.mask,
            thumbnail=picture,
            provenance=provenance,
            dtype=settings.dtype,
        )
        for part in _embed(slide, encoder, grid * step, settings, progress):
            writer.append(part)
        writer.close()
        clock.lap("embedding")
        lost = None
        if anndata:
            embedded = open_embeddings(folder / f"{slide.name}.embeddings.zarr")
            lost = try_write_anndata(folder / f"{slide.name}.embeddings.h5ad", out, embedded, slide.name)
            clock.lap("anndata")
        rate = round(len(grid) / clock.laps["embedding"], 2)
        record = {**provenance, "seconds": clock.laps, "patches_per_second": rate}
        record = finish(folder, record, paths)
    if lost:
        raise lost
    return record


def tissue_share(
    tissue: Tissue, rows: int, columns: int, step: float, side: float
) -> Float[np.ndarray, "rows columns"]:
    """Say how much of each patch is tissue, 0…1, for squares of ``side`` µm every ``step`` µm."""
    table = summed_area_table(tissue.mask)  # linear between the corners of pixels

    def at(positions: np.ndarray, values: np.ndarray) -> np.ndarray:
        p = np.clip(positions / tissue.mpp, 0, len(values) - 1)
        low = np.minimum(p.astype(int), len(values) - 2)
        return values[low] + (p - low)[:, None] * (values[low + 1] - values[low])

    def between(n: int, values: np.ndarray) -> np.ndarray:
        begin = np.arange(n) * step
        return at(begin + side, values) - at(begin, values)

    return between(columns, between(rows, table).T).T * (tissue.mpp / side) ** 2


@jax.jit
def _pool(features: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b c"]:
    return jnp.mean(features.astype(jnp.float32), axis=(1, 2))


def _embed(
    slide: Slide,
    encoder: Encoder,
    corners: Int[np.ndarray, "n 2"],
    settings: PatchSettings,
    progress: Progress,
) -> Iterator[Float[np.ndarray, "m c"]]:
    """Embed patches, read ahead in threads, in batches of one shape, the last padded with blank ones."""
    side, n = settings.patch, len(corners)
    boxes = [(int(y), int(x), side, side) for y, x in corners]
    progress("embedding", 0, n)
    for here, images in read_batches(
        slide, boxes, settings.mpp, batch=settings.batch, threads=settings.threads
    ):
        X = np.asarray(_pool(encoder(jnp.asarray(images))))[: here.stop - here.start]
        if not np.isfinite(X).all():
            y, x = corners[here.start + int(np.argmin(np.isfinite(X).all(1)))]
            raise InputError(
                f"{slide.path}: the features of the encoder {encoder.card.name!r} hold a NaN or an "
                f"infinity in the patch at y = {y}, x = {x} (at {settings.mpp:g} µm per pixel)"
            )
        yield X
        progress("embedding", here.stop, n)
