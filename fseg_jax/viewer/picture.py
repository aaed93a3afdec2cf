"""The slide and its label layers as tiles of 512 pixels, rendered when somebody looks at them.

Zoom z cuts a square over the slide into 2^z × 2^z tiles; the finest zoom shows the slide's own pixels. What
is coarser than the slide's thumbnail comes from that, at once, however large the slide is. Where the file
is not to be found the thumbnail is all there is, and ``notice`` says so.
"""

import math
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.outputs.labels import LabelPyramid
from fseg_jax.pipeline.record import SlideFacts
from fseg_jax.slides.identity import identify
from fseg_jax.slides.reader import Slide, open_slide, read_thumbnail

TILE = 512  # pixels of a rendered tile; it is laid out as half of that, so that it is sharp on any screen
CANVAS = (238, 239, 243)  # what lies around the slide
_THUMBNAIL_SIDE = 1600
_QUALITY = 88


class Picture:
    """A slide to look at, of ``width × height`` level-0 pixels of ``mpp`` µm; ``notice`` is "" or one line.

    Coordinates are µm from the slide's top left corner. Rendering is safe from several threads.
    """

    def __init__(self, slide: Slide | None, shape: tuple[int, int], mpp: float, stored: np.ndarray) -> None:
        self.slide = slide
        self.height, self.width = shape
        self.mpp = mpp
        self.notice = ""
        self._thumbnail = Image.fromarray(stored)
        self._thumbnail_mpp = mpp * self.width / stored.shape[1]
        finest = mpp if slide else self._thumbnail_mpp
        side = max(self.um) / (TILE * finest)
        self.deepest = max(0, math.ceil(math.log2(side)))
        self.span = TILE * finest * 2**self.deepest  # µm of the square that zoom 0 shows in one tile

    @property
    def um(self) -> tuple[float, float]:
        """The slide's (height, width) in µm."""
        return self.height * self.mpp, self.width * self.mpp

    def tile(self, z: int, x: int, y: int) -> bytes:
        """The tile in column x, row y of zoom z, as JPEG."""
        step = self.span / 2**z / TILE
        return _jpeg(self.box(y * TILE, x * TILE, TILE, TILE, step))

    def box(self, y: int, x: int, height: int, width: int, mpp: float) -> np.ndarray:
        """A box in pixels of ``mpp`` µm: uint8 (height, width, 3); what is past the slide has the canvas's
        colour.
        """
        out = np.full((height, width, 3), CANVAS, np.uint8)
        full_height, full_width = (max(1, round(um / mpp)) for um in self.um)
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

    def patch(self, y: float, x: float, side: float, pixels: int) -> bytes:
        """A square of ``side`` µm around a point in µm, ``pixels`` wide, as JPEG."""
        step = side / pixels
        if self.slide:
            step = max(step, self.slide.mpp)
        n = round(side / step)
        image = self.box(round((y - side / 2) / step), round((x - side / 2) / step), n, n, step)
        return _jpeg(image)

    def close(self) -> None:
        if self.slide:
            self.slide.close()


def open_picture(facts: SlideFacts, folder: Path, slides: Path | None, stored: np.ndarray | None) -> Picture:
    """Open the slide that a record is of, or its thumbnail where the slide is not found.

    Args:
        facts: Which slide it is.
        folder: The folder of outputs, where the slide is looked for if it is not where it was.
        slides: Where to look for it instead; nothing else will do then.
        stored: A thumbnail of the whole slide, uint8 (h, w, 3), where there is one.

    Raises:
        InputError: The slide is not found and there is no read_thumbnail, or ``slides`` does not hold it.
    """
    was = Path(facts.path)
    size = (facts.height, facts.width)
    places = [slides / was.name] if slides else [was, folder / was.name, folder.parent / was.name]
    problem = _problem_of(slides, was.name) if slides else f"{was.name} is not where it was ({was.parent})"
    for place in places:
        try:
            if not place.exists():
                continue
            slide = open_slide(place, facts.mpp)
        except (InputError, OSError) as error:
            problem = str(error) if isinstance(error, InputError) else f"{place}: {error.strerror}"
            continue
        if facts.identity not in (None, identify(place)):
            problem = f"{place} is another slide than the one of the outputs"
        elif (slide.height, slide.width) == size:
            small = stored if stored is not None else read_thumbnail(slide, _THUMBNAIL_SIDE)[0]
            return Picture(slide, size, facts.mpp, small)
        else:
            found = f"{slide.width} × {slide.height}"
            problem = f"{place} has {found} pixels, the slide of the outputs {size[1]} × {size[0]}"
        slide.close()
    if slides:
        raise InputError(f"--slides: {problem}")
    if stored is None:
        raise InputError(f"{problem}; say where it is now with --slides FOLDER")
    picture = Picture(None, size, facts.mpp, stored)
    picture.notice = f"{problem}; this is its thumbnail. Say where it is now with --slides FOLDER"
    return picture


def _problem_of(slides: Path, name: str) -> str:
    """What is wrong where a folder, said to be that of the slides, holds none of a name."""
    try:
        if slides.is_dir() and slides.name != name:
            return f"{slides} holds no {name}"
        there = slides.exists()
    except OSError as error:
        return f"{slides}: {error.strerror}"
    return f"{slides}: give the folder it is in, {slides.parent}" if there else f"{slides}: no such folder"


class LabelLayer:
    """A label pyramid as transparent tiles on the same zooms as a picture's."""

    def __init__(self, labels: LabelPyramid, span: float) -> None:
        if not np.allclose(labels.mpp, labels.mpp[0] * 2.0 ** np.arange(len(labels.mpp))):
            raise InputError(f"{labels.path}: the resolutions of its levels contradict each other")
        self.labels = labels
        self._span = span

    def tile(self, z: int, x: int, y: int, hidden: frozenset[int]) -> bytes:
        """The tile in column x, row y of zoom z, without the clusters that are hidden, as PNG."""
        step = self._span / 2**z / TILE
        mpps = self.labels.mpp
        level = max((i for i, mpp in enumerate(mpps) if mpp <= step * 1.01), default=0)
        shape, scale = self.labels.levels[level].shape, step / mpps[level]
        (top, rows), (left, columns) = (
            _nearest(i * TILE, scale, size) for i, size in zip((y, x), shape, strict=True)
        )
        if not len(rows) or not len(columns):
            return _blank()
        box = slice(top, top + int(rows[-1]) + 1), slice(left, left + int(columns[-1]) + 1)
        part = self.labels.read(level, *box)
        if not part.any():
            return _blank()
        table = np.zeros((1 << 8 * part.dtype.itemsize, 4), np.uint8)  # what is no label is not seen
        table[1 : 1 + len(self.labels.colours)] = _opaque(self.labels.colours)
        table[list(hidden), 3] = 0
        out = np.zeros((TILE, TILE, 4), np.uint8)
        out[: len(rows), : len(columns)] = table[part[rows[:, None], columns]]
        return _png(out)

    def shares(self) -> np.ndarray:
        """What share of the tissue each cluster covers, (k,)."""
        pixels = np.array(self.labels.provenance["pixels"][1:], float)
        return pixels / max(pixels.sum(), 1)


def _nearest(start: int, scale: float, size: int) -> tuple[int, np.ndarray]:
    """The level pixels under the centres of a tile's pixels that lie on it: the first, and offsets to it."""
    index = np.floor((np.arange(start, start + TILE) + 0.5) * scale).astype(np.int64)
    index = index[index < size]
    return (int(index[0]), index - index[0]) if len(index) else (0, index)


def _opaque(colours: np.ndarray) -> np.ndarray:
    return np.concatenate([colours, np.full((len(colours), 1), 255, np.uint8)], 1)


def _blank() -> bytes:
    return _png(np.zeros((1, 1, 4), np.uint8))


def _png(rgba: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(rgba).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _jpeg(rgb: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
