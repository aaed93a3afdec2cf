"""MIRAX slides (.mrxs): camera images in a grid, of which some were never taken."""

import io
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

MPP = 0.5
_LEVELS = 3
_NAME = "0123456789ABCDEF0123456789ABCDEF"
_VERSION = b"01.02"


def write_mirax(
    path: Path,
    grid: tuple[int, int],
    images: Mapping[tuple[int, int], np.ndarray],
    *,
    overlap: int = 0,
) -> None:
    """Write a slide of three levels, without loss, of 0.5 µm per pixel.

    Args:
        path: The ``.mrxs``; the rest goes to the folder of its name.
        grid: The (rows, columns) of camera images that the canvas has room for.
        images: Those that were taken, squares of one size, by row and column.
        overlap: Pixels by which neighbours overlap. The stage goes wrong by one, every other row and column.
    """
    side = len(next(iter(images.values())))
    step = side - overlap
    folder = path.with_suffix("")
    folder.mkdir()
    Image.new("RGB", (64, 48)).save(path, "JPEG")  # a preview
    data = io.BytesIO(b"data" + _NAME.encode())
    data.seek(0, io.SEEK_END)
    records: list[list[tuple[int, int, int]]] = []
    for level in range(_LEVELS):
        concat = 2**level
        tiles: dict[tuple[int, int], np.ndarray] = {}
        for (row, column), image in images.items():
            corner = (row // concat * concat, column // concat * concat)
            tile = tiles.setdefault(corner, np.zeros((side, side, 3), np.uint8))
            small = image.reshape(side // concat, concat, side // concat, concat, 3).mean((1, 3)).round()
            y, x = ((at - begin) * side // concat for at, begin in zip((row, column), corner, strict=True))
            tile[y : y + len(small), x : x + len(small)] = small
        records.append([])
        for (row, column), tile in sorted(tiles.items()):
            begin = data.tell()
            Image.fromarray(tile).save(data, "PNG")
            records[-1].append((row * grid[1] + column, begin, data.tell() - begin))
    begin = data.tell()
    for row in range(grid[0]):
        for column in range(grid[1]):
            off = (row % 2, column % 2) if overlap else (0, 0)
            data.write(struct.pack("<Bii", 0, column * step + off[0], row * step + off[1]))
    positions = (begin, data.tell() - begin)
    (folder / "Data0000.dat").write_bytes(data.getvalue())
    (folder / "Index.dat").write_bytes(_write_index(records, positions))
    (folder / "Slidedat.ini").write_text(_describe(grid, side, overlap))


def _write_index(levels: list[list[tuple[int, int, int]]], positions: tuple[int, int]) -> bytes:
    """Write where the tiles of each level lie, and the table of the images' positions: two lists of pages."""
    tables = len(_VERSION) + len(_NAME) + 8
    begin = tables + 4 * (len(levels) + 1)
    pointers, pages = [], b""
    contents = [
        (len(level), b"".join(struct.pack("<4i", *record, 0) for record in level)) for level in levels
    ]
    contents.append((1, struct.pack("<5i", 0, 0, *positions, 0)))
    for count, content in contents:
        pointers.append(begin + len(pages))
        pages += struct.pack("<4i", 0, pointers[-1] + 8, count, 0) + content
    roots = struct.pack("<2i", tables, tables + 4 * len(levels))
    return _VERSION + _NAME.encode() + roots + struct.pack(f"<{len(pointers)}i", *pointers) + pages


def _describe(grid: tuple[int, int], side: int, overlap: int) -> str:
    lines = ["[GENERAL]", f"SLIDE_ID = {_NAME}", f"IMAGENUMBER_X = {grid[1]}", f"IMAGENUMBER_Y = {grid[0]}"]
    lines += ["OBJECTIVE_MAGNIFICATION = 20", "CURRENT_SLIDE_VERSION = 01.02"]
    lines += ["[HIERARCHICAL]", "HIER_COUNT = 1", "NONHIER_COUNT = 1", "INDEXFILE = Index.dat"]
    lines += ["HIER_0_NAME = Slide zoom level", f"HIER_0_COUNT = {_LEVELS}"]
    lines += [f"HIER_0_VAL_{level}_SECTION = LEVEL_{level}" for level in range(_LEVELS)]
    lines += ["NONHIER_0_NAME = VIMSLIDE_POSITION_BUFFER", "NONHIER_0_COUNT = 1", "NONHIER_0_VAL_0 = default"]
    lines += ["[DATAFILE]", "FILE_COUNT = 1", "FILE_0 = Data0000.dat"]
    for level in range(_LEVELS):
        lines += [f"[LEVEL_{level}]", f"IMAGE_CONCAT_FACTOR = {int(level > 0)}"]
        lines += [f"OVERLAP_{axis} = {overlap}" for axis in "XY"]
        lines += [f"DIGITIZER_{length} = {side}" for length in ("WIDTH", "HEIGHT")]
        lines += [f"MICROMETER_PER_PIXEL_{axis} = {MPP * 2**level}" for axis in "XY"]
        lines += ["IMAGE_FORMAT = PNG", "IMAGE_FILL_COLOR_BGR = 16777215"]
    return "\n".join(lines) + "\n"
