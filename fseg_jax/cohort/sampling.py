"""Sample every slide of a cohort: draw tiles from its tissue, encode them, and keep the rows of features."""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from fseg_jax.cohort.manifest import ManifestSlide, hash_tissue_file
from fseg_jax.cohort.sample_folder import (
    DTYPES,
    SMALLEST_NORMAL,
    THUMBNAIL_SIDE,
    THUMBNAILS_PER_LINE,
    UNKNOWN,
    ManifestFacts,
    SampleSettings,
    SlideSample,
    StoredDtype,
    has_sample,
    is_normalized,
    is_whole,
    prepare_folder,
    read_sample,
    thumbnail_corner,
    tile_side,
    write_sample,
)
from fseg_jax.cohort.survey import identify_slide
from fseg_jax.cohort.tile_rows import (
    Rows,
    TileRows,
    count_tokens,
    describe_tokens,
    join_rows,
    sample_average,
    sample_tokens,
)
from fseg_jax.encoders.encoder import Encoder, EncoderCard
from fseg_jax.errors import InputError, OutputError
from fseg_jax.pipeline.batching import choose_batch, choose_threads
from fseg_jax.pipeline.embed import measure_tissue
from fseg_jax.pipeline.pure_tokens import find_deep
from fseg_jax.pipeline.record import made_with
from fseg_jax.pipeline.slide_facts import slide_facts
from fseg_jax.slides.identity import is_same_slide
from fseg_jax.slides.reader import Slide, compute_shape, open_slide, read_batches
from fseg_jax.slides.stain_normalization import measure_slide, recolour
from fseg_jax.slides.tissue import Tissue, choose_tissue

_log = logging.getLogger(__name__)

_SURVEY_THREADS = 8

SampleProgress = Callable[[int, int, str], None]  # slides done, of how many, the id of the next


def sample_cohort(
    slides: Sequence[ManifestSlide],
    folder: Path,
    encoder: Encoder,
    settings: SampleSettings,
    *,
    shard: tuple[int, int] = (0, 1),
    progress: SampleProgress = lambda done, total, slide_id: None,
) -> dict[str, str]:
    """Sample the slides that the folder has no sample of, and return the failures, slide id to reason.

    Slides whose file, tissue or manifest line has changed are sampled again, and the log says why. A slide
    that fails does not stop the others; the next run tries it again.

    Args:
        slides: The cohort.
        folder: Folder of samples (``sample_folder``), made where it is not there.
        encoder: Encoder of the tiles.
        settings: How to sample.
        shard: (i, n) samples every n-th slide from the i-th on, so that n workers share the slides.
        progress: Told before each slide.

    Raises:
        InputError: The folder was made with other settings.
        OutputError: It cannot be written.
    """
    prepare_folder(folder, encoder.card, settings, len(slides))
    share = slides[shard[0] :: shard[1]]
    with ThreadPoolExecutor(_SURVEY_THREADS, thread_name_prefix="fseg-look") as pool:
        are_sampled = list(pool.map(lambda line: _is_sampled(folder, line, settings), share))
    todo = [line for line, is_sampled in zip(share, are_sampled, strict=True) if not is_sampled]
    failures = {}
    for i, line in enumerate(todo):
        progress(i, len(todo), line.slide_id)
        try:
            facts = _manifest_facts(line, settings)
            with open_slide(line.path, facts.mpp, frame=settings.frame, series=facts.series) as slide:
                _sample_slide(line, slide, folder, encoder, settings)
        except OutputError:
            raise
        except InputError as error:
            failures[line.slide_id] = str(error)
    progress(len(todo), len(todo), "")
    return failures


def draw_tiles(
    slide: Slide, slide_id: str, side: int, settings: SampleSettings, tissue: Tissue
) -> Int[np.ndarray, "t 2"]:
    """Draw tiles with tissue from a slide, and return their corners (y, x) in pixels of the settings' mpp.

    The slide's id is the seed: tiles depend on no other slide. Raises ``InputError`` where no tile has
    enough tissue.
    """
    height, width = compute_shape(slide, settings.mpp)
    rows, columns = max(1, height // side), max(1, width // side)
    microns = side * settings.mpp
    share = measure_tissue(tissue, rows, columns, microns, microns)
    tiles = np.argwhere((share >= settings.min_tissue) & (share > 0))
    if not len(tiles):
        raise InputError(
            f"{slide.path}: no tile of {side} pixels at {settings.mpp:g} µm has {settings.min_tissue:.0%} of "
            "tissue; --min-tissue takes tiles with less, --no-tissue everything, the manifest's column "
            "tissue says where it is"
        )
    if len(tiles) > settings.tiles:
        drawn = _seed_by_id(slide_id).choice(len(tiles), settings.tiles, replace=False)
        tiles = tiles[np.sort(drawn)]
    return (tiles * side).astype(np.int32)


def _seed_by_id(slide_id: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(slide_id.encode()).digest()))


def _sample_slide(
    line: ManifestSlide, slide: Slide, folder: Path, encoder: Encoder, settings: SampleSettings
) -> None:
    started = time.perf_counter()
    card = encoder.card
    side = tile_side(settings, card)
    facts = _manifest_facts(line, settings)
    tissue = choose_tissue(slide, facts.tissue).drop_artefacts()
    corners = draw_tiles(slide, line.slide_id, side, settings, tissue)
    rows, border, thumbnails = _sample_tiles(slide, line.slide_id, corners, side, tissue, encoder, settings)
    sample = SlideSample(
        slide_id=line.slide_id,
        rows=len(rows.features),
        manifest=facts,
        tissue_sha256=hash_tissue_file(facts.tissue),
        boxes=corners,
        tiles=rows.tiles,
        tokens=rows.tokens if settings.on == "tokens" else None,
        stride=card.stride,
        facts=rows.facts,
        border_rows=len(border),
        slide=slide_facts(slide),
        made_with=made_with(),
        seconds=round(time.perf_counter() - started, 3),
    )
    write_sample(
        folder,
        sample,
        narrow(rows.features, settings.dtype, slide.path, card),
        narrow(border, settings.dtype, slide.path, card),
        thumbnails,
        replace=bool(_find_change(folder, line, settings)),
    )


def _sample_tiles(
    slide: Slide,
    slide_id: str,
    corners: Int[np.ndarray, "t 2"],
    side: int,
    tissue: Tissue,
    encoder: Encoder,
    settings: SampleSettings,
) -> tuple[Rows, Float[np.ndarray, "b c"], Image.Image]:
    """Encode tiles: the rows that centres are fitted on, tokens at the border, and pictures of all tiles."""
    sample = sample_tokens if settings.on == "tokens" else sample_average
    deep, rng, count = find_deep(tissue), _seed_by_id(slide_id), count_tokens(len(corners))
    parts: list[TileRows] = []
    lines = -(-len(corners) // THUMBNAILS_PER_LINE)
    size = (THUMBNAILS_PER_LINE * THUMBNAIL_SIDE, lines * THUMBNAIL_SIDE)
    thumbnails = Image.new("RGB", size, "white")
    boxes = [(int(y), int(x), side, side) for y, x in corners]
    gains = measure_slide(slide, tissue, settings.mpp) if is_normalized(settings, encoder.card) else None
    batches = read_batches(
        slide,
        boxes,
        settings.mpp,
        batch=choose_batch(settings.batch, side),
        threads=choose_threads(settings.threads),
        recolour=None if gains is None else partial(recolour, gains=gains),
    )
    for span, images in batches:
        features = np.asarray(encoder(jnp.asarray(images)).astype(jnp.float32))
        for tile, A, image in zip(range(span.start, span.stop), features, images, strict=False):
            tokens = describe_tokens(A, image, boxes[tile][:2], settings.mpp, tissue, deep)
            order = rng.permutation(tokens.deep.size)
            parts.append(sample(tokens, tile, order, count, settings.pure))
            y, x = thumbnail_corner(tile)
            thumbnails.paste(_shrink(image), (x, y))
    rows, thin, border = (join_rows(rows) for rows in zip(*parts, strict=True))
    if not len(rows.features):
        _log.info("%s: no token lies 40 µm deep in tissue; all of its tissue is taken", slide_id)
        rows = thin
    if not len(rows.features):
        raise InputError(
            f"{slide.path}: no token of its tiles has its centre on tissue: --no-tissue takes all"
        )
    return rows, border.features, thumbnails


def _shrink(image: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
    return Image.fromarray(image).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)


def narrow(
    features: Float[np.ndarray, "m c"], dtype: StoredDtype, path: Path, card: EncoderCard
) -> Float[np.ndarray, "m c"]:
    """Convert features to the number type that they are stored in.

    Raises ``InputError`` for features that are not finite, or out of the type's range.
    """
    if not np.isfinite(features).all():
        raise InputError(
            f"{path}: the features of the encoder {card.name!r} hold a NaN or an infinity: its weights "
            "are damaged, or its dtype too narrow"
        )
    with np.errstate(over="ignore"):
        rows = features.astype(DTYPES[dtype])
    largest = np.abs(features).max(initial=0)
    if not np.isfinite(rows.astype(np.float32)).all() or 0 < largest < SMALLEST_NORMAL[dtype]:
        raise InputError(
            f"{path}: features of up to {largest:.3g} do not fit in {dtype}: choose --store bfloat16"
        )
    return rows


def _manifest_facts(line: ManifestSlide, settings: SampleSettings) -> ManifestFacts:
    series = settings.series if line.series is None else line.series
    return ManifestFacts(line.mpp or settings.mpp_override, line.tissue or settings.tissue, series)


def _is_sampled(folder: Path, line: ManifestSlide, settings: SampleSettings) -> bool:
    """Whether a slide has a sample, whole, and made of what the manifest names now."""
    if not has_sample(folder, line.slide_id):
        return False
    reason = _find_change(folder, line, settings)
    if reason:
        _log.warning("%s: %s; sampled again", line.slide_id, reason)
    return not reason


def _find_change(folder: Path, line: ManifestSlide, settings: SampleSettings) -> str:
    """Return why a slide's sample cannot be used any more; empty where it can."""
    try:
        sample = read_sample(folder, line.slide_id)
    except InputError:
        return "its record is damaged"
    if not is_whole(folder, sample):
        return "some of its features are gone"
    facts = _manifest_facts(line, settings)
    if facts != sample.manifest:
        return f"sampled when the manifest said {vars(sample.manifest)}, and now it says {vars(facts)}"
    if sample.tissue_sha256 not in (UNKNOWN, hash_tissue_file(facts.tissue)):
        return "its tissue file is another one"
    file = identify_slide(line)
    return (
        "the file at its path is another one" if file and not is_same_slide(sample.slide.file, file) else ""
    )
