"""Ordinary images as slides of one level, read by Pillow."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fseg_jax.files.images import check_depth, load_image
from fseg_jax.slides.bounds import Origin
from fseg_jax.slides.pixels import HasNoGaps, SharesNothing, flatten

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")


class ImagePixels(HasNoGaps, SharesNothing):
    """An ordinary image (PNG, JPEG, BMP, WebP), decoded whole when it is opened; grey becomes RGB."""

    mpp: tuple[float, float] | None = None  # an image's dots per inch say how it is printed
    origin: Origin | None = None
    series: int | None = None

    def __init__(self, path: Path) -> None:
        image = load_image(path, "a slide or image", formats=_FORMATS)
        check_depth(path, image)
        self.format = "image"
        if image.has_transparency_data:
            self._pixels = flatten(image.convert("RGBA"))
        else:
            self._pixels = np.asarray(image.convert("RGB"))
        self._pixels.flags.writeable = False  # the boxes that are read are views of it
        self.shapes = [self._pixels.shape[:2]]

    def read(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return a box of the image."""
        return self._pixels[y : y + height, x : x + width]

    def close(self) -> None:
        """Release the memory of the image."""
        self._pixels = self._pixels[:0, :0]
