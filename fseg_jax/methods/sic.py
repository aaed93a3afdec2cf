"""SIC: Seeded Iterative Clustering (anonymous authors, LMRL workshop at NeurIPS 2022), §2.1 and Algorithm 1.

A slide is a matrix X of patch embeddings, computed once. y are seeds: a class for each of a few patches that
somebody clicked. Seeded k-means (Basu, Banerjee & Mooney 2002: the seeds place the first centres and do
nothing more) cuts X in two. The positive class is cut again and again while that makes the labels agree
better with the seeds:

    labels ← SeededKMeans(2).fit(X, y)
    repeat   X ← embeddings[labels = 1],  y ← seeds[labels = 1]
             if {0, 1} ⊂ y:  labels ← SeededKMeans(2).fit(X, y)
             else {1} ⊂ y:   labels ← KMeans(2).fit(X)
             score ← metric(y, labels)

Where the listing is ambiguous:

- The listing loops ``while score ≤ score_prev`` and never sets ``score_prev``. The prose says "until a score
  relative to the sparse annotations does not improve", and is followed: a cut that does not raise the score
  ends the loop, and the labels before it are returned.
- The score is that of all seeds, also of those that have left the positive class.
- The comment at ``{1} ⊂ y`` reads "only negative annotations"; the condition says only positive ones, and
  is followed. This plain k-means is the prose's "additional step" for small tumours, done once. It cannot
  raise the score, as no negative seed is left to be taken out. So it is kept if it does not lower the score
  and its two clusters are well separated (``seeded.GAP``), as a small tumour and the tissue around it are.
  Cutting a uniform tumour would lose half of it.
- Plain k-means starts as k-means++ does, but its first point is the mean of the seeds, so that a small tumour
  is not missed.
- The positive one of two clusters is the one that grew from the positive seeds, unless the score is higher
  the other way round: a cluster may have lost all its seeds to the other.

Seeds of one class alone give one plain k-means of everything. Seeds only place centres, even where every
patch has one. A single patch takes its seed's class. Where two classes' seeds coincide, the lower class gets
the patches. An empty cluster keeps its centre.

The positive class shrinks from cut to cut and from click to click, but arrays keep their shapes: members are
a mask (``numerics/kmeans/seeded.py``).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fseg_jax.errors import InputError
from fseg_jax.numerics.arrays import Key
from fseg_jax.numerics.kmeans.seeded import Clusters, fit_members, start_at_seeds, start_beside_seeds
from fseg_jax.numerics.scaling import is_safe_square, safe_scale

# (classes of the seeds, labels of the same patches), both int (seeds,) → how well they agree: higher is
# better.
Metric = Callable[[np.ndarray, np.ndarray], float]


class SICResult(NamedTuple):
    """Labels of all patches.

    Attributes:
        labels: Class of each patch; −1 for rows of padding.
        score: How well the labels agree with the seeds, before constraints and smoothing.
        scores: Score of every clustering, in order, also of one that was not kept.
        iterations: How many cuts of the positive class were kept.
        soft: Memberships, which sum to 1 for each patch; None unless asked for.
        converged: Whether every clustering that was kept has converged.
    """

    labels: Int[Array, " n"]
    score: float
    scores: tuple[float, ...]
    iterations: int
    soft: Float[Array, "n k"] | None
    converged: bool = True


def f1(y: np.ndarray, labels: np.ndarray) -> float:
    """Compute the F1 score of class 1; with more classes, the mean over the classes in ``y``.

    A class that is neither among the seeds nor among their labels scores 1.
    """

    def f1_of_class(j: int) -> float:
        hits = 2 * int(((y == j) & (labels == j)).sum())
        total = int((y == j).sum() + (labels == j).sum())
        return hits / total if total else 1.0

    if max(y.max(initial=0), labels.max(initial=0)) <= 1:
        return f1_of_class(1)
    return float(np.mean([f1_of_class(int(j)) for j in np.unique(y)]))


def accuracy(y: np.ndarray, labels: np.ndarray) -> float:
    """Compute the share of the seeds whose label is their class."""
    return float((y == labels).mean())


def balanced_accuracy(y: np.ndarray, labels: np.ndarray) -> float:
    """Compute the share of each class's seeds whose label is that class, averaged over the classes."""
    return float(np.mean([(labels[y == j] == j).mean() for j in np.unique(y)]))


METRICS: dict[str, Metric] = {"f1": f1, "accuracy": accuracy, "balanced-accuracy": balanced_accuracy}


def fit(
    X: Float[Array | np.ndarray, "n q"],
    y: Int[Array | np.ndarray, " n"],
    *,
    classes: int = 2,
    key: Key | None = None,
    metric: Metric = f1,
    hard: bool = False,
    soft: bool = False,
    neighbours: Int[Array | np.ndarray, "n m"] | None = None,
    patches: int | None = None,
) -> SICResult:
    """Label every patch of a slide from the classes of a few (Algorithm 1).

    ``hard``, ``soft``, ``neighbours`` and more than two ``classes`` go beyond the paper, and are off by
    default.

    Args:
        X: Embeddings ``(n, q)``, best from ``pca.reduce_channels``.
        y: The class of each patch's seed: 0 negative, 1 positive, 2… further ones; −1 where there is no seed.
        classes: Number of classes. With more than two, every cluster with seeds of several classes is cut
            again from those seeds; a class without seeds gets no patch.
        key: Random key of plain k-means; None: a fixed one.
        metric: How well labels agree with seeds; the arguments are those of scikit-learn's metrics.
        hard: Keep every seed in its class, in the centres and in the labels (constrained k-means, Basu et al.
            2002).
        soft: Return the memberships of fuzzy c-means (m = 2; Bezdek 1981) to the centres of the last
            clustering that a patch took part in.
        neighbours: ``(n, m)``, rows of X or −1 (``find_neighbours``). At the end every patch takes the class
            that most of them and itself have; it keeps its label in a tie.
        patches: Number of patches, the first rows of X; None: all. The other rows are padding
            (``pad_patches``): they get the label −1, and affect the others by rounding alone.

    Raises:
        InputError: There is no seed, a class that is none of ``classes``, seeds of one class only where
            there are more than two classes, or a NaN in X.
    """
    X = jnp.asarray(X, jnp.float32)
    y = np.asarray(y, np.int32)
    n = X.shape[0]
    count = n if patches is None else patches
    is_patch = np.arange(n) < count
    seeded = np.flatnonzero(y >= 0)
    if not len(seeded):
        raise InputError("no seeds: place one of each class at least")
    seed_classes = np.unique(y[seeded])
    if y.min() < -1 or seed_classes[-1] >= classes:
        raise InputError(f"seeds of class {seed_classes[-1]} where classes are 0…{classes - 1} (−1: no seed)")
    if classes > 2 and len(seed_classes) < 2:
        raise InputError(f"seeds of one class only: of {classes} classes, at least two must have some")
    if count == 1 == n:
        only = jnp.full(1, seed_classes[0], jnp.int32)
        score = float(metric(y, y))
        return SICResult(only, score, (score,), 0, jax.nn.one_hot(only, classes) if soft else None)
    key = jax.random.key(0) if key is None else key
    pins = jnp.asarray(y if hard else np.full_like(y, -1))
    seeds = jnp.asarray(y)

    def score_of(labels: np.ndarray) -> float:
        return float(metric(y[seeded], labels[seeded]))

    def cut(labels: np.ndarray, j: int, plain: bool) -> tuple[np.ndarray, Clusters]:
        """Cluster the patches of class j, or all for −1; the others keep their labels."""
        member = is_patch if j < 0 else labels == j
        if plain:
            start = start_beside_seeds(X, jnp.asarray(member), seeds, key, jnp.asarray(count), classes)
        else:
            start = start_at_seeds(X, jnp.asarray(member), seeds, classes)
        clusters: Clusters = fit_members(X, jnp.asarray(member), *start, pins)
        new = np.where(member, np.asarray(clusters.labels), labels)
        if classes == 2 and not hard:
            other = np.where(member, 1 - new, new)
            if score_of(other) > score_of(new):
                new, clusters = other, clusters._replace(soft=clusters.soft[:, ::-1])
        return new, clusters

    unlabelled = np.full(n, -1, np.int32)
    labels, clusters = cut(unlabelled, -1, plain=len(seed_classes) == 1)
    if (scale := _find_scale(X, clusters)) != 1:
        again = partial(fit, classes=classes, key=key, metric=metric, hard=hard, soft=soft)
        return again(X * scale, y, neighbours=neighbours, patches=patches)
    best, soft_best, iterations, converged = score_of(labels), clusters.soft, 0, bool(clusters.converged)
    scores = [best]
    cut_again = len(seed_classes) > 1
    while cut_again:
        new, soft_new, converged_new = labels, soft_best, converged
        # The paper's two classes: the positive one is cut, and what leaves it is negative.
        for j in (1,) if classes == 2 else range(classes):
            classes_in_j = np.unique(y[seeded][labels[seeded] == j])
            plain = classes == 2 and classes_in_j.tolist() == [1]
            if (len(classes_in_j) > 1 or plain) and (labels == j).sum() > 1:
                member = jnp.asarray(labels == j)
                new, clusters = cut(new, j, plain)
                soft_new = jnp.where(member[:, None], clusters.soft, soft_new)
                converged_new = converged_new and bool(clusters.converged)
                cut_again = not plain
        if new is labels:
            break
        score = score_of(new)
        scores.append(score)
        additional = not cut_again and score == best and bool(clusters.apart)
        if not (score > best or additional):
            break
        labels, soft_best, best, converged = new, soft_new, score, converged_new
        iterations += 1
    if hard:
        labels = np.where(y >= 0, y, labels)
    out = jnp.asarray(labels, jnp.int32)
    if neighbours is not None:
        out = _smooth(out, jnp.asarray(neighbours), pins, classes)
    return SICResult(out, best, tuple(scores), iterations, soft_best if soft else None, converged)


def _find_scale(X: Float[Array, "n q"], clusters: Clusters) -> float:
    """Find the power of two by which coordinates must be scaled for their squares to be safe; 1 if they are.

    Raises:
        InputError: A coordinate is not finite.
    """
    if is_safe_square(clusters.square):
        return 1.0
    size = jnp.max(jnp.abs(X))
    if not bool(jnp.isfinite(size)):
        raise InputError("the embeddings hold a NaN or an infinity; look at the encoder's features")
    return float(safe_scale(size))


def pad_patches(
    X: Float[Array | np.ndarray, "n q"], y: Int[Array | np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "m q"], Int[np.ndarray, " m"]]:
    """Pad patches to a power of two, 1,024 at least, so that slides of many sizes share compiled programs.

    The rows of padding are zeros without a seed.
    """
    rows = max(1024, 1 << (len(y) - 1).bit_length()) - len(y)
    return np.pad(np.asarray(X), [(0, rows), (0, 0)]), np.pad(np.asarray(y), (0, rows), constant_values=-1)


def fit_seeded_kmeans(
    X: Float[Array | np.ndarray, "n q"], y: Int[Array | np.ndarray, " n"], patches: int | None = None
) -> Int[np.ndarray, " n"]:
    """Cut all patches in two, as Algorithm 1 begins, and stop there.

    ``X (n, q)``, ``y (n,)`` and ``patches`` as for ``fit``, seeds of both classes among them → labels (n,),
    int32. As in the algorithm, positive is the cluster that agrees better with the seeds.
    """
    y = np.asarray(y, np.int32)
    is_patch = jnp.asarray(np.arange(len(y)) < (len(y) if patches is None else patches))
    no_pins = jnp.asarray(np.full(len(y), -1, np.int32))

    def cluster(x: Float[Array, "n q"]) -> Clusters:
        clusters: Clusters = fit_members(
            x, is_patch, *start_at_seeds(x, is_patch, jnp.asarray(y), 2), no_pins
        )
        return clusters

    points = jnp.asarray(X, jnp.float32)
    clusters = cluster(points)
    if (scale := _find_scale(points, clusters)) != 1:
        clusters = cluster(points * scale)
    labels = np.asarray(clusters.labels)
    seeded = y >= 0
    return labels if f1(y[seeded], labels[seeded]) >= f1(y[seeded], 1 - labels[seeded]) else 1 - labels


@partial(jax.jit, static_argnames="classes")
def _smooth(
    labels: Int[Array, " n"], neighbours: Int[Array, "n m"], pins: Int[Array, " n"], classes: int
) -> Int[Array, " n"]:
    """Take the class that most of a patch and its neighbours have; its own counts one and a half times."""
    labels_around = jnp.where(neighbours >= 0, labels[neighbours], -1)
    votes = jnp.sum(jax.nn.one_hot(labels_around, classes), axis=1) + 1.5 * jax.nn.one_hot(labels, classes)
    winner = jnp.argmax(votes, axis=1).astype(jnp.int32)
    return jnp.where(pins >= 0, pins, winner)


def find_neighbours(grid: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "n 8"]:
    """Find the eight patches around each in a grid of (row, column): their rows in ``grid``, −1 for none."""
    low = grid.min(axis=0)
    place = np.full(tuple(grid.max(axis=0) - low + 3), -1, np.int32)
    y, x = (grid - low + 1).T
    place[y, x] = np.arange(len(grid))
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    return np.stack([place[y + dy, x + dx] for dy, dx in steps], axis=1)
