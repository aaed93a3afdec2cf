"""The tiles that are typical of a codebook's clusters, and their embeddings by a model of images and words.

Typical are the rows of the samples that lie nearest to a cluster's centre, those that the codebook's card
shows. Their tiles are read from the slides again, as fields of the size that the model was published for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fseg_jax.codebook import Codebook
from fseg_jax.cohort.sample_folder import SlideSample
from fseg_jax.cohort.sample_rows import SampleRows
from fseg_jax.encoders.image_text import ImageTextModel
from fseg_jax.errors import InputError
from fseg_jax.pipeline.typical import Place, read_places
from fseg_jax.slides.identity import SlideFile, identify, is_same_slide
from fseg_jax.slides.reader import open_slide

MPP = 0.5  # µm per pixel of what the model sees, about: 20×, where such models are judged
_ROWS = 4096  # of features that are compared with the centres at once
_FIELDS = 64  # that are read at once

Progress = Callable[[int, int, str], None]  # slides done, of how many, the id of the next


@dataclass(frozen=True)
class TypicalTiles:
    """The rows of samples that lie nearest to each centre.

    Attributes:
        rows: Indices of the rows.
        clusters: The cluster of each, from 0.
    """

    rows: Int[np.ndarray, " m"]
    clusters: Int[np.ndarray, " m"]


def find_typical_tiles(rows: SampleRows, book: Codebook, count: int) -> TypicalTiles:
    """Find the rows of each cluster that lie nearest to its centre, as the codebook's card has them."""
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
    order = np.lexsort((distances, labels))
    counts = np.bincount(labels, minlength=book.k)
    starts = np.cumsum([0, *counts])[:-1]
    taken = [order[start : start + min(count, size)] for start, size in zip(starts, counts, strict=True)]
    return TypicalTiles(np.concatenate(taken), np.repeat(np.arange(book.k), [len(part) for part in taken]))


def embed_tiles(
    rows: SampleRows,
    typical: TypicalTiles,
    facts: Mapping[str, Any],
    model: ImageTextModel,
    *,
    batch: int,
    threads: int,
    progress: Progress,
) -> Float[np.ndarray, "m d"]:
    """Embed tiles: the mean of the embeddings of the fields that a tile is cut into, of length one.

    Args:
        rows: The samples.
        typical: Which of their rows.
        facts: What the samples were made with (``settings.json``).
        model: The model.
        batch: Number of fields that go through it at once.
        threads: Number of threads that decode images.
        progress: Told before each slide.

    Raises:
        InputError: A slide is gone, damaged or another one.
    """
    of_slides = rows.find_slides(typical.rows)
    embedded: list[np.ndarray] = [np.zeros(0)] * len(typical.rows)
    slides = np.unique(of_slides)
    for done, index in enumerate(slides):
        sample = rows.samples[index]
        progress(done, len(slides), sample.slide_id)
        mine = np.flatnonzero(of_slides == index)
        own = [
            _place_fields(sample, int(typical.rows[i] - rows.starts[index]), facts, model.side) for i in mine
        ]
        field = _measure_field(sample, facts, model.side)
        _check_slide(sample)
        with open_slide(
            sample.slide.path, sample.manifest.mpp, frame=sample.slide.frame, series=sample.manifest.series
        ) as slide:
            places = [place for fields in own for place in fields]
            parts = []
            for start in range(0, len(places), _FIELDS):
                chosen = {0: places[start : start + _FIELDS]}
                pictures = read_places(slide, chosen, field, threads, model.side)[0]
                parts.append(_embed_pictures(pictures, model, batch))
        fields_of = np.concatenate(parts)
        for i, first in zip(mine, range(0, len(places), len(own[0])), strict=True):
            embedded[i] = fields_of[first : first + len(own[0])].mean(0)
    progress(len(slides), len(slides), "")
    return scale_to_length_one(np.stack(embedded))


def _measure_field(sample: SlideSample, facts: Mapping[str, Any], side: int) -> float:
    """Measure a field's side in µm: what the model sees at ``MPP``, or of a tile the nearest part of that."""
    if sample.tokens is not None:
        return side * MPP
    tile = float(facts["tile"] * facts["mpp"])
    return tile / max(1, round(tile / (side * MPP)))


def _place_fields(sample: SlideSample, row: int, facts: Mapping[str, Any], side: int) -> list[Place]:
    """Place the fields of a row: round its token, or side by side over its tile."""
    mpp = float(facts["mpp"])
    y, x = sample.boxes[sample.tiles[row]] * mpp
    if sample.tokens is not None:
        if sample.stride is None:
            raise InputError(
                f"{sample.slide_id}: its tokens were sampled by an earlier version, which did not say how "
                "large they are: run fseg fit with another --features"
            )
        down, right = (sample.tokens[row] + 0.5) * sample.stride * mpp
        return [Place(float(y + down), float(x + right), 1.0)]
    field = _measure_field(sample, facts, side)
    steps = (np.arange(round(float(facts["tile"]) * mpp / field)) + 0.5) * field
    return [Place(float(y + down), float(x + right), 1.0) for down in steps for right in steps]


def _check_slide(sample: SlideSample) -> None:
    path = sample.slide.path
    if not is_same_slide(sample.slide.file, SlideFile(path, identify(path))):
        raise InputError(
            f"{path}: is another slide than the one that was sampled as {sample.slide_id}: put that back"
        )


def _embed_pictures(pictures: np.ndarray, model: ImageTextModel, batch: int) -> Float[np.ndarray, "n d"]:
    """Embed pictures, some at a time; the last ones are filled up, so that nothing recompiles."""
    n = len(pictures)
    filled = np.pad(pictures, ((0, -n % batch), (0, 0), (0, 0), (0, 0)), mode="edge")
    parts = [model.embed_images(filled[start : start + batch]) for start in range(0, n, batch)]
    return np.concatenate(parts)[:n].astype(np.float64)


def scale_to_length_one(vectors: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
    """Scale vectors to length one."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
