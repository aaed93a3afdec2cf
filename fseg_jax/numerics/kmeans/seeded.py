"""k-means of some of the points, the members, from centres that seeds place (Basu, Banerjee & Mooney 2002).

Members are a mask, and classes without a centre are marked, so that what is compiled depends on the number of
points, coordinates and classes alone.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fseg_jax.numerics.arrays import Centers, Key

# The distance between the means of two clusters over their spread along it (Ashman, Bird & Zepf 1994): halves
# of one blob have 2.65 if it is normal, 3.46 if it is uniform.
GAP = 4.0
MAX_ITERATIONS = 300  # of Lloyd, and the tolerance as in ``kmeans.fit``
TOLERANCE = 1e-4


class Clusters(NamedTuple):
    """Clusters of the members.

    Attributes:
        labels: each point's cluster, also for those that are no members.
        soft: memberships of fuzzy c-means (m = 2; Bezdek 1981), which sum to 1 a point.
        centers: the mean of each cluster's members.
        apart: whether the first two clusters are more than one blob cut in two.
        converged: whether the centres have converged.
        square: the mean square of the members' coordinates.
    """

    labels: Int[Array, " n"]
    soft: Float[Array, "n k"]
    centers: Centers
    apart: Bool[Array, ""]
    converged: Bool[Array, ""]
    square: Float[Array, ""]


class Start(NamedTuple):
    """First centres, and which of them are in use."""

    centers: Centers
    live: Bool[Array, " k"]


@partial(jax.jit, static_argnames="classes")
def average_classes(X: Float[Array, "n q"], labels: Int[Array, " n"], classes: int) -> Start:
    """Average the points of each class, and tell which classes have any; labels of −1 count for none."""
    weight = jax.nn.one_hot(labels, classes, dtype=X.dtype)
    count = jnp.sum(weight, axis=0)
    sums = jnp.matmul(weight.T, X, precision="highest")
    return Start(sums / jnp.maximum(count, 1)[:, None], count > 0)


def start_at_seeds(
    X: Float[Array, "n q"], member: Bool[Array, " n"], y: Int[Array, " n"], classes: int
) -> Start:
    """Start from the mean of each class's seeds among the members."""
    start: Start = average_classes(X, jnp.where(member, y, -1), classes)
    return start


@partial(jax.jit, static_argnames="classes")
def start_beside_seeds(
    X: Float[Array, "n q"],
    member: Bool[Array, " n"],
    y: Int[Array, " n"],
    key: Key,
    count: Int[Array, ""],
    classes: int,
) -> Start:
    """Start two clusters where all seeds are of one class: at their mean, and at a member far from it.

    The member is drawn by greedy k-means++. ``count`` is how many rows of X there are, the first ones.
    """
    means, live = average_classes(X, jnp.where(member, y, -1), classes)
    seeds = jnp.argmax(live)

    def distances(point: Float[Array, " q"]) -> Float[Array, " n"]:
        return jnp.sum((X - point[None]) ** 2, axis=1) * member

    nearest = distances(means[seeds])
    # Members that all coincide leave nothing to draw from.
    odds = jnp.where(jnp.any(nearest > 0), jnp.log(nearest), 0.0)
    # ``categorical`` draws two of ``count`` points in this way, whatever rows follow them.
    n, index = len(X), jnp.arange(len(X))[None]
    noise = jax.random.gumbel(key, (2 * n,), X.dtype)[jnp.arange(2)[:, None] * count + index]
    drawn = jnp.argmax(jnp.where(index < count, noise + odds[None], -jnp.inf), axis=1)
    after = jnp.stack([jnp.sum(jnp.minimum(nearest, distances(X[i]))) for i in drawn])
    return Start(means.at[1 - seeds].set(X[drawn[jnp.argmin(after)]]), jnp.ones(classes, bool))


@jax.jit
def fit_members(
    X: Float[Array, "n q"],
    member: Bool[Array, " n"],
    centers: Centers,
    live: Bool[Array, " k"],
    pins: Int[Array, " n"],
) -> Clusters:
    """Cluster the members by Lloyd's iteration from given centres, those that are live.

    ``pins`` fix the class of a point when means are taken; −1 leaves it free.
    """
    k, q = centers.shape
    weight = member.astype(X.dtype)
    squares = jnp.sum(X * X, axis=1)
    count = jnp.maximum(jnp.sum(weight), 1)
    mean = jnp.matmul(weight, X, precision="highest") / count
    square = jnp.sum(weight * squares) / count
    spread = jnp.maximum(square - jnp.sum(mean * mean), 0)

    def relative_distances(centers: Centers) -> Float[Array, "n k"]:
        """Squared distances less the point's own square, which no comparison needs."""
        center_squares = jnp.where(live, jnp.sum(centers * centers, axis=1), jnp.inf)
        return center_squares[None] - 2 * jnp.matmul(X, centers.T, precision="highest")

    def body(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, centers, _ = state
        labels = jnp.argmin(relative_distances(centers), axis=1)
        labels = jnp.where(pins >= 0, pins, labels)
        means, occupied = average_classes(X, jnp.where(member, labels, -1), k)
        moved = jnp.where(occupied[:, None], means, centers)
        return i + 1, moved, jnp.sum((moved - centers) ** 2)

    _, centers, shift = jax.lax.while_loop(
        lambda state: (state[0] < MAX_ITERATIONS) & (state[2] > TOLERANCE * spread / q),
        body,
        (jnp.asarray(0), centers, jnp.asarray(jnp.inf, X.dtype)),
    )
    relative = relative_distances(centers)
    labels = jnp.argmin(relative, axis=1).astype(jnp.int32)
    distances = jnp.maximum(squares[:, None] + relative, jnp.finfo(X.dtype).tiny)
    closeness = jnp.min(distances, axis=1, keepdims=True) / distances  # at most 1: nothing overflows
    soft = closeness / jnp.sum(closeness, axis=1, keepdims=True)
    apart, converged = _are_apart(X, labels, weight, centers), shift <= TOLERANCE * spread / q
    return Clusters(labels, soft, centers, apart, converged, square)


def _are_apart(
    X: Float[Array, "n q"], labels: Int[Array, " n"], weight: Float[Array, " n"], centers: Centers
) -> Bool[Array, ""]:
    """Test whether the first two clusters lie more than ``GAP`` spreads apart, and more than by chance.

    Two means of noise differ by its variance, in all directions, times (1 / n₀ + 1 / n₁). Clusters are chosen
    to differ, so twice that is asked for.
    """
    away = centers[1] - centers[0]
    length = jnp.sqrt(jnp.sum(away * away))
    axis = away / jnp.maximum(length, jnp.finfo(X.dtype).tiny)
    counts = jnp.maximum(jnp.stack([jnp.sum(weight * (labels == j)) for j in range(2)]), 1)
    offsets = X - centers[labels]
    along = jnp.matmul(offsets, axis, precision="highest")
    free = jnp.maximum(jnp.sum(counts) - 2, 1)  # degrees of freedom: two means are estimated
    variance = jnp.sum(weight * along**2) / free
    noise = jnp.sum(weight * jnp.sum(offsets * offsets, axis=1)) / free
    return length**2 > GAP**2 * variance + 2 * noise * jnp.sum(1 / counts)
