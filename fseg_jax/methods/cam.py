"""CAM: masks from a few image-level labels, by clusters and Grad-CAM (Storås 2021, MediaEval Medico), §2.

The paper is "Unsupervised Image Segmentation via Self-Supervised Learning Image Classification". Its chain is

    global features → k-means → clusters spread the labels → a classifier → its Grad-CAM → thresholds → masks

1. *Labels spread* (``propagate``). All images, labelled or not, are clustered by k-means (k-means++, seed 0,
at
   most 300 iterations). "Unlabeled images that fall into the cluster with the highest number of labeled
   images get the same label as the labeled images in the cluster. The process is repeated until a sufficient
   number of labeled images is reached."
2. *A classifier* is trained on them: ``cam/classifier.py``.
3. *Heat maps* (``compile_heat_maps``): Grad-CAM (``grad_cam.py``) at one of its blocks, resized to the image
and
   scaled to [0, 1].
4. *Masks* (``threshold_maps``): the pixels between two thresholds, 0.4 and 0.7 or above 0.28 in the paper, or
   between those that do best on images with masks (``choose_band``). ``tidy`` keeps the largest pieces and
   fills holes.

``concept_cam`` joins this method to F-SEG: its maps come from the concepts of an image's features, A ≈ W·H,
of which those count that the class depends on.

Where the paper is not definite, its published code decides. Where the code is silent too:

- A cluster spreads its class only if its labelled images are all of that class (the code). In any other, an
  image would get two labels; it stays unlabelled. ``purity`` below 1 lets a majority of that share decide.
  Equal counts of two classes never do.
- Features and seed are the same in every round, so the clusters are too, and are fitted once. A round is the
  next cluster in order of its labelled images, among those with images left to label. Ties go to the lower
  cluster. A cluster without labelled images, or an empty one, spreads nothing.
- scikit-learn of the time took the best of ten starts; so does this.
- If more images than wanted would be labelled, those nearest to the cluster's centre are.
- If the classifier says that an image shows nothing of the class, there is a map all the same, as in the
  code. The logits are returned too, so that the caller may leave its mask empty.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from scipy import ndimage

from fseg_jax.encoders.layers import Network
from fseg_jax.errors import InputError
from fseg_jax.methods import grad_cam
from fseg_jax.numerics import kmeans, nmf
from fseg_jax.numerics.arrays import Images, Key

UNLABELLED = -1  # the label of an image without one
WANTED = 1000  # images that are to be labelled, §2
STARTS = 10  # starts of k-means
CONCEPTS = 8  # concepts of an image in ``concept_cam``
MapMethod = Literal["grad-cam", "grad-cam++", "smooth", "concepts"]
METHODS: tuple[MapMethod, ...] = get_args(MapMethod)
STEPS = 20  # thresholds that ``choose_band`` tries between 0 and 1


# ------------------------------------------------------------------------------------- 1. labels spread


class Round(NamedTuple):
    """One cluster that spread its class."""

    cluster: int
    label: int  # the class
    labelled: int  # labelled images that the cluster had
    purity: float  # the share of them that are of the class
    joined: int  # images that took the class
    total: int  # images that are labelled after the round


class Propagation(NamedTuple):
    """Labels that have spread.

    Attributes:
        labels: each image's class, −1 where it has none.
        rounds_joined: the round (from 1) in which an image got its label; 0 if it was given, −1 if it has
            none.
        clusters: each image's cluster; −1 if nothing was clustered.
        rounds: the rounds that were made.
        ended: why they ended.
        converged: whether k-means has converged.
    """

    labels: Int[np.ndarray, " n"]
    rounds_joined: Int[np.ndarray, " n"]
    clusters: Int[np.ndarray, " n"]
    rounds: tuple[Round, ...]
    ended: str
    converged: bool = True


def propagate(
    X: Float[Array | np.ndarray, "n c"],
    labels: Int[np.ndarray, " n"],
    k: int,
    *,
    wanted: int = WANTED,
    purity: float = 1.0,
    seed: int = 0,
    starts: int = STARTS,
) -> Propagation:
    """Spread the labels of a few images over those that look like them (§2).

    If all images are labelled, or as many as ``wanted``, nothing is clustered.

    Args:
        X: features of the images.
        labels: classes 0, 1, …, or −1 where there is none.
        k: how many clusters.
        wanted: how many images are to be labelled.
        purity: the share of a cluster's labelled images that must be of one class.
        seed: of k-means.
        starts: of k-means; the best is taken.

    Raises:
        InputError: if no image is labelled, k is not from 1 to n, or purity is not above 0 and at most 1.
    """
    labels = np.asarray(labels, np.int64)
    n = len(labels)
    if not (labels >= 0).any():
        raise InputError("no image is labelled: label a few of each class first")
    if not 0 < purity <= 1:
        raise InputError(f"--purity {purity:g}: give a share above 0, and at most 1")
    if not 1 <= k <= n:
        raise InputError(f"--k {k}: there are {n} images to cluster; choose between 1 and {n}")
    joined = np.where(labels >= 0, 0, -1)
    if (labels >= 0).all():
        return Propagation(labels, joined, np.full(n, -1), (), "all images are labelled")
    if (labels >= 0).sum() >= wanted:
        return Propagation(labels, joined, np.full(n, -1), (), "enough images are labelled")
    fitted = _fit_best(X, k, seed, starts)
    centers, clusters = np.asarray(fitted.centers), np.asarray(fitted.labels)
    distances = np.linalg.norm(np.asarray(X, np.float32) - centers[clusters], axis=1)
    classes = int(labels.max()) + 1
    rounds: list[Round] = []
    labels, ended = labels.copy(), "nothing moves any more"
    while True:
        known = labels >= 0
        counts = np.zeros((k, classes), np.int64)  # labelled images of each cluster by class
        np.add.at(counts, (clusters[known], labels[known]), 1)
        unlabelled = np.bincount(clusters[~known], minlength=k)
        most, labelled = counts.max(1), counts.sum(1)
        agreed = (counts == most[:, None]).sum(1) == 1  # no two classes have as many
        can_spread = (unlabelled > 0) & (most > 0) & agreed & (most >= purity * labelled)
        if not can_spread.any():
            break
        cluster = int(np.argmax(np.where(can_spread, most, -1)))  # the first of equals
        label, total = int(counts[cluster].argmax()), int(known.sum())
        joining = np.flatnonzero((clusters == cluster) & ~known)
        joining = joining[np.argsort(distances[joining], kind="stable")][: wanted - total]
        labels[joining], joined[joining] = label, len(rounds) + 1
        share = float(most[cluster] / labelled[cluster])
        total += len(joining)
        rounds.append(Round(cluster, label, int(labelled[cluster]), share, len(joining), total))
        if rounds[-1].total >= wanted:
            ended = "enough images are labelled"
            break
    return Propagation(labels, joined, clusters, tuple(rounds), ended, bool(fitted.converged))


def _fit_best(X: Float[Array | np.ndarray, "n c"], k: int, seed: int, starts: int) -> kmeans.KMeansResult:
    key = jax.random.key(seed)
    fits = (kmeans.fit(X, k, key=jax.random.fold_in(key, start)) for start in range(starts))
    return min(fits, key=lambda fit: float(fit.inertia))


# ----------------------------------------------------------------------------------------- 3. heat maps


class HeatMaps(NamedTuple):
    """Heat maps of a batch of images."""

    maps: Float[Array, "b height width"]  # in [0, 1]
    logits: Float[Array, "b k"]  # of the images


class _Target(NamedTuple):
    """The network, layer, method and class that a heat map is compiled for."""

    graphdef: Any  # the network, without its weights
    normalize: Callable[[Array], Array]
    layer: str
    method: str
    class_index: int
    negative: bool


def compile_heat_maps(
    network: Network,
    layer: str,
    normalize: Callable[[Array], Array],
    *,
    method: str = "grad-cam",
    class_index: int = 0,
    negative: bool = False,
    seed: int = 0,
) -> Callable[[Images], HeatMaps]:
    """Compile a function from images to heat maps that show where a class is seen.

    Args:
        network: a classifier.
        layer: one of the network's, ``blocks.14`` and the like.
        normalize: from ``uint8`` images to the network's input.
        method: one of ``METHODS``.
        class_index: which logit.
        negative: map the class that a low logit speaks for, the first of two classes.
        seed: of the noise of ``"smooth"``, and of the factorization of ``"concepts"``.

    Raises:
        InputError: for an unknown layer or method.
    """
    if method not in METHODS:
        raise InputError(f"--method {method}: choose {', '.join(METHODS)}")
    if layer not in (names := network.layers()):
        raise InputError(f"--layer {layer}: choose {names[0]}, {names[1]} to {names[-2]}, or {names[-1]}")
    graphdef, state = nnx.split(network)
    target = _Target(graphdef, normalize, layer, method, class_index, negative)
    return partial(_map_images, target, state, jax.random.key(seed))


@jax.jit(static_argnums=0)
def _map_images(target: _Target, state: Any, key: Key, images: Images) -> HeatMaps:
    network: Network = nnx.merge(target.graphdef, state)

    def trunk(x: Array) -> Array:
        return network.features_to(x, target.layer)

    def head(A: Array) -> Array:
        logits = network.from_layer(A, target.layer)
        return -logits if target.negative else logits

    x = target.normalize(images)
    A = trunk(x)
    logits = head(A)
    classes = jnp.full(len(images), target.class_index)
    if target.method == "smooth":
        maps = grad_cam.smooth(grad_cam.grad_cam, head, trunk, x, classes, key=key)
    elif target.method == "concepts":
        maps = concept_cam(head, A, classes, key=key)
    elif target.method == "grad-cam":
        maps = grad_cam.grad_cam(head, A, classes)
    else:
        maps = grad_cam.grad_cam_plus_plus(head, A, classes)
    maps = grad_cam.resize_and_scale(maps, *images.shape[1:3])
    return HeatMaps(maps, -logits if target.negative else logits)


def concept_cam(
    head: grad_cam.Head,
    features: grad_cam.Grid,
    classes: Int[Array, " b"] | None = None,
    *,
    key: Key,
    concepts: int = CONCEPTS,
) -> grad_cam.Maps:
    """Map the concepts of an image that a class depends on: F-SEG's factorization under Grad-CAM's weights.

    An image's features are factorized by themselves, A ≈ W·H (F-SEG, §3.1). An MBConv block's output has both
    signs, so A is [ReLU(features), ReLU(−features)], and nothing is lost. Concept m has the weight that
    Grad-CAM gives a channel, the mean derivative of the logit y:

        α_m = 1/n Σ_i ∂y/∂W_im = (1/n Σ_i ∂y/∂A_i) · H_m

    The map sums the concepts that speak for the class: L = Σ_m ReLU(α_m) W_m. Without the ReLU around each
    concept it would be Grad-CAM itself, of the factorized features.

    Arguments and result are as in ``grad_cam.grad_cam``. A grid with fewer places than ``concepts`` has as
    many concepts as places.
    """
    b, h, w, c = features.shape
    gradient = grad_cam.differentiate_class(head, features, classes).gradient.mean((1, 2))
    A = jnp.concatenate([jax.nn.relu(features), jax.nn.relu(-features)], axis=-1).reshape(b, h * w, 2 * c)
    factors = nmf.factorize(A, min(concepts, h * w), key=key)
    signed = jnp.concatenate([gradient, -gradient], axis=-1)
    alpha = jnp.einsum("bc,bmc->bm", signed, factors.H, precision="highest")
    maps = jnp.einsum("bnm,bm->bn", factors.W, jax.nn.relu(alpha), precision="highest")
    return maps.reshape(b, h, w)


# ------------------------------------------------------------------------------------------- 4. masks


class Band(NamedTuple):
    """The thresholds between which a pixel of a heat map belongs to the mask."""

    lower: float = 0.4
    upper: float | None = 0.7  # None: there is no upper one

    def check(self) -> None:
        """Raise ``InputError`` if nothing can lie between the two."""
        upper = np.inf if self.upper is None else self.upper
        if not 0 <= self.lower < 1 or not upper > self.lower:
            raise InputError(
                f"thresholds {self.lower:g} and {upper:g}: the lower one lies from 0 to below 1, and below "
                "the upper one"
            )


def threshold_maps(
    maps: Float[np.ndarray, "*b height width"], band: Band
) -> Bool[np.ndarray, "*b height width"]:
    """Mask maps in [0, 1] where ``lower < map < upper``, both strict as in the published code.

    >>> threshold_maps(np.array([[0.3, 0.5, 0.9]]), Band(0.4, 0.7)).tolist()
    [[False, True, False]]
    """
    above = maps > band.lower
    return above if band.upper is None else above & (maps < band.upper)


def choose_band(
    maps: list[Float[np.ndarray, "_ _"]], truths: list[Bool[np.ndarray, "_ _"]]
) -> tuple[Band, float]:
    """Choose the thresholds whose masks have the highest mean Dice on images with masks; return both.

    All bands between the twentieths of [0, 1] are tried, with an upper threshold and without. Among equals
    the lowest lower threshold is taken, and then the highest upper one.
    """
    if not maps:
        raise InputError("no image with a mask to choose thresholds on: give them with --lower and --upper")
    steps = np.arange(STEPS) / STEPS
    tried = [Band(float(steps[i]), None) for i in range(STEPS)]
    tried += [Band(float(steps[i]), float(steps[j])) for i in range(STEPS) for j in range(STEPS - 1, i, -1)]
    tried.sort(key=lambda b: (b.lower, -(b.upper or 2.0)))
    dice = np.zeros(len(tried))
    for heat, truth in zip(maps, truths, strict=True):
        inside = heat[truth]
        # Pixels above each threshold, and at or above it: of the map, and of the map inside the truth.
        above, reached = _count_above(heat.ravel(), steps), _count_above(heat.ravel(), steps, equal=True)
        hit_above, hit_reached = _count_above(inside, steps), _count_above(inside, steps, equal=True)
        for number, band in enumerate(tried):
            low = round(band.lower * STEPS)
            predicted, hit = above[low], hit_above[low]
            if band.upper is not None:
                high = round(band.upper * STEPS)
                predicted, hit = predicted - reached[high], hit - hit_reached[high]
            total = predicted + inside.size
            dice[number] += 2 * hit / total if total else 1.0
    best = int(np.argmax(dice))
    return tried[best], float(dice[best] / len(maps))


def _count_above(values: np.ndarray, steps: np.ndarray, *, equal: bool = False) -> Int[np.ndarray, " steps"]:
    return np.array([np.count_nonzero(values >= s if equal else values > s) for s in steps])


def tidy(
    mask: Bool[np.ndarray, "height width"], *, largest: int | None = None, fill_holes: bool = False
) -> Bool[np.ndarray, "height width"]:
    """Fill the holes of a mask, then keep only its ``largest`` pieces, that many.

    Pixels that touch at corners are one piece. Among pieces of one size the one that begins further up, then
    further left, is kept.
    """
    if fill_holes:
        mask = ndimage.binary_fill_holes(mask)
    if largest is not None:
        pieces, count = ndimage.label(mask, np.ones((3, 3), int))
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        mask = np.isin(pieces, np.argsort(-sizes, kind="stable")[:largest] + 1)
    return mask
