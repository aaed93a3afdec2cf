"""OME-Zarr images (0.4 on Zarr v2, 0.5 and 0.6 on Zarr v3), in folders or zipped (.ozx), read by tensorstore.

A chunk is decoded once (``zarr_chunks``), where tensorstore lacks its codec by imagecodecs (``zarr_codecs``).
"""

import json
import math
import os
import posixpath
import re
from pathlib import Path
from typing import Any

import tensorstore as ts

from fseg_jax.errors import InputError, OutputError, first_line
from fseg_jax.files.addresses import RemotePath
from fseg_jax.files.bucket import RETRIES, make_bucket_spec
from fseg_jax.files.futures import wait_for_store
from fseg_jax.files.paths import is_folder
from fseg_jax.files.zarr import make_store_path
from fseg_jax.slides.bounds import Origin
from fseg_jax.slides.channels import Channel, choose_rgb
from fseg_jax.slides.ome_header import parse_header
from fseg_jax.slides.series import FileImage, choose_image, refuse_series
from fseg_jax.slides.tile_pyramid import TilePyramid
from fseg_jax.slides.units import convert_to_um
from fseg_jax.slides.zarr_chunks import StoredArray, ZarrLevel
from fseg_jax.slides.zarr_codecs import (
    Codec,
    CodedArray,
    describe_bare,
    is_read_by_tensorstore,
    parse_codec,
)

_INDEXES = 16 << 20  # bytes that tensorstore keeps: the indexes of shards, beside the last chunks
_MAX_CHUNK = 512 << 20  # bytes of one decoded chunk
_MAX_CHUNKS = 16 << 20  # chunks of a shard, whose index is read whole
_MAX_LEVELS = 64
_MAX_IMAGES = 1000
_SYSTEM_ERROR = re.compile(r'"([^"]*)": [^"]*os_error_code=.(\d+)')  # in an error of tensorstore
_HEADERS = ("zarr.json", ".zattrs")  # of a group, in Zarr v3 and v2


class ZarrPixels(TilePyramid):
    """A multiscale 8-bit image, RGB or grey, of one time and one plane, with its axes in any order."""

    format = "ome-zarr"
    origin: Origin | None = None
    series: int | None = None

    def __init__(self, path: Path, series: int | None = None) -> None:
        """Open an OME-Zarr.

        Args:
            path: Its folder, or a zip archive of it.
            series: Which of its images to read, where bioformats2raw wrote several; None for the largest.

        Raises:
            InputError: It is damaged, or of a kind that is not read.
        """
        self._path = path
        try:
            self._open(series)
        except InputError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno:
                raise InputError(f"{path}: cannot be read ({error.strerror}: {error.filename})") from None
            raise InputError(
                f"{path}: the OME-Zarr is damaged, or of a version that is not known ({first_line(error)})"
            ) from None

    def _open(self, series: int | None) -> None:
        is_remote = isinstance(self._path, RemotePath)
        self._is_zip = self._path.suffix.lower() != ".zarr" if is_remote else not is_folder(self._path)
        self._store = self._wait(ts.KvStore.open(self._make_spec(""), context=ts.Context(RETRIES)))
        attributes, group = self._read_attributes(""), ""
        if attributes is None:
            kind, hint = "folder", "; fseg cohort and fseg fit take folders of slides"
            if self._is_zip:
                kind, hint = "zip archive", ""
            raise InputError(
                f"{self._path}: a {kind} that is no OME-Zarr (it has neither zarr.json nor .zattrs){hint}"
            )
        if "bioformats2raw.layout" in attributes and "multiscales" not in attributes:
            group, attributes = self._choose_image(series)
        else:
            refuse_series(self._path, series)
        if not attributes.get("multiscales"):
            plate = ": it is a plate, whose images are in its folders" if "plate" in attributes else ""
            raise InputError(
                f"{self._path}: the folder is no OME-Zarr image (no multiscales in its metadata){plate}"
            )
        multiscale = attributes["multiscales"][0]
        axes = _list_axes(multiscale)
        names = [axis["name"] for axis in axes]
        if not {"y", "x"} <= set(names):
            raise InputError(
                f"{self._path}: an 8-bit picture, RGB or grey, is required, "
                f"and the OME-Zarr has the axes {', '.join(names)}"
            )
        if len(multiscale["datasets"]) > _MAX_LEVELS:
            raise InputError(
                f"{self._path}: the OME-Zarr is damaged (it names {len(multiscale['datasets'])} levels)"
            )
        described = (attributes.get("omero") or {}).get("channels") or []
        if len(described) not in (0, 1, 3):  # fluorescence is refused by its names, whatever its depth
            choose_rgb(self._path, _parse_channels(attributes, len(described)))
        context = ts.Context({**RETRIES, "cache_pool": {"total_bytes_limit": _INDEXES}})
        arrays = [self._open_level(group, data["path"], names, context) for data in multiscale["datasets"]]
        channels = choose_rgb(self._path, _parse_channels(attributes, arrays[0].array.shape[2]))
        if any(array.array.shape[2] != arrays[0].array.shape[2] for array in arrays):
            raise InputError(f"{self._path}: the OME-Zarr is damaged (its levels differ in their channels)")
        is_local = not isinstance(self._path, RemotePath)
        levels = [ZarrLevel(array, channels, is_local=is_local) for array in arrays]
        super().__init__(dict(enumerate(levels)))
        self.shapes = [level.shape for level in levels]
        if self.shapes != sorted(self.shapes, reverse=True):
            raise InputError(f"{self._path}: the OME-Zarr's levels are not ordered from fine to coarse")
        self.mpp = _parse_mpp(multiscale, axes)

    def _wait(self, future: Any) -> Any:
        """Wait for an answer of tensorstore, and return it.

        Raises:
            InputError: The store at an address does not answer, or does so with an error.
            OSError: The system does not let a file on a disk be read.
            Exception: A file on a disk is damaged.
        """
        if not isinstance(self._path, RemotePath):
            try:
                return future.result()
            except (OSError, ValueError, RuntimeError) as error:
                if (system := _SYSTEM_ERROR.search(str(error))) is None:
                    raise
                raise OSError(int(system[2]), os.strerror(int(system[2])), system[1]) from error
        try:
            return wait_for_store(str(self._path), future)[0]
        except OutputError as error:
            raise InputError(str(error)) from None
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(first_line(error).split(" [")[0].split())
            raise InputError(f"{self._path}: cannot be read ({reason})") from None

    def _make_spec(self, key: str) -> dict[str, Any]:
        """Describe a group or an array in the OME-Zarr as tensorstore wants it, as a ``kvstore``."""
        key = f"{key}/" if key else ""
        is_remote = isinstance(self._path, RemotePath)
        if self._is_zip:
            file = str(self._path) if is_remote else make_store_path(self._path)
            base = make_bucket_spec(file) if is_remote else {"driver": "file", "path": file}
            return {"driver": "zip", "base": base, "path": key}
        if is_remote:
            return make_bucket_spec(f"{self._path}/{key}")
        return {"driver": "file", "path": f"{make_store_path(self._path)}/{key}"}

    def _read_file(self, key: str) -> bytes | None:
        answer = self._wait(self._store.read(key))
        return answer.value if answer.state == "value" else None

    def _read_attributes(self, group: str) -> dict[str, Any] | None:
        """Read the OME metadata of a Zarr group: "ome" in zarr.json (0.5), or all of .zattrs (0.4)."""
        for name in _HEADERS:
            content = self._read_file(posixpath.join(group, name))
            if content is not None:
                values: dict[str, Any] = json.loads(content)
                if name == "zarr.json":
                    values = values.get("attributes", {})
                    if "fseg" in values:
                        raise InputError(f"{self._path}: is what this program made of a slide; give that")
                    values = values.get("ome", values)
                return values
        return None

    def _choose_image(self, series: int | None) -> tuple[str, dict[str, Any]]:
        """Choose one of the images that bioformats2raw wrote; return its group and its metadata."""
        listed = (self._read_attributes("OME") or {}).get("series")
        groups = listed[:_MAX_IMAGES] if listed else [str(i) for i in range(_MAX_IMAGES)]
        header = parse_header((self._read_file("OME/METADATA.ome.xml") or b"").decode("utf-8", "replace"), "")
        found = []
        for number, group in enumerate(groups):
            attributes = self._read_attributes(group)
            if attributes is None:
                if listed:
                    continue
                break
            multiscale = attributes["multiscales"][0]
            axes = _list_axes(multiscale)
            names = [axis["name"] for axis in axes]
            context = ts.Context(RETRIES)
            level = self._open_level(
                group, multiscale["datasets"][0]["path"], names, context, is_checked=False
            )
            described = header.images[number : number + 1] if header is not None else ()
            name = described[0].name if described else multiscale.get("name", "")
            height, width, _ = level.array.shape
            image = FileImage(number, str(name), (height, width), _parse_mpp(multiscale, axes))
            found.append((image, group, attributes))
        if not found:
            raise InputError(f"{self._path}: the OME-Zarr has no image")
        image, group, attributes = found[choose_image(self._path, [image for image, _, _ in found], series)]
        self.series = image.number if len(found) > 1 else None
        return group, attributes

    def _open_level(
        self, group: str, name: str, axes: list[str], context: ts.Context, *, is_checked: bool = True
    ) -> StoredArray:
        """Open one level of an image as an array of axes (y, x, c)."""
        key = posixpath.normpath(posixpath.join(group, name))
        if key.startswith(("..", "/")):
            raise InputError(f"{self._path}: the OME-Zarr names a level outside its folder ({name})")
        array, codec = self._open_array(key, context)
        check_array(f"{self._path}: level {name}", array)
        if len(axes) != array.rank:
            raise InputError(
                f"{self._path}: the OME-Zarr names {len(axes)} axes, and level {name} has {array.rank}"
            )
        sizes = dict(zip(axes, array.shape, strict=True))
        several = {axis: n for axis, n in sizes.items() if axis not in "yxc" and n > 1}
        if several and is_checked:
            listed = ", ".join(f"{axis}: {n}" for axis, n in several.items())
            raise InputError(f"{self._path}: has several planes ({listed}); give an image with one plane")
        if array.dtype != ts.uint8 and is_checked:
            raise InputError(
                f"{self._path}: an 8-bit picture, RGB or grey, is required, "
                f"and the OME-Zarr is {array.dtype.name} with {sizes.get('c', 1)} channel(s)"
            )
        if codec is None:
            return StoredArray(array, axes, self._wait)
        return CodedArray(array, axes, self._wait, codec)

    def _open_array(self, key: str, context: ts.Context) -> tuple[ts.TensorStore, Codec | None]:
        """Open an array; return it, and how its chunks are coded where tensorstore cannot decode them."""
        for name, driver in (("zarr.json", "zarr3"), (".zarray", "zarr")):
            header = self._read_file(f"{key}/{name}")
            if header is None:
                continue
            values = json.loads(header)
            spec = {"driver": driver, "kvstore": self._make_spec(key), "recheck_cached_data": "open"}
            options: dict[str, Any] = {"open": True, "read": True, "context": context}
            if is_read_by_tensorstore(values):
                return self._wait(ts.open(spec, **options)), None
            codec = parse_codec(f"{self._path}: level {key}", values)
            spec["metadata"] = describe_bare(values)
            return self._wait(ts.open(spec, assume_metadata=True, **options)), codec
        raise InputError(f"{self._path}: the OME-Zarr is damaged (it names a level {key} that is not there)")


def _list_axes(multiscale: dict[str, Any]) -> list[dict[str, Any]]:
    """List an image's axes; from 0.6 on they are those of the coordinate system that its levels are in."""
    axes = multiscale.get("axes")
    if axes is None:
        systems = multiscale["coordinateSystems"]
        transforms = multiscale["datasets"][0].get("coordinateTransformations") or [{}]
        output = transforms[0].get("output")
        name = output.get("name") if isinstance(output, dict) else output
        axes = next((system for system in systems if system["name"] == name), systems[0])["axes"]
    return [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]


def _parse_channels(attributes: dict[str, Any], count: int) -> list[Channel]:
    """Parse what an image's "omero" says of its channels."""
    described = (attributes.get("omero") or {}).get("channels") or []
    if len(described) != count:
        return [Channel()] * count
    channels = []
    for channel in described:
        try:
            red, green, blue = bytes.fromhex(str(channel.get("color", "")).lstrip("#")[:6])
        except ValueError:
            channels.append(Channel(str(channel.get("label") or "")))
        else:
            channels.append(Channel(str(channel.get("label") or ""), (red, green, blue)))
    return channels


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


def _parse_mpp(multiscale: dict[str, Any], axes: list[dict[str, Any]]) -> tuple[float, float] | None:
    """Parse the µm per pixel of the finest level along y and x; return None without a scale and a unit."""
    names = [axis["name"] for axis in axes]
    transforms = list(multiscale["datasets"][0].get("coordinateTransformations", ()))
    if "axes" in multiscale:  # from 0.6 on, transformations of the whole are to other coordinate systems
        transforms += multiscale.get("coordinateTransformations", ())
    values = []
    for axis in "yx":
        i = names.index(axis)
        unit, scale = convert_to_um(axes[i].get("unit") or ""), _multiply_scales(transforms, i)
        if unit is None or scale is None:
            return None
        values.append(unit * scale)
    return values[0], values[1]


def _multiply_scales(transforms: list[dict[str, Any]], axis: int) -> float | None:
    """Multiply the scales of transformations along an axis; None without any, or where others change it."""
    product, has_scale = 1.0, False
    for transform in transforms:
        if transform["type"] == "sequence":
            scale = _multiply_scales(transform["transformations"], axis)
        elif transform["type"] == "scale":
            scale = float(transform["scale"][axis])
        elif transform["type"] in ("translation", "identity"):
            continue
        else:
            return None
        if scale is None:
            return None
        product, has_scale = product * scale, True
    return product if has_scale else None
