"""SIC: Seeded Iterative Clustering (anonymous authors, LMRL workshop at NeurIPS 2022), §2.1 and Algorithm 1.

A slide is a matrix X of patch embeddings, computed once; y are seeds, a class for each of a few patches that
somebody clicked. Seeded k-means (Basu, Banerjee & Mooney 2002: the seeds place the first centres and do
nothing more) cuts X in two, and its positive class is cut again and again while that makes the labels agree
better with the seeds:

    labels ← SeededKMeans(2).fit(X, y)
    repeat   X ← embeddings[labels = 1],  y ← seeds[labels = 1]
             if {0, 1} ⊂ y:  labels ← SeededKMeans(2).fit(X, y)
             else {1} ⊂ y:   labels ← KMeans(2).fit(X)
             score ← metric(y, labels)

Where the listing says nothing definite, this is what is done:

- The listing loops ``while score ≤ score_prev`` and never sets ``score_prev``; the prose says "until a score
  relative to the sparse annotations does not improve". The prose is followed: a cut that does not raise the
  score ends the loop, and the labels before it are returned.
- The score is that of all seeds, those too that have left the positive class: a seed lost counts.
- The comment at ``{1} ⊂ y`` reads "only negative annotations"; the condition, only positive ones, is meant.
  That plain k-means is the prose's "additional step" for small tumours, done once. It cannot raise the score,
  as no negative seed is left to be taken out. So it is kept where it does not lower the score and its two
  clusters lie apart (``GAP``), as a small tumour and what is left around it do; cutting a tumour that is all
  one would lose half of it.
- Plain k-means starts as k-means++ does, but for its first point: not any, but the mean of the seeds there,
  so that a small tumour is not missed.
- Which of the two clusters is positive: the one that grew from the positive seeds, unless the score is higher
  the other way round; a cluster may have lost all its seeds to the other.

Seeds of one class alone give one plain k-means of everything. Where all patches are seeded nothing changes:
seeds only place centres. A single patch takes its seed's class. Where two classes' seeds coincide, the lower
class has the patches; an empty cluster keeps its centre.

The positive class shrinks from cut to cut and from click to click, and arrays do not: who belongs is a mask,
and what is compiled depends on the number of patches, coordinates and classes alone.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fseg_jax.errors import InputError
from fseg_jax.numerics.arrays import Centers, Key
from fseg_jax.numerics.axes import normalize
from fseg_jax.numerics.scaling import is_safe_square, safe_scale

DIMENSIONS = 64
# Distance between the means of two clusters over their spread along it (Ashman, Bird & Zepf 1994): halves of
# one blob have 2.65 if it is normal, 3.46 if it is uniform.
GAP = 4.0
MAX_ITERATIONS = 300  # of Lloyd, and the tolerance as in ``kmeans.fit``
TOLERANCE = 1e-4
DISTANCES = ("euclidean", "cosine")

# (classes of the seeds, labels of the same patches), both int (seeds,) → how well they agree: higher is
# better.
Metric = Callable[[np.ndarray, np.ndarray], float]


class Prepared(NamedTuple):
    """Coordinates to cluster in, and the share of the embeddings' variance that they hold.

    Those of embeddings that are not of ordinary size (``scaling.SAFE_EXPONENT``) are scaled by a power of
    two.
    """

    X: Float[Array, "n q"]
    kept: float


class SICResult(NamedTuple):
    """The best labels: ``score`` is theirs against the seeds, before constraints and smoothing.

    ``scores`` are those of every clustering made, in order; ``iterations`` is how many cuts of the positive
    class were kept. ``soft (n, classes)`` sums to 1 a patch, None unless asked for. ``converged`` is whether
    every clustering that was kept had come to rest.
    """

    labels: Int[Array, " n"]
    score: float
    scores: tuple[float, ...]
    iterations: int
    soft: Float[Array, "n k"] | None
    converged: bool = True


class _Clusters(NamedTuple):
    """Clusters of the members; ``apart`` is whether the first two are more than one blob cut in two, and
    ``square`` the mean square of the members' coordinates.
    """

    labels: Int[Array, " n"]
    soft: Float[Array, "n k"]
    centers: Centers
    apart: Bool[Array, ""]
    converged: Bool[Array, ""]
    square: Float[Array, ""]


def prepare(
    X: Float[Array | np.ndarray, "n c"], *, distance: str = "euclidean", dimensions: int = DIMENSIONS
) -> Prepared:
    """Turn embeddings into the few coordinates that every click then clusters, once a slide.

    ``X (n, c)`` float → ``(n, min(c, dimensions))`` float32: centred, and on the axes of largest variance. Up
    to ``dimensions`` channels that is exact; beyond, the cost of any k clusters is kept to a share of
    k / dimensions (Cohen et al. 2015). With ``distance="cosine"`` rows are scaled to unit length first, so
    that squared distances are 2 − 2 cos. Raises ``InputError`` where there is no patch, or a NaN.
    """
    if distance not in DISTANCES:
        raise InputError(f"distance {distance!r}: choose {' or '.join(repr(d) for d in DISTANCES)}")
    n, c = X.shape
    if n == 0:
        raise InputError("there are no patches to cluster")
    slabs = [slice(i, i + 8192) for i in range(0, n, 8192)]
    scale = np.ones((1, 1), np.float32)

    def rows(slab: slice) -> Float[np.ndarray, "s c"]:
        x = np.asarray(X[slab], np.float32)
        return normalize(x) if distance == "cosine" else x if scale == 1 else x * scale

    total = np.zeros(c)
    for slab in slabs:
        total += rows(slab).sum(0, dtype=np.float64)
    if not np.isfinite(total).all():
        raise InputError("the embeddings hold a NaN or an infinity; look at the encoder's features")
    mean = (total / n).astype(np.float32)
    if c <= dimensions:
        return Prepared(jnp.asarray(np.concatenate([rows(slab) - mean for slab in slabs])), 1.0)

    def scattered() -> Float[np.ndarray, "c c"]:
        scatter = np.zeros((c, c))
        for slab in slabs:
            x = rows(slab) - mean
            scatter += x.T @ x
        return scatter

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # it is looked at, and made again
        scatter = scattered()
    if not is_safe_square(np.trace(scatter) / n):
        scale = safe_scale(np.max([np.abs(rows(slab)).max() for slab in slabs], keepdims=True)[None])
        mean = mean * scale[0]
        scatter = scattered()
    variances, axes = np.linalg.eigh(scatter)
    V = axes[:, ::-1][:, :dimensions].astype(np.float32)
    kept = float(variances[-dimensions:].sum() / max(variances.sum(), np.finfo(float).tiny))
    return Prepared(jnp.asarray(np.concatenate([(rows(slab) - mean) @ V for slab in slabs])), kept)


def f1(y: np.ndarray, labels: np.ndarray) -> float:
    """The F1 score of class 1; with more classes, the mean of those of the classes in ``y``.

    A class that is neither among the seeds nor among their labels has been found entirely: 1.
    """

    def one(j: int) -> float:
        hits = 2 * int(((y == j) & (labels == j)).sum())
        all_ = int((y == j).sum() + (labels == j).sum())
        return hits / all_ if all_ else 1.0

    if max(y.max(initial=0), labels.max(initial=0)) <= 1:
        return one(1)
    return float(np.mean([one(int(j)) for j in np.unique(y)]))


def accuracy(y: np.ndarray, labels: np.ndarray) -> float:
    """The share of the seeds that have their class."""
    return float((y == labels).mean())


def balanced_accuracy(y: np.ndarray, labels: np.ndarray) -> float:
    """The share of a class's seeds that have it, averaged over the classes."""
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
    """Label every patch of a slide from the classes of a few: Algorithm 1.

    ``X (n, q)`` float, best from ``prepare``; ``y (n,)`` is −1 where there is no seed, else its class: 0
    negative, 1 positive. ``key`` is for plain k-means (a fixed one unless given). ``metric`` takes what
    scikit-learn's take.

    Beyond the paper, off unless asked for: with more than two ``classes`` (2…classes − 1 name the others)
    every cluster with seeds of several classes is cut again, by those; a class without seeds gets no patch.
    ``hard`` holds every seed at its class, in the centres and in the labels (constrained k-means, Basu et al.
    2002). ``soft`` adds the memberships of fuzzy c-means (m = 2; Bezdek 1981) to the centres of the last
    clustering a patch took part in. ``neighbours (n, m)``, rows of X or −1 (``grid_neighbours``), has every
    patch outvoted by them and itself at the end; it keeps its label in a tie. ``patches``: how many rows of X
    there are, the first ones, where the rest only fill it up (``filled``): those get no class, −1, and change
    nothing but for rounding.

    Raises ``InputError`` where there is no seed, a class that is none of ``classes``, seeds of one class only
    where there are more than two classes, or a NaN in X.
    """
    X = jnp.asarray(X, jnp.float32)
    y = np.asarray(y, np.int32)
    n = X.shape[0]
    count = n if patches is None else patches
    there = np.arange(n) < count
    seeded = np.flatnonzero(y >= 0)
    if not len(seeded):
        raise InputError("no seeds: place one of each class at least")
    given = np.unique(y[seeded])
    if y.min() < -1 or given[-1] >= classes:
        raise InputError(f"seeds of class {given[-1]} where classes are 0…{classes - 1} (−1: no seed)")
    if classes > 2 and len(given) < 2:
        raise InputError(f"seeds of one class only: of {classes} classes, at least two must have some")
    if count == 1 == n:
        only = jnp.full(1, given[0], jnp.int32)
        score = float(metric(y, y))
        return SICResult(only, score, (score,), 0, jax.nn.one_hot(only, classes) if soft else None)
    key = jax.random.key(0) if key is None else key
    pins = jnp.asarray(y if hard else np.full_like(y, -1))
    seeds = jnp.asarray(y)

    def score_of(labels: np.ndarray) -> float:
        return float(metric(y[seeded], labels[seeded]))

    def cut(labels: np.ndarray, j: int, plain: bool) -> tuple[np.ndarray, _Clusters]:
        """Cluster the patches of class j (−1: all): their labels, the others' unchanged."""
        member = there if j < 0 else labels == j
        if plain:
            start = _plain_start(X, jnp.asarray(member), seeds, key, jnp.asarray(count), classes)
        else:
            start = _seeded_start(X, jnp.asarray(member), seeds, classes)
        found = _lloyd(X, jnp.asarray(member), *start, pins)
        new = np.where(member, np.asarray(found.labels), labels)
        if classes == 2 and not hard:
            other = np.where(member, 1 - new, new)
            if score_of(other) > score_of(new):
                new, found = other, found._replace(soft=found.soft[:, ::-1])
        return new, found

    everything = np.full(n, -1, np.int32)
    labels, found = cut(everything, -1, plain=len(given) == 1)
    if (scale := _scale(X, found)) != 1:
        again = partial(fit, classes=classes, key=key, metric=metric, hard=hard, soft=soft)
        return again(X * scale, y, neighbours=neighbours, patches=patches)
    best, soft_best, iterations, converged = score_of(labels), found.soft, 0, bool(found.converged)
    scores = [best]
    going = len(given) > 1
    while going:
        new, soft_new, rested = labels, soft_best, converged
        # The paper's two classes: the positive one is cut, and what leaves it is negative.
        for j in (1,) if classes == 2 else range(classes):
            held = np.unique(y[seeded][labels[seeded] == j])
            plain = classes == 2 and held.tolist() == [1]
            if (len(held) > 1 or plain) and (labels == j).sum() > 1:
                member = jnp.asarray(labels == j)
                new, found = cut(new, j, plain)
                soft_new = jnp.where(member[:, None], found.soft, soft_new)
                rested = rested and bool(found.converged)
                going = not plain
        if new is labels:
            break
        score = score_of(new)
        scores.append(score)
        additional = not going and score == best and bool(found.apart)
        if not (score > best or additional):
            break
        labels, soft_best, best, iterations, converged = new, soft_new, score, iterations + 1, rested
    if hard:
        labels = np.where(y >= 0, y, labels)
    out = jnp.asarray(labels, jnp.int32)
    if neighbours is not None:
        out = _smooth(out, jnp.asarray(neighbours), pins, classes)
    return SICResult(out, best, tuple(scores), iterations, soft_best if soft else None, converged)


def _scale(X: Float[Array, "n q"], found: _Clusters) -> float:
    """What brings coordinates to an ordinary size, once it shows in their clusters that they are of none; 1
    otherwise. Raises ``InputError`` where one is not finite.
    """
    if is_safe_square(found.square):
        return 1.0
    size = jnp.max(jnp.abs(X))
    if not bool(jnp.isfinite(size)):
        raise InputError("the embeddings hold a NaN or an infinity; look at the encoder's features")
    return float(safe_scale(size))


def filled(
    X: Float[Array | np.ndarray, "n q"], y: Int[Array | np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "m q"], Int[np.ndarray, " m"]]:
    """Fill patches up to a power of two, 1,024 at least, with zeros that have no seed, so that slides of many
    sizes share programs.
    """
    more = max(1024, 1 << (len(y) - 1).bit_length()) - len(y)
    return np.pad(np.asarray(X), [(0, more), (0, 0)]), np.pad(np.asarray(y), (0, more), constant_values=-1)


def seeded_kmeans(
    X: Float[Array | np.ndarray, "n q"], y: Int[Array | np.ndarray, " n"], patches: int | None = None
) -> Int[np.ndarray, " n"]:
    """One pass: the clustering in two that Algorithm 1 begins with, of all patches, and none after it.

    ``X (n, q)``, ``y (n,)`` and ``patches`` as for ``fit``, seeds of both classes among them → labels (n,),
    int32. As in the algorithm, positive is the cluster that agrees better with the seeds.
    """
    y = np.asarray(y, np.int32)
    everything = jnp.asarray(np.arange(len(y)) < (len(y) if patches is None else patches))
    free = jnp.asarray(np.full(len(y), -1, np.int32))

    def clustered(x: Float[Array, "n q"]) -> _Clusters:
        return _lloyd(x, everything, *_seeded_start(x, everything, jnp.asarray(y), 2), free)

    points = jnp.asarray(X, jnp.float32)
    found = clustered(points)
    if (scale := _scale(points, found)) != 1:
        found = clustered(points * scale)
    labels = np.asarray(found.labels)
    given = y >= 0
    return labels if f1(y[given], labels[given]) >= f1(y[given], 1 - labels[given]) else 1 - labels


def _seeded_start(
    X: Float[Array, "n q"], member: Bool[Array, " n"], y: Int[Array, " n"], classes: int
) -> tuple[Centers, Bool[Array, " k"]]:
    """Each class's first centre, the mean of its seeds among the members, and which classes have any."""
    return _means(X, jnp.where(member, y, -1), classes)


@partial(jax.jit, static_argnames="classes")
def _means(
    X: Float[Array, "n q"], labels: Int[Array, " n"], classes: int
) -> tuple[Centers, Bool[Array, " k"]]:
    weight = jax.nn.one_hot(labels, classes, dtype=X.dtype)
    count = jnp.sum(weight, axis=0)
    sums = jnp.matmul(weight.T, X, precision="highest")
    return sums / jnp.maximum(count, 1)[:, None], count > 0


@partial(jax.jit, static_argnames="classes")
def _plain_start(
    X: Float[Array, "n q"],
    member: Bool[Array, " n"],
    y: Int[Array, " n"],
    key: Key,
    count: Int[Array, ""],
    classes: int,
) -> tuple[Centers, Bool[Array, " k"]]:
    """Two centres for members with seeds of one class: their mean, and a member by greedy k-means++."""
    means, live = _means(X, jnp.where(member, y, -1), classes)
    seeds = jnp.argmax(live)

    def distances(point: Float[Array, " q"]) -> Float[Array, " n"]:
        return jnp.sum((X - point[None]) ** 2, axis=1) * member

    nearest = distances(means[seeds])
    # Members that all coincide leave nothing to draw from.
    odds = jnp.where(jnp.any(nearest > 0), jnp.log(nearest), 0.0)
    # As ``categorical`` draws two of ``count`` patches, whatever follows them.
    n, place = len(X), jnp.arange(len(X))[None]
    noise = jax.random.gumbel(key, (2 * n,), X.dtype)[jnp.arange(2)[:, None] * count + place]
    drawn = jnp.argmax(jnp.where(place < count, noise + odds[None], -jnp.inf), axis=1)
    after = jnp.stack([jnp.sum(jnp.minimum(nearest, distances(X[i]))) for i in drawn])
    return means.at[1 - seeds].set(X[drawn[jnp.argmin(after)]]), jnp.ones(classes, bool)


@jax.jit
def _lloyd(
    X: Float[Array, "n q"],
    member: Bool[Array, " n"],
    start: Centers,
    live: Bool[Array, " k"],
    pins: Int[Array, " n"],
) -> _Clusters:
    """k-means of the members from given centres, of the live classes; pins ≥ 0 hold a patch's class in the
    sums.
    """
    k, q = start.shape
    weight = member.astype(X.dtype)
    squares = jnp.sum(X * X, axis=1)
    count = jnp.maximum(jnp.sum(weight), 1)
    mean = jnp.matmul(weight, X, precision="highest") / count
    square = jnp.sum(weight * squares) / count
    spread = jnp.maximum(square - jnp.sum(mean * mean), 0)

    def compare(centers: Centers) -> Float[Array, "n k"]:
        """Squared distances less the patch's own square, which no comparison needs."""
        own = jnp.where(live, jnp.sum(centers * centers, axis=1), jnp.inf)
        return own[None] - 2 * jnp.matmul(X, centers.T, precision="highest")

    def body(state: tuple) -> tuple:
        i, centers, _ = state
        labels = jnp.argmin(compare(centers), axis=1)
        labels = jnp.where(pins >= 0, pins, labels)
        means, filled = _means(X, jnp.where(member, labels, -1), k)
        moved = jnp.where(filled[:, None], means, centers)
        return i + 1, moved, jnp.sum((moved - centers) ** 2)

    _, centers, shift = jax.lax.while_loop(
        lambda state: (state[0] < MAX_ITERATIONS) & (state[2] > TOLERANCE * spread / q),
        body,
        (0, start, jnp.asarray(jnp.inf, X.dtype)),
    )
    relative = compare(centers)
    labels = jnp.argmin(relative, axis=1).astype(jnp.int32)
    distances = jnp.maximum(squares[:, None] + relative, jnp.finfo(X.dtype).tiny)
    closeness = jnp.min(distances, axis=1, keepdims=True) / distances  # at most 1: nothing overflows
    soft = closeness / jnp.sum(closeness, axis=1, keepdims=True)
    apart, converged = _apart(X, labels, weight, centers), shift <= TOLERANCE * spread / q
    return _Clusters(labels, soft, centers, apart, converged, square)


def _apart(
    X: Float[Array, "n q"], labels: Int[Array, " n"], weight: Float[Array, " n"], centers: Centers
) -> Bool[Array, ""]:
    """Whether the first two clusters lie more than ``GAP`` spreads apart, and more than few patches would by
    chance.

    Two means of noise differ by its variance, in all directions, times (1 / n₀ + 1 / n₁); clusters are chosen
    to differ, so twice that is asked for.
    """
    away = centers[1] - centers[0]
    length = jnp.sqrt(jnp.sum(away * away))
    axis = away / jnp.maximum(length, jnp.finfo(X.dtype).tiny)
    counts = jnp.maximum(jnp.stack([jnp.sum(weight * (labels == j)) for j in range(2)]), 1)
    rest = X - centers[labels]
    along = jnp.matmul(rest, axis, precision="highest")
    free = jnp.maximum(jnp.sum(counts) - 2, 1)  # degrees of freedom: two means are estimated
    variance = jnp.sum(weight * along**2) / free
    noise = jnp.sum(weight * jnp.sum(rest * rest, axis=1)) / free
    return length**2 > GAP**2 * variance + 2 * noise * jnp.sum(1 / counts)


@partial(jax.jit, static_argnames="classes")
def _smooth(
    labels: Int[Array, " n"], neighbours: Int[Array, "n m"], pins: Int[Array, " n"], classes: int
) -> Int[Array, " n"]:
    theirs = jnp.where(neighbours >= 0, labels[neighbours], -1)
    votes = jnp.sum(jax.nn.one_hot(theirs, classes), axis=1) + 1.5 * jax.nn.one_hot(labels, classes)
    winner = jnp.argmax(votes, axis=1).astype(jnp.int32)
    return jnp.where(pins >= 0, pins, winner)


def grid_neighbours(grid: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "n 8"]:
    """Find the up to eight patches around each, given their (row, column): rows of ``grid``, −1 for none."""
    low = grid.min(axis=0)
    place = np.full(tuple(grid.max(axis=0) - low + 3), -1, np.int32)
    y, x = (grid - low + 1).T
    place[y, x] = np.arange(len(grid))
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    return np.stack([place[y + dy, x + dx] for dy, dx in steps], axis=1)
