"""Take patch features of another program in place of ``embed``'s: ``clicks`` segments them too."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError
from fseg_jax.files.partial_folders import open_partial_folder
from fseg_jax.outputs.embeddings import EmbeddingsWriter
from fseg_jax.outputs.patch_h5 import PatchFile, read_patch_features, read_patch_file
from fseg_jax.pipeline.embed import FORMAT, list_embedding_paths
from fseg_jax.pipeline.patch_records import EmbedRecord, PatchEncoder, PatchParameters, PatchProvenance
from fseg_jax.pipeline.plan import FIGURE_SIDE
from fseg_jax.pipeline.publish import Clock, Json, check_outputs, finish
from fseg_jax.pipeline.record import made_with
from fseg_jax.pipeline.slide_facts import SlideFacts, slide_facts
from fseg_jax.process import warn_once
from fseg_jax.slides.reader import Slide, make_picture, name_outputs, open_slide

METHOD = "patch features of another program"
_FINE = 16  # pixels of a patch's side, at least, at the working resolution
_FREE = 32  # pixels of the side of patches that lie on no grid
_NO_SLIDES = (".h5", ".json", ".geojson", ".csv", ".txt", ".xml", ".pt")
_MICRONS = 10.0  # µm per pixel times magnification


class Lattice(NamedTuple):
    """The grid that patches lie on.

    Attributes:
        scale: Level-0 pixels of a pixel at the working resolution.
        patch: Pixels of a patch's side.
        step: Pixels from a place in the grid to the next.
        grid: (row, column) of each patch.
    """

    scale: float
    patch: int
    step: int
    grid: Int[np.ndarray, "n 2"]


def take_patches(
    path: Path, out: Path, slides: Path | None, mpp: float | None, *, overwrite: bool = False
) -> None:
    """Import the patch features of an HDF5 file, unless a folder has them and none are to be replaced.

    Args:
        path: The file, called as the slide is.
        out: The folder to write to.
        slides: The folder of the slides; None: they are not at hand.
        mpp: µm per pixel of the slide's finest level, in place of the slide's.
        overwrite: Whether outputs that exist are replaced.

    Raises:
        InputError: As from ``import_patches``, or the folder has no such slide.
    """
    if (out / f"{path.stem}.embeddings.json").exists() and not overwrite:
        return
    if slides is None:
        import_patches(path, out, mpp=mpp, overwrite=overwrite)
        return
    with open_slide(find_slide(slides, path.stem), mpp) as slide:
        import_patches(path, out, slide=slide, mpp=mpp, overwrite=overwrite)


def import_patches(
    path: Path,
    out: Path,
    *,
    slide: Slide | None = None,
    mpp: float | None = None,
    overwrite: bool = False,
) -> Json:
    """Write the patch features of an HDF5 file as ``embed_slide`` writes its own.

    Args:
        path: A file of TRIDENT's or CLAM's layout (``outputs.patch_h5``), called as the slide is.
        out: The folder to write to.
        slide: The slide, for its picture and its resolution; None: neither is known from it.
        mpp: µm per pixel of the slide's finest level, in place of the slide's; without both, a nominal one
            follows from the magnification that the file states.
        overwrite: Whether outputs that exist are replaced.

    Returns:
        What the record ``NAME.embeddings.json`` holds.

    Raises:
        InputError: The file is damaged, of another slide, or states no resolution; nothing is written then.
    """
    patches = read_patch_file(path)
    paths = list_embedding_paths(patches.name, out)
    check_outputs(paths, out, overwrite)
    clock = Clock()
    facts = _find_slide(patches, slide, mpp)
    # The canvas's corner, from which other programs count, may lie outside the scan (``slides.bounds``).
    corners = np.maximum(patches.corners - facts.origin[::-1], 0)
    lattice = find_lattice(corners, patches.side)
    working = facts.mpp * lattice.scale
    height, width = (max(1, round(size / lattice.scale)) for size in (facts.height, facts.width))
    cell = lattice.step if lattice.patch % lattice.step == 0 else 1
    mask = _mark_patches(lattice, cell, height, width)
    if slide is None:
        thumbnail = _draw_patches(mask)
    else:
        thumbnail, _ = make_picture(slide, FIGURE_SIDE, None)
    card = EncoderCard(
        name=patches.encoder or "unknown",
        layer="",
        channels=patches.channels,
        stride=lattice.patch,
        tile=lattice.patch,
        mpp=working,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        licence="unknown",
        citation="",
        weights_hash="",
    )
    provenance = PatchProvenance(
        format=FORMAT,
        method=METHOD,
        **vars(made_with()),
        slide=facts,
        encoder=PatchEncoder(card, f"as in {path}"),
        parameters=PatchParameters(
            patch=lattice.patch,
            overlap=max(0.0, 1 - lattice.step / lattice.patch),
            mpp=working,
            tissue=str(path),
            min_tissue=0.0,
            dtype="float32",
            mpp_override=mpp,
            step=lattice.step,
            side_level0=lattice.patch * lattice.scale,
        ),
        height=height,
        width=width,
        tissue_mpp=working * cell,
        patches=len(lattice.grid),
    )
    with open_partial_folder(f"{patches.name}.embeddings", out) as folder:
        writer = EmbeddingsWriter(
            folder / f"{patches.name}.embeddings.zarr",
            patches.channels,
            centers=(lattice.grid * lattice.step + lattice.patch / 2) * lattice.scale,
            grid=lattice.grid,
            tissue=mask,
            thumbnail=thumbnail,
            provenance=provenance.to_json(),
        )
        for part in read_patch_features(patches):
            writer.append(part)
        writer.close()
        clock.lap("import")
        rate = round(len(lattice.grid) / max(clock.laps["import"], 1e-3), 2)
        return finish(folder, EmbedRecord(provenance, clock.laps, rate).to_json(), paths)


def find_slide(folder: Path, name: str) -> Path:
    """Find the slide of a name in a folder.

    Raises:
        InputError: There is none, or no such folder.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in entries:
        if path.suffix.lower() not in _NO_SLIDES and name_outputs(path) == name:
            return path
    raise InputError(f"--slides {folder}: holds no slide called {name}")


def _find_slide(patches: PatchFile, slide: Slide | None, mpp: float | None) -> SlideFacts:
    """Find which slide features are of.

    Raises:
        InputError: The slide that was given is another, or no resolution is known.
    """
    if slide is not None:
        top, left = slide.origin
        last = patches.corners.max(0) - (left, top)
        is_other = not (top or left) and patches.size not in (None, (slide.height, slide.width))
        if is_other or (last >= (slide.width, slide.height)).any():
            raise InputError(
                f"{patches.path}: is not of {slide.path}, which has {slide.width} × {slide.height} pixels"
            )
        return slide_facts(slide)
    if mpp is None and patches.magnification is not None:
        mpp = _MICRONS / patches.magnification
        warn_once(
            f"{patches.path.parent}: its files state a magnification, {patches.magnification:g}, and no "
            f"resolution; {mpp:g} µm per pixel are taken for it: --mpp-override says better"
        )
    if mpp is None:
        raise InputError(f"{patches.path}: states no resolution; give it with --mpp-override or --slides")
    width, height = (int(v) for v in patches.corners.max(0) + patches.side)
    height, width = patches.size or (height, width)
    return SlideFacts(patches.name, None, "", height, width, mpp)


def find_lattice(corners: Int[np.ndarray, "n 2"], side: int) -> Lattice:
    """Find the grid that patches lie on; patches on none are moved by at most 1/64 of their side.

    Args:
        corners: (x, y) of the patches' corners in level-0 pixels.
        side: A patch's side in level-0 pixels.
    """
    spacing = math.gcd(*map(int, np.unique(corners)))
    common = math.gcd(spacing, side)
    if common * _FREE < side:  # each contour of CLAM has a grid of its own
        scale = side / _FREE
        return Lattice(scale, _FREE, 1, np.rint(corners[:, ::-1] / scale).astype(np.int32))
    step = side if spacing == 0 else spacing if spacing <= side else common
    finer = -(-_FINE // (side // common))
    grid = (corners[:, ::-1] // step).astype(np.int32)
    return Lattice(common / finer, side // common * finer, step // common * finer, grid)


def _mark_patches(lattice: Lattice, cell: int, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Mark where patches lie, in cells of ``cell`` pixels."""
    n = lattice.patch // cell
    shape = tuple(-(-size // cell) + n for size in (height, width))
    starts = np.zeros((shape[0] + 1, shape[1] + 1), np.int32)
    y, x = (lattice.grid * lattice.step // cell).T
    for dy, dx, sign in ((0, 0, 1), (n, 0, -1), (0, n, -1), (n, n, 1)):
        np.add.at(starts, (np.minimum(y + dy, shape[0]), np.minimum(x + dx, shape[1])), sign)
    covered = starts.cumsum(0).cumsum(1) > 0
    return np.asarray(covered[: -(-height // cell), : -(-width // cell)])


def _draw_patches(mask: Bool[np.ndarray, "h w"]) -> np.ndarray:
    """Draw where patches lie, for want of the slide."""
    step = max(1, -(-max(mask.shape) // FIGURE_SIDE))
    grey = np.where(mask[::step, ::step], 215, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
