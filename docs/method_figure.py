"""Draw ``method.png`` of ``concepts.md``, from what the encoder and the solver make of one picture.

python docs/method_figure.py
"""

from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from skimage import data

import fseg_jax as fseg
from fseg_jax.outputs.style import OKABE_ITO, save_figure, use_style

CONCEPTS, SIDE = 2, 384


def main() -> None:
    """Factorize a tile of scikit-image's colon, and draw each step."""
    tile = data.immunohistochemistry()[:SIDE, :SIDE]
    features = np.asarray(fseg.load_encoder("he-small")(tile[None]))[0]
    rows, columns, channels = features.shape
    A = features.reshape(-1, channels)
    result = fseg.nmf.factorize(A[None], CONCEPTS, key=jax.random.key(0))
    W, H = np.asarray(result.W)[0], np.asarray(result.H)[0]
    owed = (W * np.linalg.norm(H, axis=1)).reshape(rows, columns, CONCEPTS)
    maps = np.asarray(jax.image.resize(owed, (SIDE, SIDE, CONCEPTS), "bilinear"))
    colours = np.array([plt.matplotlib.colors.to_rgb(c) for c in OKABE_ITO[:CONCEPTS]])

    use_style()
    figure, axes = plt.subplots(
        1, 5, figsize=(12, 3.1), width_ratios=(1, 0.9, 0.55, 1, 1), constrained_layout=True
    )
    axes[0].imshow(tile)
    step = SIDE / rows
    axes[0].set_xticks(np.arange(0, SIDE, step) - 0.5, minor=True)
    axes[0].set_yticks(np.arange(0, SIDE, step) - 0.5, minor=True)
    axes[0].grid(which="minor", color="white", linewidth=0.3)
    axes[0].set_title(f"a tile, and its\n{rows} × {columns} tokens")
    by_concept = np.argsort(H[0] - H[1])  # features of one concept beside each other
    axes[1].imshow(np.sqrt(A[:, by_concept]), aspect="auto", cmap="gray_r", interpolation="antialiased")
    axes[1].set_title(f"A: a token a row,\n{channels} features")
    axes[2].imshow(owed.reshape(-1, CONCEPTS), aspect="auto", cmap="gray_r", interpolation="nearest")
    axes[2].set_title(f"W: what it owes\nto {CONCEPTS} concepts")
    shown = maps / maps.sum(-1, keepdims=True).clip(1e-9)
    axes[3].imshow((shown @ colours).clip(0, 1))
    axes[3].set_title("W as maps,\nenlarged to pixels")
    axes[4].imshow(colours[maps.argmax(-1)])
    axes[4].set_title("labels: the concept\nthat contributes most")
    for axis in axes:
        axis.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    save_figure(figure, Path(__file__).with_name("method.png"), dpi=110)


if __name__ == "__main__":
    main()
