"""The slide and its label pyramid as tiles of 512 pixels, rendered on request.

Zoom z cuts a square over the slide into 2^z × 2^z tiles; the largest zoom shows the slide's own pixels. Zooms
coarser than the slide's thumbnail are cut from it, which is fast for a slide of any size. If the slide's file
is missing, all zooms are cut from the thumbnail, and ``Picture.notice`` says so.
"""

import math
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.files.addresses import RemotePath, locate
from fseg_jax.outputs.labels import LabelPyramid
from fseg_jax.pipeline.slide_facts import SlideFacts
from fseg_jax.slides.identity import identify
from fseg_jax.slides.reader import Slide, open_slide, read_thumbnail

TILE = 512  # pixels of a rendered tile, drawn at half that size to be sharp on screens of high density
CANVAS = (238, 239, 243)  # colour around the slide
_THUMBNAIL_SIDE = 1600
_JPEG_QUALITY = 88


class Picture:
    """A slide to look at. Rendering is safe from several threads.

    Attributes:
        slide: The opened slide, or None if only its thumbnail is there.
        height: Level-0 pixels.
        width: Level-0 pixels.
        mpp: Micrometres per level-0 pixel.
        notice: A line about a missing slide, or "".
        max_zoom: The zoom of the finest tiles.
        span: Side of the square that zoom 0 shows in one tile, µm.
    """

    def __init__(
        self,
        slide: Slide | None,
        shape: tuple[int, int],
        mpp: float,
        thumbnail: UInt8[np.ndarray, "h w 3"],
    ) -> None:
        """Lay out the tiles of a slide.

        Args:
            slide: The opened slide, or None to show the thumbnail alone.
            shape: Height and width of the slide, level-0 pixels.
            mpp: Micrometres per level-0 pixel.
            thumbnail: The whole slide, small.
        """
        self.slide = slide
        self.height, self.width = shape
        self.mpp = mpp
        self.notice = ""
        self._thumbnail = Image.fromarray(thumbnail)
        self._thumbnail_mpp = mpp * self.width / thumbnail.shape[1]
        finest_mpp = mpp if slide else self._thumbnail_mpp
        tiles = max(self.size_um) / (TILE * finest_mpp)
        self.max_zoom = max(0, math.ceil(math.log2(tiles)))
        self.span = TILE * finest_mpp * 2**self.max_zoom

    @property
    def size_um(self) -> tuple[float, float]:
        """The slide's (height, width) in µm."""
        return self.height * self.mpp, self.width * self.mpp

    def render_tile(self, z: int, x: int, y: int) -> bytes:
        """Render the tile in column x and row y of zoom z as JPEG."""
        mpp = self.span / 2**z / TILE
        return _encode_jpeg(self.read_box(y * TILE, x * TILE, TILE, TILE, mpp))

    def read_box(self, y: int, x: int, height: int, width: int, mpp: float) -> UInt8[np.ndarray, "h w 3"]:
        """Read a box in pixels of ``mpp`` µm; the outside of the slide has the canvas's colour."""
        out = np.full((height, width, 3), CANVAS, np.uint8)
        full_height, full_width = (max(1, round(um / mpp)) for um in self.size_um)
        top, left = max(y, 0), max(x, 0)
        bottom, right = min(y + height, full_height), min(x + width, full_width)
        if bottom <= top or right <= left:
            return out
        if self.slide and mpp < self._thumbnail_mpp:
            inside = self.slide.read(top, left, bottom - top, right - left, mpp)
        else:
            scale = mpp / self._thumbnail_mpp
            w, h = self._thumbnail.size
            source = (left * scale, top * scale, min(right * scale, w), min(bottom * scale, h))
            size = (right - left, bottom - top)
            inside = np.asarray(self._thumbnail.resize(size, Image.Resampling.BILINEAR, box=source))
        out[top - y : bottom - y, left - x : right - x] = inside
        return out

    def render_patch(self, y: float, x: float, side: float, pixels: int) -> bytes:
        """Render a square around a point as JPEG.

        Args:
            y: Centre, µm from the slide's top.
            x: Centre, µm from the slide's left.
            side: Side of the square, µm.
            pixels: Width of the picture; less where that would enlarge the slide's pixels.
        """
        mpp = side / pixels
        if self.slide:
            mpp = max(mpp, self.slide.mpp)
        n = round(side / mpp)
        image = self.read_box(round((y - side / 2) / mpp), round((x - side / 2) / mpp), n, n, mpp)
        return _encode_jpeg(image)

    def close(self) -> None:
        """Close the slide."""
        if self.slide:
            self.slide.close()


def open_picture(
    facts: SlideFacts, folder: Path, slides: Path | None, thumbnail: UInt8[np.ndarray, "h w 3"] | None
) -> Picture:
    """Open the slide of a record, or its thumbnail if the slide's file is missing.

    Args:
        facts: The slide, as recorded.
        folder: The folder of outputs, searched if the slide is not at its recorded path.
        slides: The one folder to search instead.
        thumbnail: The whole slide, small, if stored.

    Raises:
        InputError: The slide is missing and has no thumbnail, or is not in ``slides``.
    """
    recorded = locate(facts.path)
    name, shape = recorded.name, (facts.height, facts.width)
    candidates = [slides / name] if slides else [recorded, folder / name, folder.parent / name]
    problem = _explain_missing(slides, name) if slides else f"{name} is not where it was ({recorded.parent})"
    for path in candidates:
        try:
            if not isinstance(path, RemotePath) and not path.exists():
                continue
            slide = open_slide(path, facts.mpp, frame=facts.frame, series=facts.series)
        except (InputError, OSError) as error:
            problem = str(error) if isinstance(error, InputError) else f"{path}: {error.strerror}"
            continue
        if facts.identity not in (None, identify(path)):
            problem = f"{path} is another slide than the one of the outputs"
        elif (slide.height, slide.width) == shape:
            if thumbnail is None:
                thumbnail = read_thumbnail(slide, _THUMBNAIL_SIDE)[0]
            return Picture(slide, shape, facts.mpp, thumbnail)
        else:
            size = f"{slide.width} × {slide.height}"
            problem = f"{path} has {size} pixels, the slide of the outputs {shape[1]} × {shape[0]}"
        slide.close()
    if slides:
        raise InputError(f"--slides: {problem}")
    if thumbnail is None:
        raise InputError(f"{problem}; say where it is now with --slides FOLDER")
    picture = Picture(None, shape, facts.mpp, thumbnail)
    picture.notice = f"{problem}; this is its thumbnail. Say where it is now with --slides FOLDER"
    return picture


def _explain_missing(slides: Path, name: str) -> str:
    """Explain why the folder given as ``--slides`` has no slide of a name."""
    try:
        if slides.is_dir() and slides.name != name:
            return f"{slides} holds no {name}"
        exists = slides.exists()
    except OSError as error:
        return f"{slides}: {error.strerror}"
    return f"{slides}: give the folder it is in, {slides.parent}" if exists else f"{slides}: no such folder"


class LabelLayer:
    """A label pyramid as transparent tiles, laid out as those of the picture.

    Attributes:
        labels: The label pyramid.
    """

    def __init__(self, labels: LabelPyramid, span: float) -> None:
        """Lay out the tiles of a label pyramid.

        Args:
            labels: The label pyramid.
            span: ``Picture.span``.

        Raises:
            InputError: The resolutions of its levels are not powers of two apart.
        """
        if not np.allclose(labels.mpp, labels.mpp[0] * 2.0 ** np.arange(len(labels.mpp))):
            raise InputError(f"{labels.path}: the resolutions of its levels contradict each other")
        self.labels = labels
        self._span = span

    def render_tile(self, z: int, x: int, y: int, hidden: frozenset[int]) -> bytes:
        """Render the tile in column x and row y of zoom z as PNG, without the hidden labels."""
        tile_mpp = self._span / 2**z / TILE
        level = max((i for i, mpp in enumerate(self.labels.mpp) if mpp <= tile_mpp * 1.01), default=0)
        shape, scale = self.labels.levels[level].shape, tile_mpp / self.labels.mpp[level]
        (top, rows), (left, columns) = (
            _map_pixels(i * TILE, scale, size) for i, size in zip((y, x), shape, strict=True)
        )
        if not len(rows) or not len(columns):
            return _encode_blank()
        box = slice(top, top + int(rows[-1]) + 1), slice(left, left + int(columns[-1]) + 1)
        part = self.labels.read(level, *box)
        if not part.any():
            return _encode_blank()
        table = np.zeros((1 << 8 * part.dtype.itemsize, 4), np.uint8)  # values that are no label: transparent
        table[1 : 1 + len(self.labels.colours)] = add_alpha(self.labels.colours)
        table[list(hidden), 3] = 0
        out = np.zeros((TILE, TILE, 4), np.uint8)
        out[: len(rows), : len(columns)] = table[part[rows[:, None], columns]]
        return _encode_png(out)

    def compute_shares(self) -> Float[np.ndarray, " k"]:
        """Compute the fraction of the tissue in each cluster."""
        pixels = np.array(self.labels.provenance["pixels"][1:], float)
        return np.asarray(pixels / max(pixels.sum(), 1))


def _map_pixels(start: int, scale: float, size: int) -> tuple[int, Int[np.ndarray, " m"]]:
    """Map a tile's pixels along one axis to the pixels of a level under their centres.

    Args:
        start: The tile's first pixel.
        scale: Level pixels per tile pixel.
        size: Level pixels.

    Returns:
        The first level pixel, and the offset from it for each tile pixel that is on the level.
    """
    index = np.floor((np.arange(start, start + TILE) + 0.5) * scale).astype(np.int64)
    index = index[index < size]
    return (int(index[0]), index - index[0]) if len(index) else (0, index)


def add_alpha(rgb: UInt8[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "n 4"]:
    """Make colours opaque RGBA."""
    return np.concatenate([rgb, np.full((len(rgb), 1), 255, np.uint8)], 1)


def _encode_blank() -> bytes:
    return _encode_png(np.zeros((1, 1, 4), np.uint8))


def _encode_png(rgba: UInt8[np.ndarray, "h w 4"]) -> bytes:
    file = BytesIO()
    Image.fromarray(rgba).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _encode_jpeg(rgb: UInt8[np.ndarray, "h w 3"]) -> bytes:
    file = BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
