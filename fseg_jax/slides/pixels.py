"""What every reader of slide files offers, and what several of them need."""

from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Pixels(Protocol):
    """A pyramid of 8-bit RGB levels. ``read`` is safe to call from several threads."""

    format: str
    shapes: list[tuple[int, int]]  # (height, width) of each level, finest first
    mpp: tuple[float, float] | None  # µm per level-0 pixel along y and x, where the file says so

    def read(self, level: int, y: int, x: int, height: int, width: int) -> np.ndarray:
        """Decode a box that lies inside the level: uint8 (height, width, 3). Any exception means damage."""

    def close(self) -> None:
        """Release the file."""


def flatten(rgba: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """Lay an RGBA picture over a background colour: uint8 (height, width, 3)."""
    alpha = rgba.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return np.asarray(rgba.convert("RGB"))
    ground = Image.new("RGB", rgba.size, background)
    ground.paste(rgba, mask=alpha)
    return np.asarray(ground)


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF does; OSError where it cannot be read."""
    with path.open("rb") as file:
        return file.read(4) in TIFF_MAGIC


def is_plausible(mpp: float) -> bool:
    """Whether µm per pixel can be a microscope's: 0.05 to 20."""
    return 0.05 <= mpp <= 20
