"""What a slide file must offer to be read, and which reader takes which file.

``Pixels`` is a pyramid of 8-bit RGB levels, finest first, that can be read in any box inside a level.
``open_pixels`` picks the reader: OpenSlide where it knows the format, tifffile for OME-TIFF and the TIFFs
that OpenSlide refuses, tensorstore for OME-Zarr, Pillow for ordinary images.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import openslide
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.files.extent import check_tiles
from fseg_jax.files.images import load_image
from fseg_jax.files.paths import is_folder, is_there
from fseg_jax.slides.mirax import check_counts

OME_TIFF_SUFFIXES = (".ome.tif", ".ome.tiff", ".ome.tf2", ".ome.tf8", ".ome.btf")
_TIFF_SUFFIXES = (".tif", ".tiff", ".tf2", ".tf8", ".btf")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_OPENSLIDE_CACHE = 64 << 20  # bytes; OpenSlide's own 32 MB do not hold a row of tiles
_BLOCK = 256  # level pixels, see OpenSlidePixels.read


class Pixels(Protocol):
    """A pyramid of 8-bit RGB levels. ``read`` is safe to call from several threads."""

    format: str
    shapes: list[tuple[int, int]]  # (height, width) of each level, finest first
    mpp: tuple[float, float] | None  # µm per level-0 pixel along y and x, where the file says so

    def read(self, level: int, y: int, x: int, height: int, width: int) -> np.ndarray:
        """Decode a box that lies inside the level: uint8 (height, width, 3). Any exception means damage."""

    def close(self) -> None:
        """Release the file."""


def open_pixels(path: Path) -> Pixels:
    """Open a file or an OME-Zarr folder with the reader that fits it; InputError where none does."""
    from fseg_jax.slides.ome_zarr import ZarrPixels
    from fseg_jax.slides.tiff import TiffPixels

    if is_folder(path):
        return ZarrPixels(path)
    if not is_there(path):
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not magic:
        raise InputError(f"{path}: the file is empty")
    is_tiff = magic in _TIFF_MAGIC
    name = path.name.lower()
    if name.endswith(OME_TIFF_SUFFIXES):
        return TiffPixels(path)
    if path.suffix.lower() == ".mrxs":
        check_counts(path)
    if OpenSlidePixels.knows(path):
        if is_tiff:
            check_tiles(path)
        try:
            return OpenSlidePixels(path)
        except InputError:
            if not (is_tiff and name.endswith(_TIFF_SUFFIXES)):
                raise
    # A scanner's own suffix that OpenSlide refuses is a damaged file: half of it must not be read as a plain
    # TIFF.
    if is_tiff and name.endswith(_TIFF_SUFFIXES):
        return TiffPixels(path)
    return ImagePixels(path)


def flatten(rgba: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """Lay an RGBA picture over a background colour: uint8 (height, width, 3)."""
    alpha = rgba.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return np.asarray(rgba.convert("RGB"))
    ground = Image.new("RGB", rgba.size, background)
    ground.paste(rgba, mask=alpha)
    return np.asarray(ground)


class OpenSlidePixels:
    """A slide of any format that OpenSlide reads."""

    def __init__(self, path: Path):
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise InputError(
                f"{path}: OpenSlide cannot read it ({error}); it is damaged, truncated or another format"
            ) from None
        self._slide.set_cache(openslide.OpenSlideCache(_OPENSLIDE_CACHE))
        properties = self._slide.properties
        self.format = "openslide/" + properties[openslide.PROPERTY_NAME_VENDOR]
        self.shapes = [(height, width) for width, height in self._slide.level_dimensions]
        self.mpp = self._mpp()
        red, green, blue = bytes.fromhex(properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF"))
        self._background = (red, green, blue)

    @staticmethod
    def knows(path: Path) -> bool:
        """Whether OpenSlide recognises the file."""
        return openslide.OpenSlide.detect_format(path) is not None

    def _mpp(self) -> tuple[float, float] | None:
        properties = self._slide.properties
        try:
            y = float(properties[openslide.PROPERTY_NAME_MPP_Y])
            x = float(properties[openslide.PROPERTY_NAME_MPP_X])
        except (KeyError, ValueError):
            return None
        if self.format == "openslide/generic-tiff" and not (is_plausible(y) and is_plausible(x)):
            return None  # the 72 or 96 dots per inch of any picture
        return y, x

    def read(self, level: int, y: int, x: int, height: int, width: int) -> np.ndarray:
        down = self._slide.level_downsamples[level]
        if down == round(down):
            return self._region(level, y, x, height, width)
        # OpenSlide places a coarse level by whole level-0 pixels and interpolates the rest, so that one
        # pixel's value would depend on where the box begins. Beginning at fixed blocks makes it the same for
        # every box.
        out = np.empty((height, width, 3), np.uint8)
        for top in range(y - y % _BLOCK, y + height, _BLOCK):
            for left in range(x - x % _BLOCK, x + width, _BLOCK):
                bottom, right = min(top + _BLOCK, y + height), min(left + _BLOCK, x + width)
                block = self._region(level, top, left, bottom - top, right - left)
                inside = block[max(y - top, 0) :, max(x - left, 0) :]
                out[max(top - y, 0) : bottom - y, max(left - x, 0) : right - x] = inside
        return out

    def _region(self, level: int, y: int, x: int, height: int, width: int) -> np.ndarray:
        down = self._slide.level_downsamples[level]
        region = self._slide.read_region((round(x * down), round(y * down)), level, (width, height))
        return flatten(region, self._background)

    def close(self) -> None:
        self._slide.close()


class ImagePixels:
    """An ordinary image (PNG, JPEG, BMP, WebP), decoded whole when it is opened; grey becomes RGB."""

    mpp: tuple[float, float] | None = None  # the dots per inch of a picture are its print size

    def __init__(self, path: Path):
        image = load_image(path, "a slide or image", formats=_IMAGE_FORMATS)
        if image.mode not in _IMAGE_MODES:
            raise InputError(
                f"{path}: its pixels are {image.mode}, not 8-bit grey or RGB; convert it to 8-bit RGB"
            )
        self.format = "image"
        if image.has_transparency_data:
            self._pixels = flatten(image.convert("RGBA"))
        else:
            self._pixels = np.asarray(image.convert("RGB"))
        self._pixels.flags.writeable = False  # boxes are views of it
        self.shapes = [self._pixels.shape[:2]]

    def read(self, level: int, y: int, x: int, height: int, width: int) -> np.ndarray:
        return self._pixels[y : y + height, x : x + width]

    def close(self) -> None:
        self._pixels = self._pixels[:0, :0]


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF does; OSError where it cannot be read."""
    with path.open("rb") as file:
        return file.read(4) in _TIFF_MAGIC


def is_plausible(mpp: float) -> bool:
    """Whether µm per pixel can be a microscope's: 0.05 to 20."""
    return 0.05 <= mpp <= 20
