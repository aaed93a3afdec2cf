"""Damage to files: bytes anywhere, and values at the places that a format gives meaning to."""

import csv
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

_DEEP = "deep"  # stands for what cannot be a value of Python's
_VALUES: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 0,
    lambda: 1,
    lambda: 7,
    lambda: 0.5,
    lambda: 2**31,
    lambda: 2**63,
    lambda: 10**30,
    lambda: 1e308,
    lambda: 1e-320,
    lambda: float("nan"),
    lambda: float("-inf"),
    lambda: "",
    lambda: "a",
    lambda: "µ\u202e\0\n",
    lambda: "\ud800",
    lambda: "../../x",
    lambda: "9" * 5000,
    lambda: "x" * 5000,
    lambda: [],
    lambda: {},
    lambda: [1, 2],
    lambda: [[[]]],
    lambda: ["x"] * 300,
    lambda: {"a": {"a": 1}},
    lambda: f"@@{_DEEP}@@",
)
_NUMBERS = (0, 1, 2, 3, 7, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**64 - 1)


def damage(random: Random, name: str, data: bytes) -> bytes:
    """A file's bytes with something wrong: most often where its format, by its name, is sensitive."""
    by_format = {
        ".json": _json,
        ".geojson": _json,
        ".yaml": _yaml,
        ".csv": _csv,
        ".safetensors": _tensors,
        ".tif": _tiff,
        ".tiff": _tiff,
        ".svs": _tiff,
        ".png": _png,
    }.get(Path(name).suffix)
    if by_format is None or random.random() < 0.3:
        return _bytes(random, data)
    return by_format(random, data)


def _bytes(random: Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, max(len(out) - 1, 0))
        kind = random.randint(0, 6)
        if kind == 0 and out:
            out[at] ^= 1 << random.randint(0, 7)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            del out[at : at + random.randint(1, 64)]
        elif kind == 3:
            out[at:at] = random.randbytes(random.randint(1, 16))
        elif kind == 4:
            size = random.choice((1, 2, 4, 8))
            number = random.choice(_NUMBERS) % 256**size
            out[at : at + size] = number.to_bytes(size, random.choice(("little", "big")))
        elif kind == 5:
            out[at:at] = out[at : at + random.randint(1, 256)]
        else:
            out[at : at + 32] = bytes(len(out[at : at + 32]))
    return bytes(out)


def _json(random: Random, data: bytes) -> bytes:
    try:
        content = json.loads(data)
    except ValueError:
        return _bytes(random, data)
    for _ in range(random.randint(1, 2)):
        content = _changed(random, content)
    return _text(content)


def _text(content: Any) -> bytes:
    deep = "[" * 20_000 + "]" * 20_000
    return json.dumps(content).replace(f'"@@{_DEEP}@@"', deep).encode()


def _changed(random: Random, content: Any) -> Any:
    """The content with one value, key or length changed, somewhere; also within text that is JSON itself."""
    if isinstance(content, str) and content[:1] in "{[" and content[:1] and random.random() < 0.9:
        return _text(_changed(random, json.loads(content))).decode()
    inside = isinstance(content, dict | list) and len(content) > 0
    if not inside or random.random() < 0.1:
        return random.choice(_VALUES)()
    key = random.choice(list(content) if isinstance(content, dict) else range(len(content)))
    out: Any = dict(content) if isinstance(content, dict) else list(content)
    how = random.random()
    if how < 0.1:
        del out[key]
    elif how < 0.15 and isinstance(out, dict):
        out[random.choice(("", "a", "type", "\0"))] = out.pop(key)
    elif how < 0.15:
        out *= random.choice((2, 100))
    else:
        out[key] = _changed(random, content[key])
    return out


def _yaml(random: Random, data: bytes) -> bytes:
    content = _changed(random, yaml.safe_load(data))
    return (
        yaml.safe_dump(content, allow_unicode=True)
        .replace(f"'@@{_DEEP}@@'", "[" * 300 + "]" * 300)
        .encode("utf-8", "surrogatepass")
    )


def _csv(random: Random, data: bytes) -> bytes:
    rows = list(csv.reader(io.StringIO(data.decode())))
    row = random.choice(rows)
    how = random.randint(0, 4)
    if how == 0:
        rows.append(list(row))
    elif how == 1 and row:
        row.pop(random.randint(0, len(row) - 1))
    elif how == 2:
        row += ["x"] * random.choice((1, 2000))
    elif row:
        row[random.randint(0, len(row) - 1)] = str(random.choice(_VALUES)())
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def _tensors(random: Random, data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    if random.random() < 0.2:
        return struct.pack("<Q", random.choice(_NUMBERS)) + header + rest
    text = _text(_changed(random, json.loads(header)))
    return struct.pack("<Q", len(text)) + text + rest


def _tiff(random: Random, data: bytes) -> bytes:
    """Another number in an entry of a directory: its tag, type, count, or value."""
    out = bytearray(data)
    directories, (at,) = [], struct.unpack_from("<I", data, 4)
    while at and at + 2 <= len(data) and len(directories) < 20:
        (count,) = struct.unpack_from("<H", data, at)
        directories.append((at, count))
        if at + 6 + 12 * count > len(data):
            break
        (at,) = struct.unpack_from("<I", data, at + 2 + 12 * count)
    if not directories:
        return _bytes(random, data)
    for _ in range(random.randint(1, 2)):
        at, count = random.choice(directories)
        entry = at + 2 + 12 * random.randint(0, max(count - 1, 0))
        offset, size = random.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 4), (8, 4)))
        number = random.choice((*_NUMBERS, random.randint(0, 2**32 - 1))) % 256**size
        out[entry + offset : entry + offset + size] = number.to_bytes(size, "little")
    return bytes(out)


def _png(random: Random, data: bytes) -> bytes:
    """Another width, height, depth, colour or interlacing, with the checksum that belongs to it."""
    import zlib

    out = bytearray(data)
    at, size = random.choice(((16, 4), (20, 4), (24, 1), (25, 1), (28, 1)))
    out[at : at + size] = (random.choice(_NUMBERS) % 256**size).to_bytes(size, "big")
    out[29:33] = zlib.crc32(out[12:29]).to_bytes(4, "big")
    return bytes(out)
