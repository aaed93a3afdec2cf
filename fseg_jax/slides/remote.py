"""Slides at an address, in a bucket or behind http(s): what a box touches is all that is read of them.

TIFF, OME-TIFF and Aperio's .svs are read by tifffile, OME-Zarr by tensorstore. OpenSlide reads disks only.
"""

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.addresses import RemotePath
from fseg_jax.files.remote import RemoteFile
from fseg_jax.files.tiff_files import open_slide_tiff
from fseg_jax.files.tiff_pictures import TIFF_MAGIC
from fseg_jax.slides.aperio import AperioPixels
from fseg_jax.slides.bounds import Frame
from fseg_jax.slides.ome_zarr import ZarrPixels
from fseg_jax.slides.pixels import ZIP_MAGIC, Pixels
from fseg_jax.slides.series import refuse_series
from fseg_jax.slides.tiff_frame import read_tiff_in_frame

_ZARR_SUFFIXES = (".zarr", ".ozx")
# tifffile's names for scanners' TIFFs of which the pixels do not lie as a plain pyramid's do.
_SCANNERS = {"ndpi": "Hamamatsu", "scn": "Leica", "bif": "Ventana", "philips": "Philips"}
_READ = "from an address TIFF, OME-TIFF, Aperio's .svs and OME-Zarr are read; download it"


def open_remote(path: RemotePath, series: int | None, frame: Frame) -> Pixels:
    """Open a slide at an address.

    Args:
        path: The address.
        series: Which of its images to read, as the file counts them from 0; None for the largest.
        frame: What coordinates count from, where only a part of a plain TIFF was written.

    Raises:
        InputError: It is not there, cannot be read, is damaged, or of a format that is read from disks only.
    """
    if path.name.lower().endswith(_ZARR_SUFFIXES):
        return ZarrPixels(path, series)
    file = RemoteFile(path)
    magic = file.read_at(0, 4)
    if not magic:
        raise InputError(f"{path}: the file is empty")
    if magic == ZIP_MAGIC:
        return ZarrPixels(path, series)
    if magic not in TIFF_MAGIC:
        raise InputError(f"{path}: is no TIFF: {_READ}")
    try:
        tiff = open_slide_tiff(file)
        scanner = next((name for flag, name in _SCANNERS.items() if getattr(tiff, f"is_{flag}")), None)
        if scanner is not None:
            raise InputError(f"{path}: is a slide of {scanner}: {_READ}")
        if tiff.is_svs:
            refuse_series(path, series)
            return AperioPixels(path, tiff)
        return read_tiff_in_frame(path, tiff, series, frame)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: the TIFF cannot be read ({first_line(error)})") from None
