"""Check what a TIFF declares against what it holds, before any library reads it.

Libraries treat missing pixels differently: as white, as black, or by taking all memory.
"""

import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fseg_jax.errors import InputError

# tifffile's log messages do not help users; what matters becomes an InputError.
logging.getLogger("tifffile").propagate = False
logging.getLogger("tifffile").addHandler(logging.NullHandler())

SEGMENT_LIMIT = 256 << 20  # bytes of one decoded tile or strip


def check_extent(path: Path, page: Any) -> None:
    """Check that a page's tiles or strips are all listed, large enough, and inside the file.

    Raises:
        InputError: The TIFF is damaged or truncated.
    """
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


def check_tiles(path: Path, tiff: Any) -> None:
    """Check the tiled pages of a TIFF that OpenSlide will read: it would read white, or take all memory.

    Args:
        path: The file, for error messages.
        tiff: tifffile's open file.

    Raises:
        InputError: The TIFF is damaged or truncated.
    """
    if not tiff.is_ndpi:  # NDPI has offsets of another kind, and levels in strips
        check_directories(path, tiff)
    pages: list[Any] = list(tiff.pages)
    for page in pages:
        if page.is_tiled:
            check_piece(path, page, (page.tilelength, page.tilewidth), page.samplesperpixel)
        if page.is_tiled or tiff.is_ndpi:
            check_extent(path, page)


def check_piece(path: Path, page: Any, piece: tuple[int, int], samples: int) -> None:
    """Raise ``InputError`` where a page's tiles or strips are too large to be decoded one by one."""
    if piece[0] * piece[1] * samples * page.dtype.itemsize > SEGMENT_LIMIT:
        raise InputError(
            f"{path}: its pixels are compressed in pieces of {piece[0]} × {piece[1]}, "
            "too large to decode one by one; convert it to a tiled TIFF"
        )


def check_directories(path: Path, tiff: Any) -> None:
    """Raise ``InputError`` where a page's directory lies past the end of the file."""
    if _next_directory(tiff) >= tiff.filehandle.size:
        raise InputError(f"{path}: the TIFF is truncated (a directory lies past the end of the file)")


def _next_directory(tiff: Any) -> int:
    """Return where the directory after the last readable one should be; 0 if there is none."""
    layout, file = tiff.tiff, tiff.filehandle
    file.seek(tiff.pages[len(tiff.pages) - 1].offset)
    count = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))[0]
    file.seek(count * layout.tagsize, 1)
    offset: int = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))[0]
    return offset
