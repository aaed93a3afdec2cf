"""Embed a slide's patches once; ``clicks`` then segments them, as often as seeds change.

The paper (SIC, §2.1) pools a network's last layer. Here a patch's embedding is the mean over its grid of the
encoder's features (``card.layer``, negative values set to zero). For a CNN this is the globally pooled last
layer; for a vision transformer, the mean of the final block's patch tokens, without the class token.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fseg_jax.encoders.encoder import Encoder
from fseg_jax.errors import InputError
from fseg_jax.files.partial_folders import open_partial_folder
from fseg_jax.numerics.areas import summed_area_table
from fseg_jax.outputs.anndata_export import import_anndata, try_write_anndata
from fseg_jax.outputs.embeddings import EmbeddingsWriter, open_embeddings
from fseg_jax.outputs.patch_h5 import import_h5py
from fseg_jax.pipeline.batching import choose_batch, choose_threads
from fseg_jax.pipeline.patch_export import write_embeddings_h5
from fseg_jax.pipeline.patch_records import EmbedRecord, PatchEncoder, PatchParameters, PatchProvenance
from fseg_jax.pipeline.plan import FIGURE_SIDE
from fseg_jax.pipeline.publish import Clock, Json, check_outputs, finish
from fseg_jax.pipeline.record import made_with
from fseg_jax.pipeline.slide_facts import slide_facts
from fseg_jax.process import Progress
from fseg_jax.slides.bounds import Frame
from fseg_jax.slides.reader import Slide, compute_shape, make_picture, open_slide, read_batches
from fseg_jax.slides.tissue import Tissue, choose_tissue, read_overview

FORMAT = 1  # of the outputs: raised when what they hold changes
METHOD = "SIC (Seeded iterative clustering, LMRL workshop 2022): patch embeddings"


@dataclass(frozen=True)
class PatchSettings:
    """How to embed a slide. All but ``batch`` and ``threads`` affect the result and are in its record.

    Attributes:
        patch: Side of a patch in pixels.
        overlap: Overlap of neighbouring patches, as a fraction of the patch.
        mpp: Working resolution in µm per pixel.
        tissue: ``"find"``, ``"all"``, or the path of a mask or outline.
        min_tissue: Least fraction of tissue in a patch that is embedded.
        dtype: Dtype that embeddings are stored in.
        mpp_override: µm per pixel of the slide's finest level, in place of what its file says.
        frame: What coordinates count from, where the file is a scan on a larger canvas (``slides.bounds``).
        series: Which image of the file to read, where it has several; None: the largest.
        batch: Patches that go to the encoder at once; None: by the device (``batching``).
        threads: Threads that decode; None: by the device.
    """

    patch: int = 256
    overlap: float = 0.5
    mpp: float = 0.5
    tissue: str = "find"
    min_tissue: float = 0.25
    dtype: Literal["float32", "float16"] = "float32"
    mpp_override: float | None = None
    frame: Frame = "bounds"
    series: int | None = None
    batch: int | None = None
    threads: int | None = None


def list_embedding_paths(name: str, out: Path) -> list[Path]:
    """List everything that ``embed_slide`` may write for a slide of this name, its record first."""
    suffixes = (".json", ".zarr", ".h5ad", ".h5")
    return [out / f"{name}.embeddings{suffix}" for suffix in suffixes]


def embed_slide(
    slide: Slide | str | Path,
    out: str | Path,
    encoder: Encoder,
    settings: PatchSettings | None = None,
    *,
    anndata: bool = False,
    h5: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda phase, done, total: None,
) -> Json:
    """Embed a slide's patches, and write them and all that seeding needs of the slide to a folder.

    Writes ``out/NAME.embeddings.zarr``, if wanted ``.h5ad`` and ``.h5``, and, last, ``.json``.

    Args:
        slide: An open slide, or a path that is opened with the settings' ``mpp_override``, ``frame``
            and ``series``.
        out: The folder to write to.
        encoder: The encoder.
        settings: How to embed.
        anndata: Whether to write the ``.h5ad`` too.
        h5: Whether to write the ``.h5`` too, laid out as TRIDENT's (``outputs.patch_h5``).
        overwrite: Whether outputs that exist are replaced.
        progress: Called as the work goes on.

    Returns:
        What the record ``NAME.embeddings.json`` holds.

    Raises:
        InputError: Something that was given is wrong; nothing is written then. Or the ``.h5ad`` cannot be
            written; everything else is then.
    """
    settings = settings or PatchSettings()
    if not isinstance(slide, Slide):
        with open_slide(slide, settings.mpp_override, frame=settings.frame, series=settings.series) as opened:
            return embed_slide(
                opened,
                out,
                encoder,
                settings,
                anndata=anndata,
                h5=h5,
                overwrite=overwrite,
                progress=progress,
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
    if h5:
        import_h5py()
    paths = list_embedding_paths(slide.name, out)
    check_outputs(paths, out, overwrite)
    clock = Clock()
    height, width = compute_shape(slide, mpp)
    step = max(1, round(patch * (1 - settings.overlap)))
    rows, columns = (1 + max(0, -(-(size - patch) // step)) for size in (height, width))
    overview = read_overview(slide) if settings.tissue == "find" else None
    tissue = choose_tissue(slide, settings.tissue, overview)
    share = measure_tissue(tissue, rows, columns, step * mpp, patch * mpp)
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
    provenance = PatchProvenance(
        format=FORMAT,
        method=METHOD,
        **vars(made_with()),
        slide=slide_facts(slide),
        encoder=PatchEncoder(card),
        parameters=PatchParameters(
            patch=patch,
            overlap=settings.overlap,
            mpp=mpp,
            tissue=settings.tissue,
            min_tissue=settings.min_tissue,
            dtype=settings.dtype,
            mpp_override=settings.mpp_override,
            step=step,
            side_level0=patch * scale,
        ),
        height=height,
        width=width,
        tissue_mpp=tissue.mpp,
        patches=len(grid),
    )
    picture, _ = make_picture(slide, FIGURE_SIDE, overview)
    clock.lap("tissue")
    with open_partial_folder(f"{slide.name}.embeddings", out) as folder:
        writer = EmbeddingsWriter(
            folder / f"{slide.name}.embeddings.zarr",
            card.channels,
            centers=(grid * step + patch / 2) * scale,
            grid=grid,
            tissue=tissue.mask,
            thumbnail=picture,
            provenance=provenance.to_json(),
            dtype=settings.dtype,
        )
        for part in _embed_patches(slide, encoder, grid * step, settings, progress):
            writer.append(part)
        writer.close()
        clock.lap("embedding")
        export_error = None
        if h5:
            embedded = open_embeddings(folder / f"{slide.name}.embeddings.zarr")
            write_embeddings_h5(folder / f"{slide.name}.embeddings.h5", embedded)
            clock.lap("h5")
        if anndata:
            embedded = open_embeddings(folder / f"{slide.name}.embeddings.zarr")
            export_error = try_write_anndata(
                folder / f"{slide.name}.embeddings.h5ad", out, embedded, slide.name
            )
            clock.lap("anndata")
        rate = round(len(grid) / clock.laps["embedding"], 2)
        content = finish(folder, EmbedRecord(provenance, clock.laps, rate).to_json(), paths)
    if export_error:
        raise export_error
    return content


def measure_tissue(
    tissue: Tissue, rows: int, columns: int, step: float, side: float
) -> Float[np.ndarray, "rows columns"]:
    """Measure which fraction of each patch is tissue, for squares of ``side`` µm every ``step`` µm."""
    table = summed_area_table(tissue.mask)  # linear between the corners of pixels

    def interpolate(positions: np.ndarray, values: np.ndarray) -> np.ndarray:
        p = np.clip(positions / tissue.mpp, 0, len(values) - 1)
        low = np.minimum(p.astype(int), len(values) - 2)
        return np.asarray(values[low] + (p - low)[:, None] * (values[low + 1] - values[low]))

    def sum_patches(n: int, values: np.ndarray) -> np.ndarray:
        begin = np.arange(n) * step
        return np.asarray(interpolate(begin + side, values) - interpolate(begin, values))

    return sum_patches(columns, sum_patches(rows, table).T).T * (tissue.mpp / side) ** 2


@jax.jit
def _pool(features: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b c"]:
    return jnp.mean(features.astype(jnp.float32), axis=(1, 2))


def _embed_patches(
    slide: Slide,
    encoder: Encoder,
    corners: Int[np.ndarray, "n 2"],
    settings: PatchSettings,
    progress: Progress,
) -> Iterator[Float[np.ndarray, "m c"]]:
    """Embed patches in batches of one shape, the last padded with blank ones; threads read ahead."""
    side, n = settings.patch, len(corners)
    boxes = [(int(y), int(x), side, side) for y, x in corners]
    progress("embedding", 0, n)
    size, threads = choose_batch(settings.batch, side), choose_threads(settings.threads)
    for batch, images in read_batches(slide, boxes, settings.mpp, batch=size, threads=threads):
        X = np.asarray(_pool(encoder(jnp.asarray(images))))[: batch.stop - batch.start]
        if not np.isfinite(X).all():
            y, x = corners[batch.start + int(np.argmin(np.isfinite(X).all(1)))]
            raise InputError(
                f"{slide.path}: the features of the encoder {encoder.card.name!r} hold a NaN or an "
                f"infinity in the patch at y = {y}, x = {x} (at {settings.mpp:g} µm per pixel)"
            )
        yield X
        progress("embedding", batch.stop, n)
