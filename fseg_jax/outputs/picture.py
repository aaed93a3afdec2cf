"""What the picture of a slide shows, whatever its clusters are called, and how the PNG carries that along.

The PNG holds all that it was drawn from in a chunk of its own, so that it can be drawn again in other names
and colours when neither the slide nor its labels are at hand. Other programs skip that chunk.
"""

import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt, UInt8
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.files.images import load_image
from fseg_jax.outputs.outlines import Outline

CHUNK = b"fsEg"  # ancillary, private, safe to copy
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_QUALITY = 92  # of JPEG
_DAMAGE = (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, InputError)


class Picture(NamedTuple):
    """What is drawn of a slide and its k clusters.

    Attributes:
        title: The picture's title.
        image: The whole slide.
        mpp: µm per pixel of the image.
        labels: Labels of the whole slide, at any resolution; 0 is background.
        areas_mm2: (k,), areas of the clusters.
        step_mm2: The least area that the method tells apart, which the legend says where it shows.
        border_shares: (k,), the share of each that lies at the border of tissue; None: not known.
        tiles: Pictures of the places most typical of clusters, (n, side, side, 3), by the cluster's number.
        field: µm of the side of a tile.
        outlines: What is outlined over the slide: its tissue, artefacts.
    """

    title: str
    image: UInt8[np.ndarray, "h w 3"]
    mpp: float
    labels: UInt[np.ndarray, "label_rows label_columns"]
    areas_mm2: Sequence[float]
    step_mm2: float
    border_shares: Sequence[float] | None = None
    tiles: Mapping[int, UInt8[np.ndarray, "n side side 3"]] = {}
    field: float = 0.0
    outlines: Sequence[Outline] = ()


def encode_jpeg(pixels: UInt8[np.ndarray, "h w 3"], quality: int = _QUALITY) -> bytes:
    """Encode pixels as JPEG, with colours as sharp as lightness."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def decode_jpeg(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a JPEG."""
    return np.asarray(load_image(io.BytesIO(data), "a JPEG", formats=("JPEG",)).convert("RGB"))


def arrange_tiles(tiles: Mapping[int, UInt8[np.ndarray, "n side side 3"]]) -> UInt8[np.ndarray, "h w 3"]:
    """Arrange tiles in a sheet: a line a cluster, from its left; the rest is white."""
    side = next(iter(tiles.values())).shape[1]
    sheet = np.full((len(tiles) * side, max(map(len, tiles.values())) * side, 3), 255, np.uint8)
    for row, of_cluster in enumerate(tiles.values()):
        line = np.concatenate(list(of_cluster), axis=1)
        sheet[row * side : (row + 1) * side, : line.shape[1]] = line
    return sheet


def cut_tiles(
    sheet: UInt8[np.ndarray, "h w 3"], counts: Mapping[int, int]
) -> dict[int, UInt8[np.ndarray, "n side side 3"]]:
    """Cut a sheet of ``arrange_tiles`` into tiles; ``counts`` are the numbers of each cluster's."""
    side = len(sheet) // len(counts)
    lines = sheet.reshape(len(counts), side, -1, side, 3).swapaxes(1, 2)
    return {cluster: line[:n] for (cluster, n), line in zip(counts.items(), lines, strict=True)}


def encode_picture(picture: Picture) -> bytes:
    """Encode all that a picture is drawn from; photographs become JPEG."""
    facts = {
        "title": picture.title,
        "mpp": picture.mpp,
        "areas_mm2": list(picture.areas_mm2),
        "step_mm2": picture.step_mm2,
        "border_shares": None if picture.border_shares is None else list(picture.border_shares),
        "tiles": [[cluster, len(tiles)] for cluster, tiles in picture.tiles.items()],
        "field": picture.field,
        "outlines": [
            [each.name, each.mask.shape, each.mpp, each.colour, each.hatch] for each in picture.outlines
        ],
    }
    arrays = {
        "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
        "image": np.frombuffer(encode_jpeg(picture.image), np.uint8),
        "labels": picture.labels,
    }
    for i, outline in enumerate(picture.outlines):
        arrays[f"outline{i}"] = np.packbits(outline.mask)
    if picture.tiles:
        arrays["tiles"] = np.frombuffer(encode_jpeg(arrange_tiles(picture.tiles)), np.uint8)
    out = io.BytesIO()
    np.savez_compressed(out, allow_pickle=False, **arrays)
    return out.getvalue()


def decode_picture(data: bytes) -> Picture:
    """Decode what ``encode_picture`` made.

    Raises:
        ValueError: It is damaged.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            tiles = {}
            if facts["tiles"]:
                sheet = decode_jpeg(arrays["tiles"].tobytes())
                tiles = cut_tiles(sheet, {int(cluster): int(count) for cluster, count in facts["tiles"]})
            outlines = [
                Outline(name, _unpack_mask(arrays[f"outline{i}"], shape), *rest)
                for i, (name, shape, *rest) in enumerate(facts["outlines"])
            ]
            return Picture(
                title=facts["title"],
                image=decode_jpeg(arrays["image"].tobytes()),
                mpp=facts["mpp"],
                labels=arrays["labels"],
                areas_mm2=facts["areas_mm2"],
                step_mm2=facts["step_mm2"],
                border_shares=facts["border_shares"],
                tiles=tiles,
                field=facts["field"],
                outlines=outlines,
            )
    except _DAMAGE:
        raise ValueError("what the picture was drawn from is damaged") from None


def _unpack_mask(bits: UInt8[np.ndarray, " n"], shape: list[int]) -> Bool[np.ndarray, "h w"]:
    return np.unpackbits(bits, count=math.prod(shape)).reshape(shape).astype(bool)


def read_picture(png: bytes) -> Picture:
    """Read what a PNG was drawn from.

    Raises:
        ValueError: The file does not hold it, or it is damaged.
    """
    data = find_chunk(png)
    if data is None:
        raise ValueError("it does not hold what it was drawn from")
    return decode_picture(data)


def find_chunk(png: bytes) -> bytes | None:
    """Find what ``encode_picture`` made in the bytes of a PNG; None where there is none."""
    if not png.startswith(_SIGNATURE):
        return None
    at = len(_SIGNATURE)
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        if png[at + 4 : at + 8] == CHUNK:
            return png[at + 8 : at + 8 + length]
        at += 12 + length
    return None
