"""What a TIFF declares against what it holds, looked at before any library reads it.

Libraries differ in what they make of pixels that are not there: white, black, or all memory.
"""

import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fseg_jax.errors import InputError

_log = logging.getLogger(__name__)
# tifffile's remarks are of no use to someone with a slide; what matters becomes an InputError.
logging.getLogger("tifffile").propagate = False
logging.getLogger("tifffile").addHandler(logging.NullHandler())

SEGMENT_LIMIT = 256 << 20  # bytes of one decoded tile or strip


def check_extent(path: Path, page: Any) -> None:
    """Fail where a page's tiles or strips are not all listed, hold too little, or lie past the file's end."""
    keyframe = page.keyframe
    height, width = keyframe.imagelength, keyframe.imagewidth
    if keyframe.is_tiled:
        length, across = keyframe.tilelength, keyframe.tilewidth
        grid = -(-height // length) * -(-width // across)
    else:
        length, across = max(1, min(keyframe.rowsperstrip, height)), width
        grid = -(-height // length)
    planes, samples = keyframe.samplesperpixel, 1
    if keyframe.planarconfig != 2:
        planes, samples = samples, planes
    offsets, counts = (np.asarray(x, np.uint64) for x in (page.dataoffsets, page.databytecounts))
    if min(len(offsets), len(counts)) < grid * planes:
        raise InputError(
            f"{path}: the TIFF is damaged (it declares {height} × {width} pixels, and its list of tiles is "
            "too short for them)"
        )
    written = (offsets > 0) & (counts > 0)
    if keyframe.compression == 1 and keyframe.photometric != 6:
        lengths = np.full(len(counts), length)
        if not keyframe.is_tiled:
            lengths[grid - 1 :: grid] = height - (grid - 1) * length  # the last strip of each plane
        need = lengths * (-(-across * samples * keyframe.bitspersample // 8))
        if (written & (counts < need.astype(np.uint64))).any():
            raise InputError(f"{path}: the TIFF is damaged (it declares more pixels than it holds)")
    size = page.parent.filehandle.size
    if (written & ((offsets > size) | (counts > size) | (offsets + counts > size))).any():
        raise InputError(f"{path}: the TIFF is truncated (pixels lie past the end of the file)")


def check_tiles(path: Path) -> None:
    """Fail where another library would read white, or take all memory: over the tiled pages of a TIFF.

    What tifffile cannot make sense of is left to that library.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            if not tiff.is_ndpi:  # whose offsets are of another kind, and whose levels are strips
                check_directories(path, tiff)
            pages: list[Any] = list(tiff.pages)
            for page in pages:
                if page.is_tiled:
                    check_piece(path, page, (page.tilelength, page.tilewidth), page.samplesperpixel)
                if page.is_tiled or tiff.is_ndpi:
                    check_extent(path, page)
    except InputError:
        raise
    except Exception as error:
        _log.debug("%s: its extent is not checked: %s", path, error)


def check_first_page(path: Path) -> None:
    """Fail where a library that reads a TIFF's first page would read black."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            check_extent(path, tiff.pages[0])
    except InputError:
        raise
    except Exception as error:
        _log.debug("%s: its extent is not checked: %s", path, error)


def check_piece(path: Path, page: Any, piece: tuple[int, int], samples: int) -> None:
    """Fail where a page's tiles or strips are too large to be decoded one by one."""
    if piece[0] * piece[1] * samples * page.dtype.itemsize > SEGMENT_LIMIT:
        raise InputError(
            f"{path}: its pixels are compressed in pieces of {piece[0]} × {piece[1]}, "
            "too large to decode one by one; convert it to a tiled TIFF"
        )


def check_directories(path: Path, tiff: Any) -> None:
    """Fail where a page is said to lie past the end of the file."""
    if _next_directory(tiff) >= tiff.filehandle.size:
        raise InputError(f"{path}: the TIFF is truncated (a directory lies past the end of the file)")


def _next_directory(tiff: Any) -> int:
    """Where the directory after the last readable one should be; 0 at a proper end."""
    layout, file = tiff.tiff, tiff.filehandle
    file.seek(tiff.pages[len(tiff.pages) - 1].offset)
    count = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))[0]
    file.seek(count * layout.tagsize, 1)
    return struct.unpack(layout.offsetformat, file.read(layout.offsetsize))[0]
