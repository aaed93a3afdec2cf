"""DICOM slides, read by OpenSlide, or by wsidicom where OpenSlide refuses: JPEG-LS, HTJ2K, grey."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.extent import SEGMENT_LIMIT
from fseg_jax.slides.bounds import Frame, Origin
from fseg_jax.slides.dicom_series import DicomSeries, Instance
from fseg_jax.slides.openslide import OpenSlidePixels
from fseg_jax.slides.pixels import HasNoGaps, Pixels, SharesNothing
from fseg_jax.slides.tiff_tiles import count_jpeg2000_pixels, count_jpeg_pixels


def open_dicom(path: Path, series: DicomSeries, frame: Frame) -> Pixels:
    """Open a DICOM slide: by OpenSlide, or, where that does not read it, by wsidicom.

    Args:
        path: What the user calls it, for messages.
        series: Its files.
        frame: What coordinates count from, where OpenSlide states bounds.

    Raises:
        InputError: Neither reads it, or wsidicom is needed and not installed.
    """
    levels = series.levels
    if not levels:
        raise InputError(f"{path}: the DICOM series has no level of a slide, only a label or an overview")
    _check_levels(path, levels)
    try:
        return OpenSlidePixels(levels[0].file, frame)
    except InputError:
        pass
    try:
        return WsiDicomPixels(path, levels)
    except ImportError:
        raise InputError(
            f"{path}: OpenSlide does not read this DICOM slide ({levels[0].samples} channel(s), "
            f"{levels[0].compression}); pip install 'fseg-jax[dicom]', which reads more of them by wsidicom"
        ) from None


class WsiDicomPixels(HasNoGaps, SharesNothing):
    """A DICOM slide of 8-bit RGB or grey that wsidicom reads."""

    format = "wsidicom"
    mpp: tuple[float, float] | None
    origin: Origin | None = None
    series: int | None = None

    def __init__(self, path: Path, levels: list[Instance]) -> None:
        """Open a slide.

        Args:
            path: What the user calls it, for messages.
            levels: The files of its levels.

        Raises:
            InputError: wsidicom does not read it.
            ImportError: wsidicom is not installed.
        """
        from wsidicom import WsiDicom

        files: dict[tuple[int, int], list[Path]] = {}
        for level in levels:
            files.setdefault(level.tile, []).append(level.file)
        try:
            # wsidicom leaves out the levels whose tiles are not of the size that the finest level has.
            self._slides = [WsiDicom.open(alike) for alike in files.values()]
            opened = [(slide, level) for slide in self._slides for level in slide.levels]
            opened.sort(key=lambda entry: -entry[1].size.width)
            self._levels = [(slide, level.level) for slide, level in opened]
            self._tiles = [(level.tile_size.height, level.tile_size.width) for _, level in opened]
            self.shapes = [(level.size.height, level.size.width) for _, level in opened]
            finest = opened[0][1]
            self.mpp = (float(finest.mpp.height), float(finest.mpp.width))
            self._count_pixels = _find_count(levels[0].compression)
            self._checked: set[tuple[int, int, int]] = set()
        except Exception as error:
            raise InputError(
                f"{path}: neither OpenSlide nor wsidicom reads this DICOM slide ({first_line(error)}); "
                "it is damaged, or of a kind that they do not know"
            ) from None

    def read(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Decode a box of a level; tiles that the file does not hold are white."""
        tile_height, tile_width = self._tiles[level]
        for row in range(y // tile_height, (y + height - 1) // tile_height + 1):
            for column in range(x // tile_width, (x + width - 1) // tile_width + 1):
                self._check_tile(level, row, column)
        slide, number = self._levels[level]
        return np.asarray(slide.read_region((x, y), number, (width, height)).convert("RGB"))

    def _check_tile(self, level: int, row: int, column: int) -> None:
        """Raise ``OSError`` where a tile states more pixels than it has: memory may not suffice for them."""
        if self._count_pixels is None or (level, row, column) in self._checked:
            return
        slide, number = self._levels[level]
        coded = slide.read_encoded_tile(number, (column, row), crop_to_image_boundary=False)
        if self._count_pixels(coded) > self._tiles[level][0] * self._tiles[level][1]:
            raise OSError("a tile states more pixels than it has")
        self._checked.add((level, row, column))

    def close(self) -> None:
        """Release the files."""
        for slide in self._slides:
            slide.close()


def _find_count(compression: str) -> Callable[[bytes], int] | None:
    """Find the function that reads the number of pixels from a compressed tile's header."""
    if "2000" in compression:
        return count_jpeg2000_pixels
    return count_jpeg_pixels if "JPEG" in compression else None


def _check_levels(path: Path, levels: list[Instance]) -> None:
    """Raise ``InputError`` where levels are not of 8-bit RGB or grey, or their tiles are too large."""
    for each in levels:
        if each.tile[0] * each.tile[1] * each.samples * each.bits // 8 > SEGMENT_LIMIT:
            raise InputError(
                f"{path}: {each.file.name} has tiles of {each.tile[0]} × {each.tile[1]} pixels, too large to "
                "decode one by one"
            )
        if each.bits != 8 or each.samples not in (1, 3):
            raise InputError(
                f"{path}: 8-bit RGB is required, and {each.file.name} has {each.samples} channel(s) of "
                f"{each.bits} bits"
            )
        if each.planes > 1:
            raise InputError(f"{path}: has {each.planes} focal planes; give a slide of one")
        if each.samples == 1 and (each.paths > 1 or each.is_fluorescence):
            raise InputError(
                f"{path}: is fluorescence of {each.paths} channel(s), and tissue that is stained and lit "
                "from below is needed"
            )
