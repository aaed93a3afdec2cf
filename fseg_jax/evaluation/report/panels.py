"""Panels for people: an image, its truth, its segmentation, and the heat map of each concept (W)."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from fseg_jax.evaluation.data.mask_codes import IGNORED
from fseg_jax.evaluation.results import Panel
from fseg_jax.outputs.colours import make_palette
from fseg_jax.outputs.figures import tint
from fseg_jax.outputs.style import save_figure, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAPS = 12  # heat maps of a panel: those of the clusters that cover most
_MAPS_A_LINE = 6
_LONGEST_SIDE = 900  # pixels of a picture in a panel
_DPI = 160


def write_panels(folder: Path, panels: Iterable[Panel], categories: tuple[str, ...]) -> list[Path]:
    """Draw each panel to a PNG of its own, whose name begins with its rank from worst to best."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for panel in panels:
        path = folder / f"{panel.rank:02d}_{panel.name.replace('/', '_')}.png"
        draw_panel(path, panel, categories)
        paths.append(path)
    return paths


def draw_panel(path: Path, panel: Panel, categories: tuple[str, ...]) -> None:
    """Draw image, truth, clusters and matched categories with a legend, and below them heat maps of W."""
    from matplotlib.figure import Figure

    step = max(1, -(-max(panel.image.shape[:2]) // _LONGEST_SIDE))
    image, truth, labels = (x[::step, ::step] for x in (panel.image, panel.truth, panel.labels))
    k = panel.W.shape[-1]
    colours = make_palette(len(categories) + k)
    category_colours, cluster_colours = colours[: len(categories)], colours[len(categories) :]
    pixels = np.bincount(labels.reshape(-1), minlength=k + 1)[1:]
    largest_first = [c for c in np.argsort(-pixels, kind="stable").tolist() if pixels[c]]
    shown = largest_first[:MAPS]
    lines = -(-len(shown) // _MAPS_A_LINE)
    across = max(4, -(-len(shown) // lines))
    aspect = image.shape[0] / image.shape[1]
    with use_style():
        tall = 2.0 * aspect + 0.28
        small = 8.8 / across * aspect + 0.2
        figure = Figure(figsize=(9.4, 0.6 + tall + lines * small), layout="constrained")
        title = f"{panel.name}, F1 {panel.f1:.2f} ({panel.encoder}, k = {panel.k}, {panel.mode})"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        halves: Any = figure.subfigures(2, 1, height_ratios=[tall, lines * small + 0.3])
        top, bottom = halves
        bottom.suptitle(
            "W of each cluster, bright where it is largest, framed in the cluster's colour; its category",
            x=0.01,
            ha="left",
            fontsize=8,
        )
        *axes, legend = top.subplots(1, 5, width_ratios=[1, 1, 1, 1, 0.62])
        matched = panel.matching.categories[labels - 1] + 1
        _draw_pictures(axes, image, truth, labels, matched, category_colours, cluster_colours)
        _draw_legend(legend, categories, category_colours)
        cells = bottom.subplots(lines, across, squeeze=False).reshape(-1)
        for axis in cells:
            axis.set_axis_off()
        for axis, cluster in zip(cells, shown, strict=False):
            axis.imshow(_heat_map(image, panel.W[..., cluster]), interpolation="nearest")
            name = categories[panel.matching.categories[cluster]]
            axis.set_title(f"cluster {cluster + 1}: {name}", fontsize=7, fontweight="normal")
            _draw_frame(axis, cluster_colours[cluster])
        save_figure(figure, path, _DPI)


def _draw_pictures(
    axes: "list[Axes]",
    image: UInt8[np.ndarray, "height width 3"],
    truth: UInt8[np.ndarray, "height width"],
    labels: Int[np.ndarray, "height width"],
    matched: Int[np.ndarray, "height width"],
    category_colours: UInt8[np.ndarray, "n 3"],
    cluster_colours: UInt8[np.ndarray, "k 3"],
) -> None:
    """Draw the image, and over it the truth, the clusters (from 1) and their categories (from 1)."""
    true = np.where(truth == IGNORED, 0, truth.astype(int) + 1)
    pictures = [
        ("Image", image),
        ("Ground truth", tint(image, true, category_colours, 0.6)),
        (f"F-SEG, {len(np.unique(labels[labels > 0]))} clusters", tint(image, labels, cluster_colours, 0.6)),
        ("Matched categories", tint(image, np.where(true > 0, matched, 0), category_colours, 0.6)),
    ]
    for axis, (name, pixels) in zip(axes, pictures, strict=True):
        axis.imshow(pixels, interpolation="nearest")
        axis.set_title(name, fontweight="normal")
        axis.set_axis_off()


def _draw_legend(axis: "Axes", categories: tuple[str, ...], colours: UInt8[np.ndarray, "n 3"]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colours[c] / 255, label=name) for c, name in enumerate(categories)]
    axis.legend(
        handles=handles,
        loc="upper left",
        title="Category",
        alignment="left",
        borderaxespad=0,
        handlelength=1.0,
    )
    axis.set_axis_off()


def _draw_frame(axis: "Axes", colour: UInt8[np.ndarray, "3"]) -> None:
    from matplotlib.patches import Rectangle

    frame = Rectangle(
        (0, 0), 1, 1, transform=axis.transAxes, fill=False, linewidth=2.4, edgecolor=colour / 255
    )
    axis.add_patch(frame)


def _heat_map(
    image: UInt8[np.ndarray, "height width 3"], weight: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Resize a cluster's weight as F-SEG does, and lay it over the grey image: dark is none, bright most."""
    import matplotlib as mpl

    scaled = Image.fromarray((255 * weight / max(float(weight.max()), 1e-12)).astype(np.uint8))
    resized = np.asarray(scaled.resize(image.shape[1::-1], Image.Resampling.BILINEAR))
    colour = mpl.colormaps["inferno"](resized)[..., :3] * 255
    grey = image.mean(-1, keepdims=True)
    return np.asarray((0.78 * colour + 0.22 * grey).astype(np.uint8))
