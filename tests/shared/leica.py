"""Leica's .scn: scans on a larger canvas, the glass, to which OpenSlide gives bounds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

MPP = 0.5
_DOWN = 4  # from a scan's first level to its second
_SETTINGS = (
    "<scanSettings><objectiveSettings><objective>{}</objective></objectiveSettings><illuminationSettings>"
    "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>"
)
_VIEW = '<view sizeX="{}" sizeY="{}" offsetX="{}" offsetY="{}" spacingZ="0"/>'
_NAMESPACE = "http://www.leica-microsystems.com/scn/2010/10/01"


def write_leica(
    path: Path, canvas: tuple[int, int], scans: Sequence[tuple[tuple[int, int], np.ndarray]]
) -> None:
    """Write scans of two levels, without loss, of 0.5 µm per pixel.

    Args:
        path: The file.
        canvas: The (height, width) of the glass in pixels.
        scans: The (y, x) of each scan's corner on it, and its pixels; sides are multiples of 4.
    """
    nm = int(MPP * 1000)
    size = (canvas[1] * nm, canvas[0] * nm)
    macro = np.full((96, 128, 3), 240, np.uint8)
    images = [(macro, (0, 0), size, "0.6", [0])]
    pages = [(macro, 1.0)]
    for (y, x), pixels in scans:
        height, width = pixels.shape[:2]
        small = pixels.reshape(height // _DOWN, _DOWN, width // _DOWN, _DOWN, 3).mean((1, 3)).round()
        images.append(
            (pixels, (x * nm, y * nm), (width * nm, height * nm), "20", [len(pages), len(pages) + 1])
        )
        pages += [(pixels, 1e4 / MPP), (small.astype(np.uint8), 1e4 / MPP / _DOWN)]
    parts = []
    for number, (pixels, offset, extent, objective, directories) in enumerate(images):
        sides = [(pixels.shape[1] // _DOWN**r, pixels.shape[0] // _DOWN**r) for r in range(len(directories))]
        dimensions = "".join(
            f'<dimension sizeX="{w}" sizeY="{h}" r="{r}" ifd="{directory}"/>'
            for r, ((w, h), directory) in enumerate(zip(sides, directories, strict=True))
        )
        parts.append(
            f'<image name="i{number}" uuid="urn:uuid:{number}">'
            "<creationDate>2020-01-01T00:00:00Z</creationDate>"
            f'<device model="Leica SCN400;Leica SCN" version="1"/>'
            f'<pixels sizeX="{sides[0][0]}" sizeY="{sides[0][1]}">{dimensions}</pixels>'
            f"{_VIEW.format(*extent, *offset)}{_SETTINGS.format(objective)}</image>"
        )
    description = (
        f'<?xml version="1.0"?><scn xmlns="{_NAMESPACE}" uuid="urn:uuid:s">'
        f'<collection name="c" uuid="urn:uuid:c" sizeX="{size[0]}" sizeY="{size[1]}"><barcode>QQ==</barcode>'
        f"{''.join(parts)}</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, (pixels, resolution) in enumerate(pages):
            tiff.write(
                pixels,
                photometric="rgb",
                tile=(128, 128),
                compression="adobe_deflate",
                metadata=None,
                description=description if number == 0 else None,
                resolution=(resolution, resolution),
                resolutionunit="CENTIMETER",
                software=False,
            )
