"""The choice of a reader for a slide file."""

from pathlib import Path

from fseg_jax.errors import InputError
from fseg_jax.files.extent import check_tiles
from fseg_jax.files.paths import is_folder, is_there
from fseg_jax.slides.image import ImagePixels
from fseg_jax.slides.mirax import check_counts
from fseg_jax.slides.ome_zarr import ZarrPixels
from fseg_jax.slides.openslide import OpenSlidePixels
from fseg_jax.slides.pixels import TIFF_MAGIC, Pixels
from fseg_jax.slides.tiff import TiffPixels

OME_TIFF_SUFFIXES = (".ome.tif", ".ome.tiff", ".ome.tf2", ".ome.tf8", ".ome.btf")
_TIFF_SUFFIXES = (".tif", ".tiff", ".tf2", ".tf8", ".btf")


def open_pixels(path: Path) -> Pixels:
    """Open a slide with the reader of its format.

    Folders are read as OME-Zarr by tensorstore, OME-TIFFs by tifffile, all that OpenSlide recognises by
    OpenSlide, other TIFFs by tifffile, and ordinary images by Pillow.

    Raises:
        InputError: No reader takes the file, or it is damaged.
    """
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
    is_tiff = magic in TIFF_MAGIC
    name = path.name.lower()
    if name.endswith(OME_TIFF_SUFFIXES):
        return TiffPixels(path)
    if path.suffix.lower() == ".mrxs":
        check_counts(path)
    if OpenSlidePixels.is_readable(path):
        if is_tiff:
            check_tiles(path)
        try:
            return OpenSlidePixels(path)
        except InputError:
            if not (is_tiff and name.endswith(_TIFF_SUFFIXES)):
                raise
    # A TIFF with a scanner's suffix, such as .svs, that OpenSlide does not recognise is damaged: what is left
    # of it must not be read as a plain TIFF.
    if is_tiff and name.endswith(_TIFF_SUFFIXES):
        return TiffPixels(path)
    return ImagePixels(path)
