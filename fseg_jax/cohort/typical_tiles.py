"""The tiles that are typical of a codebook's clusters, and their embeddings by a model of images and words.

They are chosen among the tiles that the codebook was fitted on, or among the typical places of slides that
were segmented with it, from many slides and tiles rather than from few: what is said of a cluster is then not
said of one place. They are read from the slides again, as fields of the size that a model was published for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fseg_jax.codebook import Codebook
from fseg_jax.cohort.records import AGREEMENT, Agreement
from fseg_jax.cohort.rename import read_records
from fseg_jax.cohort.sample_folder import SlideSample, read_settings
from fseg_jax.cohort.sample_rows import SampleRows
from fseg_jax.encoders.image_text import ImageTextModel
from fseg_jax.errors import InputError
from fseg_jax.files.storage import open_storage
from fseg_jax.pipeline.slide_facts import SlideFacts
from fseg_jax.pipeline.typical import Place, read_places
from fseg_jax.slides.identity import SlideFile, identify, is_same_slide
from fseg_jax.slides.reader import open_slide

_NEAR = 0.5  # of a cluster's rows: those nearest to its centre, among which tiles are chosen
_ROWS = 4096  # of features that are compared with the centres at once
_FIELDS = 64  # that are read at once

Progress = Callable[[int, int, str], None]  # slides done, of how many, the path of the next


@dataclass(frozen=True)
class TypicalTile:
    """A tile that is typical of a cluster.

    Attributes:
        cluster: The cluster, from 0.
        slide: The slide that it is of.
        places: The fields that it is cut into.
        field: µm of a field's side.
    """

    cluster: int
    slide: SlideFacts
    places: tuple[Place, ...]
    field: float


def choose_from_features(folder: Path, book: Codebook, count: int, field: float) -> list[TypicalTile]:
    """Choose tiles of each cluster among those that the codebook was fitted on.

    They are of the half of a cluster's rows that lies nearest to its centre, or of twice as many as are
    chosen. The nearest come first; but another tile goes before another token of a tile, and another slide
    before another tile of a slide.

    Args:
        folder: The folder of features.
        book: The codebook.
        count: Number of tiles of a cluster, at most.
        field: µm of the side of what a model sees: a tile is cut into fields of about that side, and a token
            has one of it.

    Raises:
        InputError: The folder holds no features, damaged ones, or those of another codebook.
    """
    facts = _read_facts(folder, book)
    rows = SampleRows(folder, _list_slides(folder))
    if rows.shape[1] != book.channels:
        raise InputError(
            f"{folder}: its features are {rows.shape[1]} wide, the codebook's centres {book.channels}: "
            "give the folder that it was fitted on with --features"
        )
    labels, distances = _assign(rows, book)
    slides = rows.find_slides(np.arange(len(labels)))
    first_tiles = np.cumsum([0, *(len(sample.boxes) for sample in rows.samples)])
    tiles = np.concatenate(
        [sample.tiles + first for sample, first in zip(rows.samples, first_tiles[:-1], strict=True)]
    )
    order = np.lexsort((distances, labels))
    starts = np.cumsum([0, *np.bincount(labels, minlength=book.k)])
    chosen = []
    for cluster, (start, end) in enumerate(pairwise(starts)):
        near = order[start : min(end, start + max(2 * count, int(_NEAR * (end - start))))]
        near = near[np.argsort(_count_before(tiles[near]), kind="stable")]
        near = near[np.lexsort((_count_before(slides[near]), _count_before(tiles[near])))]
        for row in near[:count]:
            sample = rows.samples[slides[row]]
            own = _place_fields(sample, int(row - rows.starts[slides[row]]), facts, field)
            chosen.append(TypicalTile(cluster, sample.slide, *own))
    return chosen


def choose_from_results(place: str, book: Codebook, count: int, field: float) -> list[TypicalTile]:
    """Choose tiles of each cluster among the typical places of slides that were segmented with a codebook.

    Args:
        place: A folder of ``fseg segment`` or ``fseg cohort``, or a bucket's of the latter.
        book: The codebook.
        count: Number of tiles of a cluster, at most: the best of each slide first, then their second ones.
        field: µm of a tile's side.

    Raises:
        InputError: The place holds no such slides, or their records are damaged.
    """
    storage = open_storage(place)
    records = read_records(storage, Agreement.from_json(storage.read(AGREEMENT)), None)
    found: list[tuple[int, int, float, str, TypicalTile]] = []
    for name, record in records.items():
        if record["codebook"].get("hash") != book.hash:
            continue
        try:
            slide = SlideFacts.from_json(record["slide"])
            for cluster, called in enumerate(record["areas_mm2"]):
                for rank, each in enumerate(record["typical"].get(called, ())):
                    y, x, share = (float(each[key]) for key in ("y", "x", "share"))
                    tile = TypicalTile(cluster, slide, (Place(y * slide.mpp, x * slide.mpp, share),), field)
                    found.append((cluster, rank, -share, name, tile))
        except (LookupError, TypeError, ValueError, AttributeError):
            raise InputError(f"{storage.url}/{name}.json: damaged; segment the slide again") from None
    if not found:
        raise InputError(
            f"{place}: holds no slide that was segmented with this codebook: give other --results, or the "
            "--k that they were made with"
        )
    found.sort(key=lambda each: each[:4])
    return [tile for cluster in range(book.k) for tile in [t for j, *_, t in found if j == cluster][:count]]


def embed_tiles(
    tiles: Sequence[TypicalTile], model: ImageTextModel, *, batch: int, threads: int, progress: Progress
) -> Float[np.ndarray, "m d"]:
    """Embed tiles: the mean of the embeddings of a tile's fields, scaled to length one.

    Args:
        tiles: The tiles.
        model: The model.
        batch: Number of fields that go through it at once.
        threads: Number of threads that decode images.
        progress: Told before each slide.

    Raises:
        InputError: A slide is gone, damaged or another one.
    """
    slides = list(dict.fromkeys(tile.slide for tile in tiles))
    means: dict[int, np.ndarray] = {}
    for done, facts in enumerate(slides):
        progress(done, len(slides), facts.path)
        if not is_same_slide(facts.file, SlideFile(facts.path, identify(facts.path))):
            raise InputError(f"{facts.path}: is another slide than the one that was looked at; put that back")
        mine = [i for i, tile in enumerate(tiles) if tile.slide == facts]
        places = [place for i in mine for place in tiles[i].places]
        parts = []
        with open_slide(facts.path, facts.mpp, frame=facts.frame, series=facts.series) as slide:
            for start in range(0, len(places), _FIELDS):
                few = {0: places[start : start + _FIELDS]}
                pictures = read_places(slide, few, tiles[mine[0]].field, threads, model.side)[0]
                parts.append(_embed_pictures(pictures, model, batch))
        ends = np.cumsum([len(tiles[i].places) for i in mine])
        for i, own in zip(mine, np.split(np.concatenate(parts), ends[:-1]), strict=True):
            means[i] = own.mean(0)
    progress(len(slides), len(slides), "")
    return scale_to_length_one(np.stack([means[i] for i in range(len(tiles))]))


def scale_to_length_one(vectors: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
    """Scale vectors to length one."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _read_facts(folder: Path, book: Codebook) -> Mapping[str, Any]:
    """Read the settings of a folder of features, and check that the codebook may be fitted on such."""
    if not (folder / "settings.json").is_file():
        raise InputError(
            f"{folder}: no features of tiles: give with --features the folder that fseg fit filled for this "
            "codebook, or with --results slides that were segmented with it"
        )
    facts = read_settings(folder)
    origin = book.provenance
    for name, made_with in (
        ("encoder", origin.encoder),
        ("weights_hash", origin.weights_hash),
        ("layer", origin.layer),
        ("mpp", origin.mpp),
    ):
        if made_with and facts.get(name) != made_with:
            raise InputError(
                f"{folder}: features of {name} {str(facts.get(name))[:60]}, and the codebook's is "
                f"{str(made_with)[:60]}: give the folder that it was fitted on with --features"
            )
    sizes = (facts.get("mpp"), facts.get("tile"))
    if not all(isinstance(size, int | float) and 0 < size < 1e6 for size in sizes):
        raise InputError(f"{folder / 'settings.json'}: damaged; give another --features")
    return facts


def _list_slides(folder: Path) -> list[str]:
    slides = sorted(path.parent.name for path in (folder / "slides").glob("[!.]*/slide.json"))
    if not slides:
        raise InputError(f"{folder}: holds the features of no slide; run fseg fit again")
    return slides


def _assign(rows: SampleRows, book: Codebook) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Find the nearest centre of each row, and the squared distance to it."""
    centers = book.centers.astype(np.float64)
    squares = (centers**2).sum(1)
    is_spherical = bool(np.allclose(squares, 1, atol=1e-4))  # centres of length one: by the cosine
    n = rows.shape[0]
    labels, distances = np.empty(n, np.int64), np.empty(n)
    for start in range(0, n, _ROWS):
        X = np.asarray(rows[slice(start, min(start + _ROWS, n))], np.float64)
        if is_spherical:
            X /= np.maximum(np.linalg.norm(X, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        squared = (X**2).sum(1)[:, None] - 2 * (X @ centers.T) + squares
        own = squared.argmin(1)
        labels[start : start + len(X)] = own
        distances[start : start + len(X)] = squared[np.arange(len(X)), own]
    return labels, distances


def _count_before(groups: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Count for each entry those before it that are of its group."""
    order = np.argsort(groups, kind="stable")
    is_first = np.diff(groups[order], prepend=-1) != 0
    at = np.arange(len(groups))
    counts = np.empty(len(groups), np.int64)
    counts[order] = at - np.maximum.accumulate(np.where(is_first, at, 0))
    return counts


def _place_fields(
    sample: SlideSample, row: int, facts: Mapping[str, Any], field: float
) -> tuple[tuple[Place, ...], float]:
    """Place the fields of a row, round its token or side by side over its tile, and measure their side."""
    mpp = float(facts["mpp"])
    y, x = sample.boxes[sample.tiles[row]] * mpp
    if sample.tokens is not None:
        if sample.stride is None:
            raise InputError(
                f"{sample.slide_id}: its tokens were sampled by an earlier version, which did not say how "
                "large they are: run fseg fit with another --features"
            )
        down, right = (sample.tokens[row] + 0.5) * sample.stride * mpp
        return (Place(float(y + down), float(x + right), 1.0),), field
    tile = float(facts["tile"]) * mpp
    along = max(1, round(tile / field))
    steps = (np.arange(along) + 0.5) * (tile / along)
    places = (Place(float(y + down), float(x + right), 1.0) for down in steps for right in steps)
    return tuple(places), tile / along


def _embed_pictures(pictures: np.ndarray, model: ImageTextModel, batch: int) -> Float[np.ndarray, "n d"]:
    """Embed pictures, some at a time; the last ones are filled up, so that nothing recompiles."""
    n = len(pictures)
    filled = np.pad(pictures, ((0, -n % batch), (0, 0), (0, 0), (0, 0)), mode="edge")
    parts = [model.embed_images(filled[start : start + batch]) for start in range(0, n, batch)]
    return np.concatenate(parts)[:n].astype(np.float64)
