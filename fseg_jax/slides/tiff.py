"""TIFF and OME-TIFF slides, read by tifffile: only the tiles or strips that a box touches are decoded.

When a file is opened, the sizes that it declares are checked against what it holds. A tile that was never
written (its byte count is 0) is white; a tile that is listed but lies past the end of the file is an error.

An OME-TIFF may be one file of a set. Of the images in the set, those are read that have pixels in the file
that is opened; their other channels come from the other files.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from jaxtyping import UInt8
from PIL import Image

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.extent import check_directories
from fseg_jax.files.tiff_files import open_slide_tiff, open_tiff
from fseg_jax.files.tiff_pictures import (
    TIFF_MAGIC,
    Colours,
    check_codec,
    check_depth,
    check_pages,
    has_channels,
    is_planar_jpeg,
    list_images,
    read_colours,
    read_orientation,
)
from fseg_jax.slides.bounds import Origin
from fseg_jax.slides.channels import Channel, choose_rgb
from fseg_jax.slides.ome_header import OmeHeader, OmeImage, parse_header
from fseg_jax.slides.pixels import flatten, is_plausible
from fseg_jax.slides.series import FileImage, choose_image
from fseg_jax.slides.tiff_tiles import TiffTiles
from fseg_jax.slides.tile_pyramid import TilePyramid
from fseg_jax.slides.units import convert_to_um

_MAX_HEADER = 64 << 20  # bytes of a companion file
_RGB, _YCBCR = 2, 6  # photometric interpretations


class TiffPixels(TilePyramid):
    """An 8-bit RGB or grey TIFF: tiled or in strips, plain or OME, flat or a pyramid.

    Attributes:
        orientation: How it is stored: 1, or turned as the tag Orientation says.
    """

    origin: Origin | None = None
    series: int | None = None

    def __init__(self, path: Path, tiff: Any, series: int | None = None) -> None:
        """Read what a TIFF holds.

        Args:
            path: The file.
            tiff: It, as ``open_slide_tiff`` opens it; it is closed with this.
            series: Which of its images to read, as the file counts them; None for the largest.

        Raises:
            InputError: The TIFF is damaged, or of a kind that is not read.
        """
        self._path = path
        self._tiff = tiff
        try:
            self._open(series)
        except InputError:
            self._tiff.close()
            raise
        except Exception as error:
            self._tiff.close()
            raise InputError(f"{path}: the TIFF cannot be read ({first_line(error)})") from None

    def _open(self, number: int | None) -> None:
        check_directories(self._path, self._tiff)
        self._header = self._read_header()
        self.format = "ome-tiff" if self._header is not None else "tiff"
        series, image, ome = self._choose_series(number)
        check_pages(self._path, series)
        channels = list(ome.channels) if ome is not None else []
        self._levels = []
        colours = None
        for level in series.levels:
            pages = self._open_pages(level)
            if colours is None:
                colours = _choose_colours(self._path, pages, channels)
            self._levels.append(_Level(self._path, pages, colours))
        first = self._levels[0].shape
        # Some files list a label or macro picture as a level: it does not have the slide's aspect ratio.
        self._levels = [
            level
            for level in self._levels
            if abs(level.shape[0] * first[1] - level.shape[1] * first[0]) <= 2 * sum(first)
        ]
        self._levels.sort(key=lambda level: -level.shape[0])
        self.shapes = [level.shape for level in self._levels]
        keyframe = self._levels[0].keyframe
        self.orientation = read_orientation(keyframe)
        self.mpp = image.mpp or _parse_imagej_mpp(self._tiff, keyframe) or _parse_tag_mpp(keyframe)
        super().__init__(dict(enumerate(self._levels)))

    def _read_header(self) -> OmeHeader | None:
        """Read the OME header, which may be in another file of the set; None where there is none."""
        if not self._tiff.is_ome:
            return None
        header = parse_header(self._tiff.ome_metadata or "", self._path.name)
        if header is None or header.elsewhere is None:
            return header
        file = self._path.parent / Path(header.elsewhere).name
        try:
            with file.open("rb") as stream:
                is_tiff = stream.read(4) in TIFF_MAGIC
                stream.seek(0)
                content = "" if is_tiff else stream.read(_MAX_HEADER).decode("utf-8", "replace")
        except OSError as error:
            raise InputError(
                f"{self._path}: its OME header is in {file.name}, which cannot be read "
                f"({error.strerror or error}): keep the files of the set together"
            ) from None
        self._tiff.close()
        self._tiff = open_slide_tiff(file) if is_tiff else open_tiff(self._path, omexml=content)
        return parse_header(self._tiff.ome_metadata or "", Path(self._tiff.filename).name if is_tiff else "")

    def _choose_series(self, number: int | None) -> tuple[Any, FileImage, OmeImage | None]:
        """Choose the image to read: tifffile's series, what it is, and what an OME header says of it."""
        found = []
        # Sides are found by ``axes``: the keys of ``sizes`` differ between tifffile's versions.
        for i, series in enumerate(list_images(self._tiff)):
            page = next(page for page in series.pages if page is not None)
            ome = self._find_ome_image(page)
            shape = (series.shape[series.axes.index("Y")], series.shape[series.axes.index("X")])
            image = FileImage(ome.number, ome.name, shape, ome.mpp) if ome else FileImage(i, "", shape, None)
            found.append((series, image, ome))
        own = [entry for entry in found if self._is_own(entry[0])]
        if not (own or found):
            raise InputError(f"{self._path}: the TIFF has no image")
        entries = own if number is None and own else found
        chosen = entries[choose_image(self._path, [image for _, image, _ in entries], number)]
        self.series = chosen[1].number if len(found) > 1 else None
        return chosen

    def _find_ome_image(self, page: Any) -> OmeImage | None:
        if self._header is None:
            return None
        file = page.parent.filehandle.name
        is_of_header = page.parent is self._tiff or file == self._tiff.filehandle.name
        image = self._header.find(page, None if is_of_header else file) or self._header.find(page, file)
        if image is None and len(self._header.images) == 1:
            return self._header.images[0]
        return image

    def _is_own(self, series: Any) -> bool:
        """Return whether an image has pixels in the file that was asked for."""
        return any(
            page is not None and page.parent.filehandle.name == self._path.name for page in series.pages
        )

    def _open_pages(self, series: Any) -> list[Any]:
        """Return an image's pages, all of them there, with their files open."""
        pages = list(series.pages)
        if any(page is None for page in pages):
            raise InputError(
                f"{self._path}: some of its channels are in other files of its set, which are not beside it; "
                "keep the files together"
            )
        for page in pages:
            if page.parent.filehandle.closed:
                page.parent.filehandle.open()
            if is_planar_jpeg(page.keyframe):
                page.keyframe.subsampling = None
                if int(page.keyframe.photometric) == _YCBCR:
                    page.keyframe.photometric = tifffile.PHOTOMETRIC(_RGB)
        return pages

    def read(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Decode a box of a level; transparent pixels become white."""
        return compose_rgb(super().read(level, y, x, height, width), self._levels[level].colours)

    def close(self) -> None:
        """Release the file and what was decoded."""
        super().close()
        self._tiff.close()


def compose_rgb(
    stored: UInt8[np.ndarray, "height width samples"], colours: Colours
) -> UInt8[np.ndarray, "height width 3"]:
    """Compose RGB of stored samples; what is transparent lies on white."""
    if colours.table is not None:
        rgb = colours.table[stored[..., colours.samples[0]]]
    elif stored.shape[2] == 3 and colours.samples == (0, 1, 2):
        return stored
    else:
        rgb = stored[..., colours.samples]
    if colours.alpha is None:
        return np.ascontiguousarray(rgb)
    opacity = stored[..., colours.alpha, None]
    if colours.premultiplied:
        return np.asarray(np.minimum(rgb.astype(np.uint16) + (255 - opacity), 255).astype(np.uint8))
    return flatten(Image.fromarray(np.concatenate([rgb, opacity], axis=2)))


class _Level(TiffTiles):
    """One pyramid level: a page, or a page for each channel."""

    def __init__(self, path: Path, pages: list[Any], colours: Colours) -> None:
        check_depth(path, pages[0])
        check_codec(path, pages[0].keyframe)
        super().__init__(path, pages, blank=colours.white)
        self.colours = colours
        self.check_extent()


def _choose_colours(path: Path, pages: list[Any], channels: list[Channel]) -> Colours:
    """Choose how an image's samples become RGB."""
    page = pages[0].keyframe
    if has_channels(page, len(pages)):
        count = page.samplesperpixel * len(pages)
        if count in (1, 3):  # others are refused by their names, whatever their depth
            check_depth(path, page)
        channels = channels if len(channels) == count else [Channel()] * count
        chosen = choose_rgb(path, channels)
        return Colours(chosen[:3], alpha=chosen[3] if len(chosen) > 3 else None)
    if len(pages) > 1:
        raise InputError(f"{path}: has {len(pages)} pages of one size; give a file with one")
    return read_colours(path, page)


def _parse_tag_mpp(page: Any) -> tuple[float, float] | None:
    """Parse the µm per pixel along y and x of a page's resolution tags; return None where implausible."""
    # Without the tag the unit is the inch (TIFF 6.0).
    um = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))
    values = _parse_resolution(page, um)
    # A picture's 72 or 96 dots per inch, which say how it is printed, are implausible.
    return values if values is not None and all(map(is_plausible, values)) else None


def _parse_imagej_mpp(tiff: Any, page: Any) -> tuple[float, float] | None:
    """Parse the µm per pixel along y and x that ImageJ calibrated; return None where it did not."""
    unit = (tiff.imagej_metadata or {}).get("unit", "") if tiff.is_imagej else ""
    return _parse_resolution(page, convert_to_um(unit)) if isinstance(unit, str) else None


def _parse_resolution(page: Any, um: float | None) -> tuple[float, float] | None:
    """Parse the µm per pixel along y and x of resolutions that are per ``um`` µm."""
    values = []
    for name in ("YResolution", "XResolution"):
        numerator, denominator = page.tags.valueof(name, (0, 1))
        if not (um and numerator and denominator):
            return None
        values.append(um * denominator / numerator)
    return values[0], values[1]
