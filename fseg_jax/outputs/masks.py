"""An image's mask as PNG, and a picture of the image, its heat map and its mask."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage

from fseg_jax.files.atomic import replace_atomically
from fseg_jax.outputs.lettering import Lettering, fit_text
from fseg_jax.outputs.style import use_style

# Pixels: a panel's longer side, the gap between panels, the height of the captions, and their letters.
_SIDE, _GAP, _TOP, _TEXT = 480, 12, 34, 15
_LINE = (0, 240, 220)  # the colour of outlines
_HEAT = 0.55  # opacity of the heat map


def write_mask(path: Path, mask: Bool[np.ndarray, "height width"]) -> None:
    """Write a mask as a PNG of one channel, 255 inside; the file appears whole or not at all."""
    with replace_atomically(path) as part:
        Image.fromarray(mask.astype(np.uint8) * 255).save(part, format="PNG")


def write_picture(
    path: Path,
    image: UInt8[np.ndarray, "height width 3"],
    heat: Float[np.ndarray, "height width"],
    mask: Bool[np.ndarray, "height width"],
    *,
    title: str,
    truth: Bool[np.ndarray, "height width"] | None = None,
) -> None:
    """Write a picture of an image, its heat map, its mask and, if known, the true mask, side by side.

    Args:
        path: The file, a PNG.
        image: The image.
        heat: The heat map, in [0, 1].
        mask: The mask.
        title: The heat map's caption.
        truth: The true mask.
    """
    panels = [
        ("Image", image),
        (f"Heat map: {title}", _overlay_heat(image, heat)),
        ("Mask", _outline(image, mask)),
    ]
    if truth is not None:
        panels.append(("Truth", _outline(image, truth)))
    scale = _SIDE / max(image.shape[:2])
    height, width = (max(1, round(n * scale)) for n in image.shape[:2])
    canvas = np.full((height + _TOP + _GAP, (width + _GAP) * len(panels) + _GAP, 3), 255, np.uint8)
    corners = [_GAP + number * (width + _GAP) for number in range(len(panels))]
    for x, (_, pixels) in zip(corners, panels, strict=True):
        panel = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        canvas[_TOP : _TOP + height, x : x + width] = panel
    with use_style():
        lettering = Lettering(canvas)
        for x, (caption, _) in zip(corners, panels, strict=True):
            lettering.write_text(x, _TOP - 8, fit_text(caption, _TEXT, width), _TEXT)
        lettering.save(path)


def _overlay_heat(
    image: UInt8[np.ndarray, "height width 3"], heat: Float[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    from matplotlib import colormaps

    grey = image.astype(np.float32).mean(-1, keepdims=True)
    colour = colormaps["inferno"](np.clip(heat, 0, 1))[..., :3].astype(np.float32) * 255
    return np.asarray(((1 - _HEAT) * grey + _HEAT * colour).round().astype(np.uint8))


def _outline(
    image: UInt8[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw a line along the inside of a mask's border, and darken the image outside it."""
    thickness = max(1, round(max(mask.shape) / _SIDE * 2))
    inside = ndimage.binary_erosion(mask, iterations=thickness)
    dimmed = np.where(mask[..., None], image, (image * 0.6).astype(np.uint8))
    return np.where((mask & ~inside)[..., None], np.array(_LINE, np.uint8), dimmed)
