"""What a mask of an image is kept as: a PNG of 0 and 255, and a picture of image, heat map and mask."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from fseg_jax.files.atomic import replacing

_SIDE = 480  # of a panel: its longer side
_GAP, _TOP = 12, 34
_INK = (40, 44, 52)
_LINE = (0, 240, 220)
_HEAT = 0.55


def write_mask(path: Path, mask: Bool[np.ndarray, "height width"]) -> None:
    """Write a mask as a PNG of one channel, 255 inside; the file appears whole or not at all."""
    with replacing(path) as part:
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
    """Write an image beside its heat map in [0, 1] and the mask's outline, and the truth's where it is known.

    Everything has the image's size; the picture's panels have 480 pixels along their longer side.
    """
    panels = [
        ("Image", image),
        (f"Heat map: {title}", _heated(image, heat)),
        ("Mask", _outlined(image, mask)),
    ]
    if truth is not None:
        panels.append(("Truth", _outlined(image, truth)))
    scale = _SIDE / max(image.shape[:2])
    height, width = (max(1, round(n * scale)) for n in image.shape[:2])
    font = ImageFont.load_default(17)
    canvas = Image.new("RGB", ((width + _GAP) * len(panels) + _GAP, height + _TOP + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (caption, pixels) in enumerate(panels):
        x = _GAP + number * (width + _GAP)
        while caption and font.getlength(caption) > width:
            caption = caption[:-2] + "…"
        draw.text((x, _TOP - 8), caption, _INK, font, anchor="ls")
        canvas.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC), (x, _TOP))
    with replacing(path) as part:
        canvas.save(part, format="PNG")


def _heated(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    grey = image.astype(np.float32).mean(-1, keepdims=True)
    colour = colormaps["inferno"](np.clip(heat, 0, 1))[..., :3].astype(np.float32) * 255
    return ((1 - _HEAT) * grey + _HEAT * colour).round().astype(np.uint8)


def _outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image, dimmed where the mask is not, with a line around the mask."""
    thick = max(1, round(max(mask.shape) / _SIDE * 2))
    inside = ndimage.binary_erosion(mask, iterations=thick)
    shown = np.where(mask[..., None], image, (image * 0.6).astype(np.uint8))
    return np.where((mask & ~inside)[..., None], np.array(_LINE, np.uint8), shown)
