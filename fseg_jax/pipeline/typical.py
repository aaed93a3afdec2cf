"""The places on a slide that are most typical of each cluster, found while its tokens stream by.

A place is a field of about 128 µm that is one cluster's as far as can be, its middle above all. A cluster has
three at most, and no two overlap. The slide is divided into cells; of each, only its best token of each
cluster can be a place. So what is kept does not depend on how the slide is tiled, and is bounded.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8, UInt16
from PIL import Image

from fseg_jax.numerics.typical import WHOLE, score_typical
from fseg_jax.pipeline.plan import Plan
from fseg_jax.slides.reader import Slide, prefetch_boxes

TILE = 128  # pixels of the side of a field's picture
_FIELD = (128.0, 224.0)  # µm of a field's side, least and most
_CORE = 0.6  # of a field's side: what counts twice as much as the rest
_LEAST_FIELDS = 4  # fields along a slide's shorter side
_PLACES = 3  # of a cluster
_CANDIDATES = 24  # cells of a cluster that are kept
_APART = (4, 1)  # fields between two places: as far as is good, and at least
_LEAST_SCORE = 0.5  # of the score of a cluster's best place
_MOST_CLUSTERS = 128  # that have places: the largest


class Place(NamedTuple):
    """A place that is typical of a cluster.

    Attributes:
        y: Its centre, in µm from the slide's top.
        x: Its centre, in µm from the slide's left.
        share: The cluster's mean share of the contributions round it.
    """

    y: float
    x: float
    share: float


class TypicalPlaces:
    """The most typical places of a slide's clusters, while rows of its tokens are appended.

    Attributes:
        field: µm of a field's side.
    """

    def __init__(self, plan: Plan) -> None:
        grid = plan.grid
        self._token = grid.stride * plan.mpp
        self._tissue = plan.tissue.drop_artefacts()
        shorter = min(plan.slide.height, plan.slide.width) * plan.slide.mpp
        self.field = min(float(np.clip(TILE * plan.mpp, *_FIELD)), shorter / _LEAST_FIELDS)
        self._radius, self._core = (
            max(1, round(share * self.field / 2 / self._token)) for share in (1, _CORE)
        )
        self._cell = 2 * self._core
        self._width = max(1, round(self.field / self._token))  # of a field, in tokens
        columns = -(-grid.width // grid.stride)
        framed = (self._radius, columns + 2 * self._radius)
        self._labels, self._shares = np.zeros(framed, np.uint16), np.zeros(framed, np.uint8)
        self._rows = 0  # that were appended
        self._top = 0  # the first that is not scored yet
        # Columns: cluster, score, row, column.
        self._best: Int64[np.ndarray, "n 4"] = np.zeros((0, 4), np.int64)

    def append(self, labels: UInt16[np.ndarray, "n columns"], shares: UInt8[np.ndarray, "n columns"]) -> None:
        """Append rows of tokens: the cluster that leads each, 1…k, and its share."""
        rows, columns = labels.shape
        tissue = self._tissue.crop(self._rows, 0, rows, columns, self._token)
        labels = np.where(tissue, labels, 0).astype(np.uint16)
        self._rows += rows
        r = self._radius
        framed = ((0, 0), (r, r))
        self._labels = np.concatenate([self._labels, np.pad(labels, framed)])
        self._shares = np.concatenate([self._shares, np.pad(shares, framed)])
        while len(self._labels) >= self._cell + 2 * r:
            self._score(self._cell)

    def _score(self, rows: int) -> None:
        """Score the next rows, those of a row of cells, and keep the best token of each cell and cluster."""
        r = self._radius
        labels, shares = self._labels[: rows + 2 * r], self._shares[: rows + 2 * r]
        centre = labels[r : r + rows, r : labels.shape[1] - r]
        at = centre.nonzero()
        if len(at[0]):
            inner = tuple(slice(r - self._core, size - r + self._core) for size in labels.shape)
            core = score_typical(labels[inner], shares[inner], self._core)
            score = (2 * core + score_typical(labels, shares, r))[at]
            found = np.stack([centre[at].astype(np.int64), score, at[0] + self._top, at[1]], axis=1)
            found = _select_best(found, found[:, 3] // self._cell, 1)
            found = np.concatenate([self._best, found])
            self._best = _select_best(found, np.zeros(len(found), np.int64), _CANDIDATES)
        self._labels, self._shares = self._labels[rows:], self._shares[rows:]
        self._top += rows

    def finish(self) -> dict[int, list[Place]]:
        """Choose the places of each cluster, 1…k, the most typical first."""
        rows = len(self._labels) - self._radius
        if rows > 0:
            end = ((0, self._radius), (0, 0))
            self._labels, self._shares = np.pad(self._labels, end), np.pad(self._shares, end)
            self._score(rows)
        return {
            int(cluster): self._choose(self._best[self._best[:, 0] == cluster])
            for cluster in np.unique(self._best[:, 0])
        }

    def _choose(self, candidates: Int64[np.ndarray, "n 4"]) -> list[Place]:
        """Choose places far from each other, or else next to each other."""
        good = candidates[candidates[:, 1] >= _LEAST_SCORE * candidates[0, 1]]
        chosen: list[np.ndarray] = []
        for fields in _APART:
            for one in good:
                distances = [np.abs(one[2:] - other[2:]).max() for other in chosen]
                if len(chosen) < _PLACES and all(d >= fields * self._width for d in distances):
                    chosen.append(one)
        return [
            Place((y + 0.5) * self._token, (x + 0.5) * self._token, round(score / (3 * WHOLE), 4))
            for _, score, y, x in (one.tolist() for one in chosen)
        ]


def _select_best(
    tokens: Int64[np.ndarray, "n 4"], group: Int64[np.ndarray, " n"], count: int
) -> Int64[np.ndarray, "m 4"]:
    """Select the tokens of the highest score of each cluster and group; of equal ones, the first."""
    cluster, score, y, x = tokens.T
    order = np.lexsort((x, y, -score, group, cluster))
    cluster, group = cluster[order], group[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (cluster[1:] != cluster[:-1]) | (group[1:] != group[:-1])
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))
    return np.asarray(tokens[order[np.arange(len(order)) - first < count]])


def select_largest(
    places: dict[int, list[Place]], pixels: Int64[np.ndarray, " labels"]
) -> dict[int, list[Place]]:
    """Select the places of the largest clusters, where there are too many; ``pixels`` are of labels 0…k."""
    largest = sorted(places, key=lambda cluster: (-pixels[cluster], cluster))[:_MOST_CLUSTERS]
    return {cluster: places[cluster] for cluster in sorted(largest) if pixels[cluster]}


def read_places(
    slide: Slide, places: dict[int, list[Place]], field: float, threads: int, pixels: int = TILE
) -> dict[int, UInt8[np.ndarray, "n side side 3"]]:
    """Read the pictures of places, ``pixels`` of side: of each cluster, its own.

    A field that would reach past the slide is moved onto it.
    """
    mpp = max(field / pixels, slide.mpp)
    side = max(1, round(field / mpp))
    limit_y, limit_x = (max(0, int(size * slide.mpp / mpp) - side) for size in (slide.height, slide.width))
    boxes = [
        (
            min(max(round(place.y / mpp - side / 2), 0), limit_y),
            min(max(round(place.x / mpp - side / 2), 0), limit_x),
            side,
            side,
        )
        for of_cluster in places.values()
        for place in of_cluster
    ]
    pictures = iter([_enlarge(picture, pixels) for picture in prefetch_boxes(slide, boxes, mpp, threads)])
    return {cluster: np.stack([next(pictures) for _ in own]) for cluster, own in places.items()}


def _enlarge(picture: UInt8[np.ndarray, "h w 3"], pixels: int) -> UInt8[np.ndarray, "side side 3"]:
    """Enlarge the picture of a field of a slide that is too coarse for so many pixels."""
    if len(picture) == pixels:
        return picture
    return np.asarray(Image.fromarray(picture).resize((pixels, pixels), Image.Resampling.BICUBIC))
