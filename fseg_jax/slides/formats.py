"""The choice of a reader for a slide file, by what is in it."""

import logging
from pathlib import Path
from typing import Any

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.addresses import RemotePath
from fseg_jax.files.extent import check_tiles
from fseg_jax.files.paths import is_folder, is_there
from fseg_jax.files.tiff_files import open_slide_tiff
from fseg_jax.files.tiff_pictures import (
    TIFF_MAGIC,
    check_pages,
    has_channels,
    list_images,
    read_colours,
    read_orientation,
)
from fseg_jax.slides.bounds import Frame
from fseg_jax.slides.dicom import open_dicom
from fseg_jax.slides.dicom_series import find_series, is_other_object
from fseg_jax.slides.image import ImagePixels
from fseg_jax.slides.mirax import check_description
from fseg_jax.slides.ome_zarr import ZarrPixels
from fseg_jax.slides.openslide import OpenSlidePixels
from fseg_jax.slides.pixels import ZIP_MAGIC, Pixels
from fseg_jax.slides.remote import open_remote
from fseg_jax.slides.series import refuse_series
from fseg_jax.slides.tiff_frame import read_tiff_in_frame

_log = logging.getLogger(__name__)

OME_TIFF_SUFFIXES = (".ome.tif", ".ome.tiff", ".ome.tf2", ".ome.tf8", ".ome.btf")
# Of scanners' formats that are TIFFs: what OpenSlide does not recognise under such a name is not the format.
_SCANNER_SUFFIXES = (".svs", ".svslide", ".ndpi", ".scn", ".bif")
_PLAIN = "generic-tiff"  # OpenSlide's name for a TIFF of no scanner


def open_pixels(path: Path, series: int | None = None, frame: Frame = "bounds") -> Pixels:
    """Open a slide with the reader of its format.

    DICOM is read by OpenSlide or wsidicom, other folders and zip archives as OME-Zarr by tensorstore,
    OME-TIFFs by tifffile, all that OpenSlide recognises by OpenSlide, other TIFFs by tifffile, and ordinary
    images by Pillow.

    Args:
        path: The file or folder, or an address.
        series: Which of its images to read, as the file counts them from 0; None for the largest.
        frame: What coordinates count from, where OpenSlide states bounds.

    Raises:
        InputError: No reader takes the file, or it is damaged.
    """
    if isinstance(path, RemotePath):
        return open_remote(path, series, frame)
    if scan := find_series(path):
        refuse_series(path, series)
        return open_dicom(path, scan, frame)
    if is_folder(path):
        return ZarrPixels(path, series)
    if not is_there(path):
        raise InputError(f"{path}: no such file")
    if is_other_object(path):
        raise InputError(f"{path}: a DICOM file that is no slide, such as an annotation")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not magic:
        raise InputError(f"{path}: the file is empty")
    if magic in TIFF_MAGIC:
        return _open_tiff(path, series, frame)
    if magic == ZIP_MAGIC:
        return ZarrPixels(path, series)
    refuse_series(path, series)
    if path.suffix.lower() == ".mrxs":
        check_description(path)
    return OpenSlidePixels(path, frame) if OpenSlidePixels.detect(path) else ImagePixels(path)


def _open_tiff(path: Path, series: int | None, frame: Frame) -> Pixels:
    """Open a TIFF with OpenSlide, where it reads all that is in it, or else with tifffile."""
    if path.suffix.lower() == ".vsi":
        raise InputError(
            f"{path}: a .vsi of Olympus holds a preview alone, and the slide's pixels are in .ets files, "
            "which are not read; convert it to OME-TIFF, with QuPath or bfconvert"
        )
    vendor = OpenSlidePixels.detect(path)
    is_named_otherwise = not path.name.lower().endswith(_SCANNER_SUFFIXES)
    tiff, problem = None, ""
    try:
        tiff = open_slide_tiff(path)
    except Exception as error:
        problem = first_line(error)
    try:
        if vendor is not None and (tiff is None or _suits_openslide(path, tiff, vendor, series)):
            try:
                return OpenSlidePixels(path, frame, tiff)
            except InputError:
                if not is_named_otherwise:
                    raise
        elif vendor is None and not (is_named_otherwise or (tiff is not None and tiff.is_ome)):
            raise InputError(
                f"{path}: OpenSlide does not recognise it as a {path.suffix} slide: it is damaged or "
                "truncated, or something else; rename it to .tif if it is a plain TIFF"
            )
        if tiff is None:
            raise InputError(f"{path}: the TIFF cannot be read ({problem})")
        return read_tiff_in_frame(path, tiff, series, frame)
    except BaseException:
        if tiff is not None:
            tiff.close()
        raise


def _suits_openslide(path: Path, tiff: Any, vendor: str, series: int | None) -> bool:
    """Return whether OpenSlide reads a TIFF that it recognises as what it is.

    Raises:
        InputError: The TIFF is damaged, or of a kind that is not read.
    """
    try:
        if tiff.is_ome:
            return False
        check_tiles(path, tiff)
        if vendor == _PLAIN:
            return series is None and _is_plain_pyramid(path, tiff)
        refuse_series(path, series)
        _check_scan(path, tiff)
    except InputError:
        raise
    except Exception as error:  # what tifffile cannot parse is left to OpenSlide
        _log.debug("%s: is not checked: %s", path, error)
    return True


def _is_plain_pyramid(path: Path, tiff: Any) -> bool:
    """Return whether a TIFF of no scanner is one upright pyramid without SubIFDs, finest page first.

    Raises:
        InputError: It is of a kind that is not read.
    """
    first = tiff.pages[0]
    if first.subifds or read_orientation(first) != 1:
        return False
    if any(page.is_mask for page in tiff.pages):  # OpenSlide takes a smaller mask for a level
        return False
    images = list_images(tiff)
    sizes = [image.keyframe.imagelength * image.keyframe.imagewidth for image in images]
    if len(images) > 1 and (sizes[0] < max(sizes) or 2 * max(sizes[1:]) >= sizes[0]):
        return False
    check_pages(path, images[0])
    if len(images[0].pages) > 1 or has_channels(first):
        return False
    read_colours(path, first)
    # OpenSlide takes any fourth sample for opacity, and reads no planes of JPEG.
    return first.planarconfig == 1 and first.samplesperpixel in (1, 3)


def _check_scan(path: Path, tiff: Any) -> None:
    """Raise ``InputError`` where the pages of a scanner's TIFF are of a kind that OpenSlide misreads."""
    for page in tiff.pages[:1] if tiff.is_ndpi else [page for page in tiff.pages if page.is_tiled]:
        read_colours(path, page)
        if (orientation := read_orientation(page)) != 1:
            raise InputError(
                f"{path}: its pixels are stored turned (Orientation {orientation}), which OpenSlide does not "
                "read; convert it to OME-TIFF"
            )
