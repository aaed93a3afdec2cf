"""Slides of Aperio at an address, which OpenSlide cannot open, with the pixels that it would give."""

import re
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fseg_jax.errors import InputError
from fseg_jax.files.addresses import RemotePath
from fseg_jax.files.extent import check_directories
from fseg_jax.slides.bounds import Origin
from fseg_jax.slides.openslide_tiles import find_levels
from fseg_jax.slides.tile_pyramid import TilePyramid


class AperioPixels(TilePyramid):
    """A slide of Aperio: its levels are the tiled pages of a TIFF, of tiles side by side."""

    format = "aperio"
    origin: Origin | None = None
    series: int | None = None

    def __init__(self, path: RemotePath, tiff: Any) -> None:
        """Read what a slide's TIFF holds; it is closed with this.

        Raises:
            InputError: It cannot be read, is damaged, or coded in a way that only OpenSlide knows.
        """
        self._path = path
        self._tiff = tiff
        check_directories(path, self._tiff)
        pages: list[Any] = [page for page in self._tiff.pages if page.is_tiled]
        self.shapes = [(int(page.imagelength), int(page.imagewidth)) for page in pages]
        levels = find_levels(path, self._tiff, self.shapes, self._show_unwritten)
        if not pages or len(levels) < len(pages):
            raise InputError(f"{path}: its pixels are coded as only OpenSlide reads them: download it")
        for level in levels.values():
            level.check_extent()
        self.mpp = _parse_mpp(self._tiff.pages[0].description)
        super().__init__(levels)

    def _show_unwritten(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Show a tile that was never written: white, or, in a coarser level, what OpenSlide alone knows."""
        if level:
            raise InputError(
                f"{self._path}: level {level} has a tile that only OpenSlide reads, at y = {y}, x = {x}: "
                "download the file"
            )
        return np.full((height, width, 3), 255, np.uint8)

    def close(self) -> None:
        """Release the file and what was decoded."""
        super().close()
        self._tiff.close()


def _parse_mpp(description: str) -> tuple[float, float] | None:
    """Parse the µm per pixel of Aperio's description; return None where it states none."""
    match = re.search(r"\|\s*MPP\s*=\s*(\d+\.?\d*)", description)
    return (float(match[1]), float(match[1])) if match else None
