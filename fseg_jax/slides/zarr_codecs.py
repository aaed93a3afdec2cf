"""Zarr arrays whose chunks imagecodecs decodes: LZ4, LZMA, JPEG …, which tensorstore lacks, and Blosc.

A chunk is decoded into an array of the size that the Zarr's metadata state, which is checked before: what the
chunk states of itself takes no memory. tensorstore believes what a chunk of Blosc states, up to 2 GB.
"""

import base64
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tensorstore as ts
from jaxtyping import UInt8

from fseg_jax.errors import InputError
from fseg_jax.slides.zarr_chunks import Area, StoredArray, Wait

# What tensorstore has, of Zarr v2 and of Zarr v3.
_COMPRESSORS = ("blosc", "bz2", "gzip", "zlib", "zstd")
_CODECS = ("blosc", "bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zstd")
# What imagecodecs decodes to bytes, and to a picture.
_OF_BYTES = (*_COMPRESSORS, "lz4", "lzma")
_OF_PICTURES = ("jpeg", "jpeg2k", "jpegls", "jpegxl", "jpegxr", "png", "webp")
_RAW_LZMA = 3  # numcodecs' number for LZMA without a header


class Codec(NamedTuple):
    """How the chunks of an array are coded.

    Attributes:
        name: imagecodecs' name of what was done last; empty where nothing was.
        configuration: What the metadata say of it.
        deltas: How often differences of samples were taken before.
        order: The axes in the order in which a chunk holds them.
        separator: What stands between the numbers in the name of a chunk.
        prefix: What its name begins with.
    """

    name: str
    configuration: dict[str, Any]
    deltas: int
    order: list[int]
    separator: str
    prefix: str

    def name_chunk(self, place: Sequence[int]) -> str:
        """Name the chunk at a place of the grid of chunks."""
        return self.prefix + self.separator.join(map(str, place))


def is_read_by_tensorstore(header: dict[str, Any]) -> bool:
    """Return whether tensorstore decodes an array, by its ``.zarray`` or ``zarr.json``."""
    if header.get("zarr_format") == 3:
        codecs = header.get("codecs") or []
        is_plain_blosc = [codec.get("name") for codec in codecs] == ["bytes", "blosc"]
        is_known = all(codec.get("name") in _CODECS for codec in _list_codecs(codecs))
        return is_known and not (is_plain_blosc and _is_of_imagecodecs(codecs[1].get("configuration") or {}))
    compressor = header.get("compressor") or {"id": ""}
    if header.get("filters") or compressor.get("id") not in ("", *_COMPRESSORS):
        return False
    return not (compressor["id"] == "blosc" and _is_of_imagecodecs(compressor))


def _is_of_imagecodecs(blosc: dict[str, Any]) -> bool:
    """Return whether imagecodecs has what Blosc compresses with, by its configuration."""
    return blosc.get("cname") != "snappy"


class CodedArray(StoredArray):
    """An array whose chunks imagecodecs decodes, in the thread that waits for them."""

    def __init__(self, array: ts.TensorStore, axes: Sequence[str], wait: Wait, codec: Codec) -> None:
        """Take an array, opened as if its chunks were not coded."""
        super().__init__(array, axes, wait)
        self._codec = codec
        self._source: Any = array
        self._chunk = [int(side or 1) for side in array.chunk_layout.read_chunk.shape or ()]

    def begin(self, area: Area) -> Callable[[], UInt8[np.ndarray, "height width channels"]]:
        """Begin to read the bytes of an area's chunks; return a function that decodes them."""
        sides = {"y": area[0], "x": area[1], "c": slice(0, self.array.shape[2])}
        box = [sides.get(axis, slice(0, 1)) for axis in self.axes]
        places = list(
            itertools.product(
                *(
                    range(part.start // side, -(-part.stop // side))
                    for part, side in zip(box, self._chunk, strict=True)
                )
            )
        )
        reads = [self._source.kvstore.read(self._codec.name_chunk(place)) for place in places]

        def finish() -> UInt8[np.ndarray, "height width channels"]:
            out = np.empty([part.stop - part.start for part in box], np.uint8)
            for place, read in zip(places, reads, strict=True):
                corner = [at * side for at, side in zip(place, self._chunk, strict=True)]
                begin = [max(at, part.start) for at, part in zip(corner, box, strict=True)]
                end = [
                    min(at + side, part.stop) for at, side, part in zip(corner, self._chunk, box, strict=True)
                ]
                inside = tuple(
                    slice(b - part.start, e - part.start) for b, e, part in zip(begin, end, box, strict=True)
                )
                of_chunk = tuple(slice(b - at, e - at) for b, e, at in zip(begin, end, corner, strict=True))
                out[inside] = self._decode(self.wait(read))[of_chunk]
            order = [self.axes.index(axis) for axis in "yxc" if axis in self.axes]
            rest = [i for i, axis in enumerate(self.axes) if axis not in "yxc"]
            ordered = out.transpose([*order, *rest])
            return ordered.reshape(*ordered.shape[:2], -1)

        return finish

    def _decode(self, answer: Any) -> np.ndarray:
        """Decode a chunk; one that was never written is what ``fill_value`` says."""
        if answer.state != "value":
            fill = self._source.fill_value
            return np.broadcast_to(np.uint8(0) if fill is None else fill, self._chunk)
        stored = np.empty([self._chunk[axis] for axis in self._codec.order], np.uint8)
        decode_chunk(self._codec, answer.value, stored)
        return stored.transpose(np.argsort(self._codec.order))


def describe_bare(header: dict[str, Any]) -> dict[str, Any]:
    """Describe an array as if its chunks were not coded: as tensorstore opens it, which lacks the codec."""
    bare: dict[str, Any] = {"codecs": [{"name": "bytes"}]}
    return header | (bare if header.get("zarr_format") == 3 else {"compressor": None, "filters": None})


def parse_codec(name: str, header: dict[str, Any]) -> Codec:
    """Parse how the chunks of an array are coded, by its ``.zarray`` or ``zarr.json``.

    Args:
        name: What it is called in messages.
        header: Its metadata.

    Raises:
        InputError: A codec is not read.
    """
    order = list(range(len(header["shape"])))
    if header.get("zarr_format") == 3:
        listed = [codec for codec in header["codecs"] if codec["name"] != "bytes"]
        for codec in [codec for codec in listed if codec["name"] == "transpose"]:
            order = [order[axis] for axis in codec["configuration"]["order"]]
            listed.remove(codec)
        codecs = [
            (codec["name"].removeprefix("numcodecs."), codec.get("configuration", {})) for codec in listed
        ]
    else:
        order = order[::-1] if header.get("order") == "F" else order
        stated = [*(header.get("filters") or []), header.get("compressor")]
        codecs = [(codec["id"], codec) for codec in stated if codec is not None]
    deltas = [codec for codec, configuration in codecs if _is_delta(codec, configuration)]
    others = [entry for entry in codecs if not _is_delta(*entry)]
    if len(others) > 1 or (others and codecs[-1] != others[0]):
        raise InputError(f"{name} is compressed in a way that is not read ({', '.join(dict(codecs))})")
    codec, configuration = others[0] if others else ("", {})
    own = codec.removeprefix("imagecodecs_")
    if not (own in ("", *_OF_BYTES) or (own in _OF_PICTURES and own != codec)) or (
        own == "lzma" and configuration.get("format") == _RAW_LZMA
    ):
        raise InputError(f"{name} is compressed in a way that is not read ({codec})")
    if codec == "lz4":
        configuration = {**configuration, "header": True}
    return Codec(own, configuration, len(deltas), order, *_parse_names(header))


def _parse_names(header: dict[str, Any]) -> tuple[str, str]:
    """Parse how chunks are called: what stands between numbers, and before them."""
    if header.get("zarr_format") != 3:
        return header.get("dimension_separator", "."), ""
    encoding = header["chunk_key_encoding"]
    default, prefix = ("/", "c") if encoding["name"] == "default" else (".", "")
    separator = (encoding.get("configuration") or {}).get("separator", default)
    return separator, prefix and prefix + separator


def _is_delta(name: str, configuration: dict[str, Any]) -> bool:
    if name != "delta":
        return False
    types = [configuration.get(key) or "|u1" for key in ("dtype", "astype")]
    return all(np.dtype(value) == np.uint8 for value in types)


def decode_chunk(codec: Codec, data: bytes, out: np.ndarray) -> None:
    """Decode a chunk into an array of its shape, as it is stored.

    Raises:
        Exception: The chunk is damaged.
    """
    flat = out.reshape(-1)
    configuration = codec.configuration
    if codec.name in _OF_PICTURES:
        picture = out
        while picture.ndim > 2 and picture.shape[0] == 1:
            picture = picture[0]
        picture = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
        if codec.name == "jpeg":
            tables, header = (base64.b64decode(configuration.get(key) or "") for key in ("tables", "header"))
            imagecodecs.jpeg8_decode(
                header + data + (b"\xff\xd9" if header else b""),
                tables=tables or None,
                colorspace=configuration.get("colorspace_jpeg"),
                outcolorspace=configuration.get("colorspace_data"),
                out=picture,
            )
        else:
            getattr(imagecodecs, f"{codec.name}_decode")(data, out=picture)
    elif codec.name:
        options = {"header": bool(configuration.get("header"))} if codec.name == "lz4" else {}
        decoded = getattr(imagecodecs, f"{codec.name}_decode")(data, out=flat, **options)
        if len(decoded) != len(flat):
            raise OSError(f"a chunk has {len(decoded)} bytes, and should have {len(flat)}")
    else:
        flat[...] = np.frombuffer(data, np.uint8)
    for _ in range(codec.deltas):
        np.add.accumulate(flat, dtype=np.uint8, out=flat)


def _list_codecs(codecs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """List codecs, and those within shards."""
    within = [codec["configuration"]["codecs"] for codec in codecs if codec.get("name") == "sharding_indexed"]
    return codecs + [codec for inner in within for codec in _list_codecs(inner)]
