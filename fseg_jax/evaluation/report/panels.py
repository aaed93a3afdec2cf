"""Figures for people: an image, its truth, its segmentation, and the heat map of each concept (W)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from fseg_jax.evaluation.data.datasets import IGNORED, Dataset
from fseg_jax.evaluation.data.features import Encoded, working
from fseg_jax.evaluation.protocols import counts
from fseg_jax.evaluation.protocols.matching import Matching, confuse, match
from fseg_jax.methods import fseg
from fseg_jax.numerics import metrics
from fseg_jax.outputs.colours import palette
from fseg_jax.outputs.figures import tint
from fseg_jax.outputs.style import drawing, save_figure

if TYPE_CHECKING:
    from fseg_jax.evaluation.protocols.experiment import Setting

MAPS = 12  # heat maps of a panel: those of the clusters that cover most
_LONGEST = 900  # pixels of a picture in a panel
_DPI = 160


def write_panels(folder: Path, dataset: Dataset, encoded: Encoded, setting: "Setting") -> list[Path]:
    """Draw test images that stand for all: at even steps from the worst segmented to the best (F1 an image).

    F-SEG in the first mode, with the first k and k-means start, centres of tiles, matched on the training
    split. Writes one PNG an image, whose name begins with its place from worst to best.
    """
    from fseg_jax.evaluation.protocols.experiment import fit_centres

    k, mode = setting.k[0], next(mode for mode in fseg.MODES if mode == setting.modes[0])
    mu = fit_centres(encoded, k, "tiles", setting.seed, 0)
    n, items = len(dataset.categories), dataset.items
    train = np.array([item.split == "train" for item in items])
    key = jax.random.key(setting.seed)

    def weights(tokens: jax.Array, centers: jax.Array, own: counts.Own) -> jax.Array:
        in_a_row = jnp.expand_dims(tokens, 1)
        W, *_ = fseg.solve_tiles(in_a_row, centers, key, mode=mode, concepts=setting.concepts, tokens=own)
        return W.squeeze(1)

    found = counts.clusters(encoded, weights, mu, len(items), n)
    matching = match(found[train].sum(0))
    f1 = {
        i: one.f1
        for i in np.flatnonzero(~train).tolist()
        if (one := metrics.score(confuse(matching.categories, found[i])))
    }
    ranked = sorted(f1, key=lambda i: (f1[i], items[i].name))
    steps = np.linspace(0, len(ranked) - 1, min(setting.panels, len(ranked))).round().astype(int)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for place, step in enumerate(steps.tolist(), 1):
        i = ranked[step]
        image, truth = working(dataset, items[i], encoded.sizes[i])
        W, labels = _assembled(encoded, i, weights, mu)
        path = folder / f"{place:02d}_{items[i].name.replace('/', '_')}.png"
        title = f"{items[i].name}, F1 {f1[i]:.2f} ({encoded.card.name}, k = {k}, {mode})"
        draw(path, image, truth, labels, W, matching, dataset.categories, title=title)
        written.append(path)
    return written


def _assembled(
    encoded: Encoded, item: int, weights: counts.Score, mu: jax.Array
) -> tuple[Float[np.ndarray, "h w k"], Int[np.ndarray, "height width"]]:
    """W and labels of a whole image, put together from its tiles; W at the tokens."""
    stride, (height, width) = encoded.card.stride, encoded.sizes[item]
    W = np.zeros((-(-height // stride), -(-width // stride), mu.shape[0]), np.float32)
    labels = np.zeros((height, width), np.int32)
    for batch in encoded.batches(item):
        found = weights(jnp.asarray(batch.tokens), mu, batch.sizes.prod(1))
        masks = counts.labels(found, batch, stride)
        for t, own, mask in zip(batch.tiles, np.asarray(found), masks, strict=False):
            tile = encoded.tiles[t]
            here = labels[tile.y : tile.y + mask.shape[0], tile.x : tile.x + mask.shape[1]]
            here[:] = mask[: here.shape[0], : here.shape[1]]
            row, column, area = tile.y // stride, tile.x // stride, tile.rows * tile.columns
            grid = own[:area].reshape(tile.rows, tile.columns, -1)
            W[row : row + tile.rows, column : column + tile.columns] = grid
    return W, labels


def draw(
    path: Path,
    image: UInt8[np.ndarray, "height width 3"],
    truth: UInt8[np.ndarray, "height width"],
    labels: Int[np.ndarray, "height width"],
    W: Float[np.ndarray, "h w k"],
    matching: Matching,
    categories: tuple[str, ...],
    *,
    title: str,
) -> None:
    """Draw one panel: image, truth, clusters and matched categories with a legend, and heat maps of W.

    ``labels`` are clusters 1…k, ``W`` their weights at the tokens, ``truth`` category indices or ``IGNORED``.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    step = max(1, -(-max(image.shape[:2]) // _LONGEST))
    image, truth, labels = (x[::step, ::step] for x in (image, truth, labels))
    k = W.shape[-1]
    colours = palette(len(categories) + k)
    of_category, of_cluster = colours[: len(categories)], colours[len(categories) :]
    true = np.where(truth == IGNORED, 0, truth.astype(int) + 1)
    predicted = matching.categories[labels - 1] + 1
    cover = np.bincount(labels.reshape(-1), minlength=k + 1)[1:]
    order = [c for c in np.argsort(-cover, kind="stable").tolist() if cover[c]]
    pictures = [
        ("Image", image),
        ("Ground truth", tint(image, true, of_category, 0.6)),
        (f"F-SEG, {len(order)} clusters", tint(image, labels, of_cluster, 0.6)),
        ("Matched categories", tint(image, np.where(true > 0, predicted, 0), of_category, 0.6)),
    ]
    maps = order[:MAPS]
    lines = -(-len(maps) // 6)
    across = max(4, -(-len(maps) // lines))
    aspect = image.shape[0] / image.shape[1]
    with drawing():
        tall = 2.0 * aspect + 0.28
        small = 8.8 / across * aspect + 0.2
        figure = Figure(figsize=(9.4, 0.6 + tall + lines * small), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        halves: Any = figure.subfigures(2, 1, height_ratios=[tall, lines * small + 0.3])
        top, bottom = halves
        bottom.suptitle(
            "W of each cluster, bright where it is largest, framed in the cluster's colour; its category",
            x=0.01,
            ha="left",
            fontsize=8,
        )
        *shown, legend = top.subplots(1, 5, width_ratios=[1, 1, 1, 1, 0.62])
        for axis, (name, pixels) in zip(shown, pictures, strict=True):
            axis.imshow(pixels, interpolation="nearest")
            axis.set_title(name, fontweight="normal")
            axis.set_axis_off()
        handles = [Patch(color=of_category[c] / 255, label=name) for c, name in enumerate(categories)]
        legend.legend(
            handles=handles,
            loc="upper left",
            title="Category",
            alignment="left",
            borderaxespad=0,
            handlelength=1.0,
        )
        legend.set_axis_off()
        for axis, cluster in zip(
            bottom.subplots(lines, across, squeeze=False).reshape(-1),
            [*maps, *[None] * (across * lines - len(maps))],
            strict=True,
        ):
            axis.set_axis_off()
            if cluster is None:
                continue
            axis.imshow(_heat(image, W[..., cluster]), interpolation="nearest")
            name = categories[matching.categories[cluster]]
            axis.set_title(f"cluster {cluster + 1}: {name}", fontsize=7, fontweight="normal")
            axis.add_patch(
                Rectangle(
                    (0, 0),
                    1,
                    1,
                    transform=axis.transAxes,
                    fill=False,
                    linewidth=2.4,
                    edgecolor=of_cluster[cluster] / 255,
                )
            )
        save_figure(figure, path, _DPI)


def _heat(image: np.ndarray, weight: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "height width 3"]:
    """A cluster's weight, resized as F-SEG resizes it, over the image in grey: dark is none, bright most."""
    import matplotlib as mpl

    scaled = Image.fromarray((255 * weight / max(float(weight.max()), 1e-12)).astype(np.uint8))
    resized = np.asarray(scaled.resize(image.shape[1::-1], Image.Resampling.BILINEAR))
    colour = mpl.colormaps["inferno"](resized)[..., :3] * 255
    grey = image.mean(-1, keepdims=True)
    return (0.78 * colour + 0.22 * grey).astype(np.uint8)
