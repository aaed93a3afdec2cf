"""The image of a slide as OME-Zarr 0.5, with the slide's label images inside: what viewers open at once.

::

    NAME.ome.zarr/           the image: 0, 1, … uint8 (3, h, w)
      labels/                which label images there are
        fseg/                clusters
        artefacts/           ink, folds and what is out of focus

It has as many levels as the labels, which the specification asks for, and is coarser than they are: it takes
at most three times their bytes. Its values are rounded to 32 steps, which Zstandard packs in half the bytes.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fseg_jax.files.futures import wait_for_writes
from fseg_jax.files.zarr import create_array, make_folder_spec, open_array, write_group
from fseg_jax.outputs.form import OutputForm
from fseg_jax.outputs.labels import LABELS, locate_labels, open_labels, place_level

_MOST_SIDE = 1 << 14  # pixels of an image that is read
_CHUNK = 256  # pixels of a chunk's side
_SHARE = 3  # of the labels' bytes
_ALWAYS = 1 << 16  # bytes that an image may take, however few the labels do
_STEPS = 31  # between black and white
_LEAST_STEP = 1.05  # from one resolution that is tried to the next
_LEVEL = 12  # of Zstandard
# Where an image would have to be packed in less than a fourth of its bytes, it is packed four times as coarse
# first, in a sixteenth of the time: that shows how fine it can be.
_GUESSED, _GUESS = 4, 4


class SlideImage:
    """An OME-Zarr of a slide that is being written: first its label images, then the image round them.

    Attributes:
        clusters: Where the label image of the clusters belongs.
        source: Where the image lies, from its label images; None: there will be none, and the clusters'
            labels are the outermost group.
    """

    def __init__(self, root: Path, form: OutputForm) -> None:
        self._root = root
        self.clusters = locate_labels(root) if form.image else root
        self.source = "../../" if form.image else None

    def locate(self, name: str) -> Path:
        """Locate where a label image beside the clusters' belongs."""
        return self._root / "labels" / name

    def close(
        self, image: UInt8[np.ndarray, "h w 3"], mpp: float, *, slide_mpp: float, beside: tuple[str, ...] = ()
    ) -> None:
        """Write the image, where there is to be one, and say which label images there are.

        Args:
            image: A picture of the whole slide.
            mpp: µm per pixel of the picture.
            slide_mpp: µm per pixel of the slide.
            beside: Names of the label images beside the clusters'.

        Raises:
            OutputError: They cannot be written.
        """
        names = [*([] if self.source is None else [LABELS]), *beside]
        if names:
            write_group(self._root / "labels", {"ome": {"version": "0.5", "labels": names}})
        if self.source is not None:
            _write_image(self._root, self.clusters, image, mpp, slide_mpp)


def _write_image(
    root: Path, labels: Path, image: UInt8[np.ndarray, "h w 3"], mpp: float, slide_mpp: float
) -> None:
    """Write an image as fine as its bytes allow; the group's metadata come last."""
    pyramid = open_labels(labels)
    most = max(_ALWAYS, _SHARE * _count_bytes(labels))
    level_mpp = max(mpp, pyramid.mpp[0])
    if image.size * (mpp / level_mpp) ** 2 > _GUESSED * most:
        paths = _write_levels(root, _shrink(image, _GUESS * level_mpp / mpp), len(pyramid.levels))
        level_mpp *= max(1.0, _GUESS * math.sqrt(_remove(paths) / most))
    while True:
        finest = _shrink(image, level_mpp / mpp)
        paths = _write_levels(root, finest, len(pyramid.levels))
        size = sum(map(_count_bytes, paths))
        if size <= most or max(finest.shape[:2]) == 1:
            break
        level_mpp *= max(_LEAST_STEP, math.sqrt(_remove(paths) / most))
    name = root.name.removesuffix(".ome.zarr")
    described = _describe(name, level_mpp, slide_mpp, len(paths))
    write_group(root, {"ome": described, "fseg": {"labels": f"labels/{LABELS}"}}, ascii_only=True)


def _shrink(image: UInt8[np.ndarray, "h w 3"], factor: float) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Average boxes of ``factor`` × ``factor`` pixels; those at the edges may reach over it."""
    height, width = (max(1, math.ceil(side / factor - 1e-6)) for side in image.shape[:2])
    over = math.ceil(factor)
    padded = np.pad(image, ((0, over), (0, over), (0, 0)), mode="edge")
    box = (0.0, 0.0, width * factor, height * factor)
    return np.asarray(Image.fromarray(padded).resize((width, height), Image.Resampling.BOX, box))


def _write_levels(root: Path, image: UInt8[np.ndarray, "h w 3"], count: int) -> list[Path]:
    """Write the levels of an image, and return their folders."""
    paths, finest = [], image.astype(np.float32)
    for level in range(count):
        if level:
            finest = _halve(finest)
        rounded = np.rint(np.rint(finest * (_STEPS / 255)) * (255 / _STEPS)).astype(np.uint8)
        path = root / str(level)
        shape = (3, *finest.shape[:2])
        store = create_array(
            path, shape, np.uint8, (3, _CHUNK, _CHUNK), dimension_names=("c", "y", "x"), level=_LEVEL
        )
        wait_for_writes(root, store.write(rounded.transpose(2, 0, 1)))
        paths.append(path)
    return paths


def _halve(image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h2 w2 3"]:
    """Average each 2 × 2 block; an odd last row or column is left out.

    Viv draws the coarsest level under the others, scaled by powers of two: it may not reach over them.
    """
    height, width = (max(1, side // 2) for side in image.shape[:2])
    image = np.pad(image, ((0, image.shape[0] == 1), (0, image.shape[1] == 1), (0, 0)), mode="edge")
    blocks = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    return np.asarray(blocks.mean((1, 3)))


def _remove(folders: list[Path]) -> int:
    """Remove folders, and return how many bytes they held."""
    size = sum(map(_count_bytes, folders))
    for folder in folders:
        shutil.rmtree(folder)
    return size


def _count_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _describe(name: str, mpp: float, slide_mpp: float, levels: int) -> dict[str, Any]:
    """Describe an image of red, green and blue as OME-Zarr does."""
    axes: list[dict[str, Any]] = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    colours = (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": name,
                "axes": axes,
                "datasets": [
                    {
                        "path": str(level),
                        "coordinateTransformations": place_level(mpp * 2**level, slide_mpp, leading=1),
                    }
                    for level in range(levels)
                ],
                "type": "mean",
            }
        ],
        "omero": {
            "name": name,
            "channels": [
                {"label": label, "color": colour, "active": True, "window": window}
                for label, colour in colours
            ],
            "rdefs": {"model": "color"},
        },
    }


class ReadImage(NamedTuple):
    """The image of a slide's OME-Zarr.

    Attributes:
        image: The whole slide.
        mpp: µm per pixel of it.
    """

    image: UInt8[np.ndarray, "h w 3"]
    mpp: float


def read_slide_image(root: Path) -> ReadImage | None:
    """Read the image round a slide's labels; None where the labels stand alone, or it is damaged."""
    try:
        attributes = json.loads((root / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        dataset = attributes["ome"]["multiscales"][0]["datasets"][0]
        store = open_array(make_folder_spec(root / "0")).result()
        if store.rank != 3 or store.shape[0] != 3 or max(store.shape) > _MOST_SIDE:
            return None
        image = np.asarray(store.read().result(), np.uint8).transpose(1, 2, 0)
        return ReadImage(image, float(dataset["coordinateTransformations"][0]["scale"][1]))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError):
        return None
