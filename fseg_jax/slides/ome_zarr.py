"""OME-Zarr images (0.4 on Zarr v2, 0.5 on Zarr v3), read by tensorstore."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import UInt8
from PIL import Image

from fseg_jax.errors import InputError, first_line
from fseg_jax.slides.bounds import Origin
from fseg_jax.slides.pixels import flatten

_CACHE = 128 << 20  # bytes of decoded chunks
_MAX_CHUNK = 512 << 20  # bytes of one decoded chunk
_MAX_CHUNKS = 16 << 20  # chunks of a shard, whose index is read whole
_MAX_LEVELS = 64
_UNIT_UM = {
    "meter": 1e6, "centimeter": 1e4, "millimeter": 1e3, "micrometer": 1.0, "nanometer": 1e-3,
    "angstrom": 1e-4, "inch": 25400.0,
}  # fmt: skip


class ZarrPixels:
    """A multiscale 8-bit RGB image in a folder, of one time and one plane, with its axes in any order."""

    format = "ome-zarr"
    origin: Origin | None = None

    def __init__(self, path: Path) -> None:
        try:
            self._open(path)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path}: the OME-Zarr is damaged: {first_line(error)}") from None

    def _open(self, path: Path) -> None:
        attributes = _read_attributes(path)
        if "bioformats2raw.layout" in attributes and "multiscales" not in attributes:
            path = path / "0"
            attributes = _read_attributes(path)
        if not attributes.get("multiscales"):
            raise InputError(f"{path}: the folder is no OME-Zarr image (no multiscales in its metadata)")
        multiscale = attributes["multiscales"][0]
        axes = [axis["name"] if isinstance(axis, dict) else axis for axis in multiscale["axes"]]
        if not {"y", "x", "c"} <= set(axes):
            raise InputError(
                f"{path}: 8-bit RGB is required, and the OME-Zarr has the axes {', '.join(axes)}"
            )
        if len(multiscale["datasets"]) > _MAX_LEVELS:
            raise InputError(
                f"{path}: the OME-Zarr is damaged (it names {len(multiscale['datasets'])} levels)"
            )
        context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE}})
        self._levels = [_open_level(path, data["path"], axes, context) for data in multiscale["datasets"]]
        self._samples = self._levels[0].shape[2]
        self.shapes = [(int(level.shape[0]), int(level.shape[1])) for level in self._levels]
        if self.shapes != sorted(self.shapes, reverse=True):
            raise InputError(f"{path}: the OME-Zarr's levels are not ordered from fine to coarse")
        self.mpp = _parse_mpp(multiscale, axes)

    def read(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Decode a box of a level; transparent pixels become white."""
        out = np.ascontiguousarray(self._levels[level][y : y + height, x : x + width].read().result())
        return flatten(Image.fromarray(out)) if self._samples == 4 else out

    def close(self) -> None:
        """Release the arrays."""
        self._levels = []


def _read_attributes(path: Path) -> dict[str, Any]:
    """Read the OME metadata of a Zarr group: "ome" in zarr.json (0.5), or all of .zattrs (0.4)."""
    for name in ("zarr.json", ".zattrs"):
        file = path / name
        if file.is_file():
            content: dict[str, Any] = json.loads(file.read_text("utf-8"))
            if name == "zarr.json":
                content = content.get("attributes", {})
                content = content.get("ome", content)
            return content
    raise InputError(
        f"{path}: a folder that is no OME-Zarr (it has neither zarr.json nor .zattrs); "
        "fseg cohort and fseg fit take folders of slides"
    )


def _open_level(root: Path, name: str, axes: list[str], context: ts.Context) -> ts.TensorStore:
    """Open one level as an array of axes (y, x, c)."""
    folder = (root / name).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise InputError(f"{root}: the OME-Zarr names a level outside its folder ({name})")
    spec = {
        "driver": "zarr3" if (folder / "zarr.json").is_file() else "zarr",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "recheck_cached_data": "open",
    }
    array = ts.open(spec, open=True, read=True, context=context).result()
    check_array(f"{root}: level {name}", array)
    if len(axes) != array.rank:
        raise InputError(f"{root}: the OME-Zarr names {len(axes)} axes, and level {name} has {array.rank}")
    sizes = dict(zip(axes, array.shape, strict=True))
    several = {axis: n for axis, n in sizes.items() if axis not in "yxc" and n > 1}
    if several:
        raise InputError(f"{root}: has several planes ({several}); give an image with one plane")
    if array.dtype != ts.uint8 or sizes["c"] not in (3, 4):
        raise InputError(
            f"{root}: 8-bit RGB is required, "
            f"and the OME-Zarr is {array.dtype.name} with {sizes['c']} channel(s)"
        )
    for i in reversed([i for i, axis in enumerate(axes) if axis not in "yxc"]):
        array = array[(slice(None),) * i + (0,)]
    order = [axis for axis in axes if axis in "yxc"]
    return array.transpose([order.index("y"), order.index("x"), order.index("c")])


def check_array(name: str, array: Any) -> None:
    """Check that the chunks and shards that an array's header states are small enough to be decoded.

    A chunk is decoded whole, and where memory lacks for it the system ends the process without an error.

    Raises:
        InputError: The array is empty, or its chunks or shards are too large.
    """
    if min(array.shape, default=0) < 1:
        raise InputError(f"{name}: its array is empty: {' × '.join(map(str, array.shape))}")
    chunk, shard = array.chunk_layout.read_chunk.shape, array.chunk_layout.write_chunk.shape
    size = math.prod(chunk) * array.dtype.numpy_dtype.itemsize
    if size > _MAX_CHUNK:
        raise InputError(
            f"{name}: its chunks of {' × '.join(map(str, chunk))} are too large to decode one by one; "
            f"write it again with chunks of up to {_MAX_CHUNK >> 20} MB"
        )
    if math.prod(-(-s // c) for s, c in zip(shard, chunk, strict=True)) > _MAX_CHUNKS:
        raise InputError(f"{name}: its shards hold too many chunks; write it again with smaller shards")


def _parse_mpp(multiscale: dict[str, Any], axes: list[str]) -> tuple[float, float] | None:
    """Parse the µm per pixel of the finest level along y and x; return None without a scale and a unit."""
    values = []
    for axis in "yx":
        i = axes.index(axis)
        axis_entry = multiscale["axes"][i]
        unit = _UNIT_UM.get(axis_entry.get("unit", "")) if isinstance(axis_entry, dict) else None
        if unit is None:
            return None
        value, has_scale = unit, False
        for entry in (multiscale["datasets"][0], multiscale):
            for transform in entry.get("coordinateTransformations", ()):
                if transform["type"] == "scale":
                    value, has_scale = value * float(transform["scale"][i]), True
        if not has_scale:
            return None
        values.append(value)
    return values[0], values[1]
