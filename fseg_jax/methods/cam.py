"""CAM: masks from a few image-level labels (Storås 2021, "Unsupervised Image Segmentation via Self-Supervised
Learning Image Classification", MediaEval Medico), §2.

    global features → k-means → clusters spread the labels → a classifier → its Grad-CAM → thresholds → masks

1. *Labels spread* (``propagate``). All images, labelled or not, are clustered by k-means (k-means++, seed 0,
   at most 300 iterations). "Unlabeled images that fall into the cluster with the highest number of labeled
   images get the same label as the labeled images in the cluster. The process is repeated until a sufficient
   number of labeled images is reached."
2. *A classifier* is trained on them: ``training/classifier.py``.
3. *Heat maps* (``heat_maps``): Grad-CAM (``grad_cam.py``) at one of its blocks, resized to the image and
   scaled to [0, 1].
4. *Masks* (``band``): what lies between two thresholds, 0.4 and 0.7 or above 0.28 in the paper, or between
   those that do best on images with masks (``choose_band``); ``tidy`` keeps the largest pieces, fills holes.

Beside Grad-CAM there is a source of maps that joins this method to F-SEG (``concept_cam``): the concepts of
an image's features, A ≈ W·H, of which those count that the class depends on.

Where the paper says nothing definite, its published code decides, and where that is silent too, this:

- A cluster spreads its class only where its labelled images are all of that class (the code): in any other,
  an image would get two labels, and it stays unlabelled. ``purity`` below 1 lets a majority of that share
  decide; equal counts of two classes never do.
- Features and seed are the same in every round, so the clusters are too, and are fitted once: a round is the
  next cluster in order of its labelled images, among those with images left to label. Ties go to the lower
  cluster. A cluster without labelled images, or an empty one, spreads nothing.
- scikit-learn of the time took the best of ten starts; so does this.
- Once more images than wanted would be labelled, those nearest to the cluster's centre are.
- A rejected image: where the classifier says that an image shows nothing of the class, there is a map all the
  same, as in the code; ``heat_maps`` returns the logits, by which the caller may leave its mask empty.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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

UNLABELLED = -1
WANTED = 1000  # labelled images, §2
STARTS = 10
CONCEPTS = 8
METHODS = ("grad-cam", "grad-cam++", "smooth", "concepts")
STEPS = 20  # thresholds that ``choose_band`` tries between 0 and 1


# ------------------------------------------------------------------------------------- 1. labels spread


class Round(NamedTuple):
    """One cluster that spread its class: ``labelled`` images it had, ``purity`` the share of them that are of
    the class ``label``, ``joined`` how many images took it, ``total`` how many are labelled after it.
    """

    cluster: int
    label: int
    labelled: int
    purity: float
    joined: int
    total: int


class Propagation(NamedTuple):
    """Labels, −1 where there is none; the round (from 1) in which an image got its own, 0 if it was given,
    −1 if it has none; each image's cluster; the rounds; and why they ended.
    """

    labels: Int[np.ndarray, " n"]
    rounds_joined: Int[np.ndarray, " n"]
    clusters: Int[np.ndarray, " n"]
    rounds: tuple[Round, ...]
    ended: str


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
    """Spread the labels of a few images over those that look like them.

    ``X (n, c)``: features; ``labels (n,)``: classes 0, 1, …, or −1 where there is none; ``k``: clusters.
    Where all are labelled, or as many as ``wanted``, nothing is clustered. Raises ``InputError`` where none
    is, where k is no number of clusters for n images, and for a purity that is not above 0 and at most 1.
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
    centres, clusters = _clusters(X, k, seed, starts)
    distances = np.linalg.norm(np.asarray(X, np.float32) - centres[clusters], axis=1)
    classes = int(labels.max()) + 1
    rounds: list[Round] = []
    labels, ended = labels.copy(), "nothing moves any more"
    while True:
        known = labels >= 0
        counts = np.zeros((k, classes), np.int64)  # labelled images of each cluster by class
        np.add.at(counts, (clusters[known], labels[known]), 1)
        left = np.bincount(clusters[~known], minlength=k)
        most, of_all = counts.max(1), counts.sum(1)
        agreed = (counts == most[:, None]).sum(1) == 1  # no two classes have as many
        may = (left > 0) & (most > 0) & agreed & (most >= purity * of_all)
        if not may.any():
            break
        cluster = int(np.argmax(np.where(may, most, -1)))  # the first of equals
        label, total = int(counts[cluster].argmax()), int(known.sum())
        takes = np.flatnonzero((clusters == cluster) & ~known)
        takes = takes[np.argsort(distances[takes], kind="stable")][: wanted - total]
        labels[takes], joined[takes] = label, len(rounds) + 1
        share = float(most[cluster] / of_all[cluster])
        rounds.append(Round(cluster, label, int(of_all[cluster]), share, len(takes), total + len(takes)))
        if rounds[-1].total >= wanted:
            ended = "enough images are labelled"
            break
    return Propagation(labels, joined, clusters, tuple(rounds), ended)


def _clusters(X: Any, k: int, seed: int, starts: int) -> tuple[np.ndarray, np.ndarray]:
    key, best = jax.random.key(seed), None
    for start in range(starts):
        found = kmeans.fit(X, k, key=jax.random.fold_in(key, start))
        if best is None or float(found.inertia) < float(best.inertia):
            best = found
    assert best is not None
    return np.asarray(best.centers), np.asarray(best.labels)


# ----------------------------------------------------------------------------------------- 3. heat maps


class HeatMaps(NamedTuple):
    """Maps ``(b, height, width)`` in [0, 1], and the logits ``(b, k)`` of the images."""

    maps: Float[Array, "b height width"]
    logits: Float[Array, "b k"]


def heat_maps(
    network: Network,
    layer: str,
    normalise: Callable[[Array], Array],
    *,
    method: str = "grad-cam",
    of_class: int = 0,
    negative: bool = False,
    seed: int = 0,
) -> Callable[[Images], HeatMaps]:
    """Make the compiled function from images to where a class is seen in them.

    ``layer``: one of the network's, ``blocks.14`` and the like; ``normalise``: from ``uint8`` images to what
    the network takes; ``of_class``: which logit; ``negative``: of the class that speaks when the logit is
    low, the first of two classes. Raises ``InputError`` for a layer or a method that there is not.
    """
    if method not in METHODS:
        raise InputError(f"--method {method}: choose {', '.join(METHODS)}")
    if layer not in (names := network.layers()):
        raise InputError(f"--layer {layer}: choose {names[0]}, {names[1]} to {names[-2]}, or {names[-1]}")
    graphdef, state = nnx.split(network)
    fixed = (graphdef, normalise, layer, method, of_class, negative)
    return partial(_heat_maps, fixed, state, jax.random.key(seed))


@jax.jit(static_argnums=0)
def _heat_maps(fixed: tuple, state: Any, key: Key, images: Images) -> HeatMaps:
    graphdef, normalise, layer, method, of_class, negative = fixed
    model = nnx.merge(graphdef, state)

    def trunk(x: Array) -> Array:
        return model.features_to(x, layer)

    def head(A: Array) -> Array:
        logits = model.from_layer(A, layer)
        return -logits if negative else logits

    x = normalise(images)
    A = trunk(x)
    logits = head(A)
    classes = jnp.full(len(images), of_class)
    if method == "smooth":
        found = grad_cam.smooth(grad_cam.grad_cam, head, trunk, x, classes, key=key)
    elif method == "concepts":
        found = concept_cam(head, A, classes, key=key)
    else:
        made = grad_cam.grad_cam if method == "grad-cam" else grad_cam.grad_cam_plus_plus
        found = made(head, A, classes)
    return HeatMaps(grad_cam.to_image(found, *images.shape[1:3]), -logits if negative else logits)


def concept_cam(
    head: grad_cam.Head,
    features: grad_cam.Grid,
    classes: Int[Array, " b"] | None = None,
    *,
    key: Key,
    concepts: int = CONCEPTS,
) -> grad_cam.Maps:
    """Map the concepts of an image that a class depends on: F-SEG's factorization under Grad-CAM's weights.

    An image's features are A ≈ W·H, concepts H found in that image alone (F-SEG, §3.1). An MBConv block's
    output has both signs, so A is [ReLU(features), ReLU(−features)], from which nothing is lost. What the
    logit y owes to concept m is its derivative along W, which Grad-CAM takes the mean of:

        α_m = 1/n Σ_i ∂y/∂W_im = (1/n Σ_i ∂y/∂A_i) · H_m

    and the map is what the concepts that speak for the class say: L = Σ_m ReLU(α_m) W_m. Without the ReLU
    around each concept it would be Grad-CAM itself, of the factorized features. Arguments and result are as
    in ``grad_cam.grad_cam``; fewer places in the grid than ``concepts`` make as many concepts as places.
    """
    b, h, w, c = features.shape
    gradient = grad_cam.class_gradient(head, features, classes).gradient.mean((1, 2))
    A = jnp.concatenate([jax.nn.relu(features), jax.nn.relu(-features)], axis=-1).reshape(b, h * w, 2 * c)
    found = nmf.factorize(A, min(concepts, h * w), key=key)
    signed = jnp.concatenate([gradient, -gradient], axis=-1)
    alpha = jnp.einsum("bc,bmc->bm", signed, found.H, precision="highest")
    maps = jnp.einsum("bnm,bm->bn", found.W, jax.nn.relu(alpha), precision="highest")
    return maps.reshape(b, h, w)


# ------------------------------------------------------------------------------------------- 4. masks


class Band(NamedTuple):
    """Thresholds: what is above ``lower`` and, where there is one, below ``upper`` is the mask."""

    lower: float = 0.4
    upper: float | None = 0.7

    def check(self) -> None:
        """Raise ``InputError`` where nothing could lie between the two."""
        upper = np.inf if self.upper is None else self.upper
        if not 0 <= self.lower < 1 or not upper > self.lower:
            raise InputError(
                f"thresholds {self.lower:g} and {upper:g}: the lower one lies from 0 to below 1, and below "
                "the upper one"
            )


def band(maps: Float[np.ndarray, "*b height width"], thresholds: Band) -> Bool[np.ndarray, "*b height width"]:
    """The mask of maps in [0, 1]: ``lower < map < upper``, both strict as in the published code."""
    above = maps > thresholds.lower
    return above if thresholds.upper is None else above & (maps < thresholds.upper)


def choose_band(
    maps: list[Float[np.ndarray, "_ _"]], truths: list[Bool[np.ndarray, "_ _"]]
) -> tuple[Band, float]:
    """Choose the thresholds whose masks have the highest mean Dice on images with masks, and that Dice.

    All bands of the twentieths of [0, 1], with an upper threshold and without, are tried; of equals the one
    with the lowest lower threshold and then the highest upper one is taken.
    """
    if not maps:
        raise InputError("no image with a mask to choose thresholds on: give them with --lower and --upper")
    steps = np.arange(STEPS) / STEPS
    tried = [Band(float(steps[i]), None) for i in range(STEPS)]
    tried += [Band(float(steps[i]), float(steps[j])) for i in range(STEPS) for j in range(STEPS - 1, i, -1)]
    tried.sort(key=lambda b: (b.lower, -(b.upper or 2.0)))
    dice = np.zeros(len(tried))
    for found, truth in zip(maps, truths, strict=True):
        inside = found[truth]
        # Above each threshold, less what is at or above the upper one: pixels of the map, and of the truth.
        above, reached = _above(found.ravel(), steps), _above(found.ravel(), steps, equal=True)
        hit_above, hit_reached = _above(inside, steps), _above(inside, steps, equal=True)
        for number, thresholds in enumerate(tried):
            low = round(thresholds.lower * STEPS)
            predicted, hit = above[low], hit_above[low]
            if thresholds.upper is not None:
                high = round(thresholds.upper * STEPS)
                predicted, hit = predicted - reached[high], hit - hit_reached[high]
            total = predicted + inside.size
            dice[number] += 2 * hit / total if total else 1.0
    best = int(np.argmax(dice))
    return tried[best], float(dice[best] / len(maps))


def _above(values: np.ndarray, steps: np.ndarray, *, equal: bool = False) -> Int[np.ndarray, " steps"]:
    return np.array([np.count_nonzero(values >= s if equal else values > s) for s in steps])


def tidy(
    mask: Bool[np.ndarray, "height width"], *, largest: int | None = None, fill_holes: bool = False
) -> Bool[np.ndarray, "height width"]:
    """Keep the ``largest`` so many pieces of a mask, pixels touching at corners too, and fill the holes.

    Holes are filled first; of pieces of one size the one that begins further up, then left, is kept.
    """
    if fill_holes:
        mask = ndimage.binary_fill_holes(mask)
    if largest is not None:
        pieces, count = ndimage.label(mask, np.ones((3, 3), int))
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        mask = np.isin(pieces, np.argsort(-sizes, kind="stable")[:largest] + 1)
    return mask
