"""SIC on a slide whose patches are embedded: a file of seeds in, the slide segmented out.

Nothing here needs the slide itself. A file of seeds is JSON in level-0 pixels, x to the right and y down:

    {"classes": ["normal", "tumour"],                            the negative class first; may be left out
     "seeds": [{"x": 812, "y": 1430.5, "class": "tumour"}, …]}

or GeoJSON as QuPath exports point annotations: a FeatureCollection, a list of features or one, each a Point
or MultiPoint with its class in ``properties.classification.name`` (or ``properties.class``). Classes are
matched without regard to case. The seeds that ``fseg view`` keeps and exports are such a FeatureCollection,
with the classes' names beside it, as ``"fseg": {"classes": ["normal", "tumour"]}``. Where a file does not say
which classes there are, they are those of its seeds (``own_classes``).
"""

import hashlib
import json
import logging
import math
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt
from scipy.spatial import cKDTree

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.claims import partial_folder, sweep
from fseg_jax.files.kinds import did_you_mean
from fseg_jax.methods import sic
from fseg_jax.outputs.colours import palette
from fseg_jax.outputs.embeddings import (
    Embeddings,
    anndata_keys,
    embedded_slides,
    load_anndata,
    open_embeddings,
    try_anndata,
)
from fseg_jax.outputs.figures import write_areas, write_overlay
from fseg_jax.outputs.geojson import write_geojson
from fseg_jax.outputs.labels import LabelWriter, label_dtype, level_for
from fseg_jax.pipeline.record import Clock, check_outputs, finish, made_with
from fseg_jax.pipeline.segment import output_paths
from fseg_jax.slides.identity import identify
from fseg_jax.slides.tissue import Tissue

_log = logging.getLogger(__name__)

FORMAT = 1  # of the outputs: raised when what they hold changes
CLASSES = ("negative", "positive")
BACKGROUNDS = ("negative", "background")  # names of classes that come first, whichever seed does
_MOST_CLASSES = 255
_FILE_BYTES = 64 << 20  # of a file of seeds: some 300,000
_STRIP_PIXELS = 4 << 20  # of the mask, made at once


@dataclass(frozen=True)
class SeedSettings:
    """How to segment embedded patches from seeds: ``methods.sic`` says what each does.

    ``classes`` are the seeds' names, the negative one first; None: those of the seeds' file.
    """

    classes: tuple[str, ...] | None = None
    metric: str = "f1"
    distance: str = "euclidean"
    hard: bool = False
    smooth: bool = False
    seed: int = 0


def seed_slide(
    out: str | Path,
    seeds: str | Path,
    settings: SeedSettings | None = None,
    *,
    slide: str | None = None,
    metric: sic.Metric | None = None,
    anndata: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Segment a slide embedded in a folder from a file of seeds, and write all outputs there.

    ``slide`` is its name where the folder holds several; ``metric`` any callable, instead of the one that
    ``settings`` names. Writes ``out/NAME.sic.ome.zarr`` (a label a class, from 1 on: background has no
    patch or no tissue), ``.geojson``, ``.png``, ``.csv``, with ``anndata`` also ``.h5ad``, and last
    ``.json``, whose content it returns. Raises ``InputError``, with nothing written, for anything wrong with
    what was given; and where the ``.h5ad`` cannot be made, with all else written.
    """
    settings = settings or SeedSettings()
    out, seeds = Path(out), Path(seeds)
    if settings.metric not in sic.METRICS:
        raise InputError(f"--metric {settings.metric}: choose {', '.join(sic.METRICS)}")
    if anndata:
        load_anndata()
    sweep(out)
    name = _embedded(out, slide)
    embedded = open_embeddings(out / f"{name}.embeddings.zarr")
    made = embedded.provenance
    _warn_of_another(made["slide"])
    file = read_seed_file(seeds)
    given, names = _numbered(file, seeds, settings.classes)
    size = (made["slide"]["height"], made["slide"]["width"])
    y, overruled = seeds_on_patches(file.points, given, embedded, size, seeds)
    stem = f"{name}.sic"
    paths = [*output_paths(stem, out), out / f"{stem}.h5ad"]
    check_outputs(paths, out, overwrite)
    clock = Clock()
    k = len(names)
    prepared = sic.prepare(embedded.read(), distance=settings.distance)
    clock.lap("load")
    result = sic.fit(
        prepared.X,
        y,
        classes=k,
        key=jax.random.key(settings.seed),
        metric=metric or sic.METRICS[settings.metric],
        hard=settings.hard,
        soft=True,  # decides where the patches over a pixel are at a tie
        neighbours=sic.grid_neighbours(embedded.grid) if settings.smooth else None,
    )
    labels, soft = np.asarray(result.labels), np.asarray(result.soft)
    clock.lap("clustering")
    provenance = {
        "format": FORMAT,
        "method": "SIC (Seeded iterative clustering, LMRL workshop 2022)",
        **made_with().to_json(),
        "slide": made["slide"],
        "encoder": made["encoder"],
        "embeddings": made["parameters"] | {"patches": made["patches"], "height": made["height"]},
        "seeds": {
            "path": str(seeds),
            "sha256": file.sha256,
            "points": {c: int((given == j).sum()) for j, c in enumerate(names)},
            "patches": {c: int((y == j).sum()) for j, c in enumerate(names)},
            "overruled": overruled,
        },
        "parameters": {
            **asdict(settings),
            "classes": list(names),
            "metric": settings.metric if metric is None else getattr(metric, "__name__", repr(metric)),
            "coordinates": prepared.X.shape[1],
            "variance_kept": round(prepared.kept, 4),
        },
    }
    with partial_folder(stem, out) as folder:
        path, mpp, colours = folder / f"{stem}.ome.zarr", made["parameters"]["mpp"], palette(k)
        shape = (made["height"], made["width"])
        writer = LabelWriter(path, shape, mpp, k, names=names, colours=colours, provenance=provenance)
        for part in vote(embedded, labels, soft):
            writer.append(part)
        pixels = writer.close()
        outlines = write_geojson(
            folder / f"{stem}.geojson", path, slide_mpp=made["slide"]["mpp"], names=names, colours=colours
        )
        write_areas(folder / f"{stem}.csv", names, pixels, mpp, colours=colours)
        areas = pixels[1:] * mpp**2 * 1e-6
        picture = embedded.thumbnail
        write_overlay(
            folder / f"{stem}.png",
            picture,
            level_for(path, picture.shape[0]),
            names=names,
            colours=colours,
            areas_mm2=areas.tolist(),
            mpp=made["slide"]["mpp"] * made["slide"]["width"] / picture.shape[1],
            title=f"{name} · SIC · {made['encoder']['name']} · {len(given)} seeds",
        )
        lost = None
        if anndata:
            columns = anndata_keys([f"sic_{c}" for c in names])
            obs = {"sic": np.array(names)[labels], **dict(zip(columns, soft.T, strict=True))}
            uns = {"sic": {"classes": np.array(names), "columns": np.array(columns)}}
            lost = try_anndata(folder / f"{stem}.h5ad", out, embedded, name, obs, uns)
        clock.lap("outputs")
        record = {
            **provenance,
            "score": result.score,
            "scores": list(result.scores),
            "iterations": result.iterations,
            "patches": {c: int((labels == j).sum()) for j, c in enumerate(names)},
            "areas_mm2": {c: round(float(a), 6) for c, a in zip(names, areas, strict=True)},
            "outlines": outlines,
            "seconds": clock.laps,
        }
        record = finish(folder, record, paths)
    if lost:
        raise lost
    return record


def _warn_of_another(slide: dict[str, Any]) -> None:
    """Say so where another file lies now where the slide was that was embedded."""
    with suppress(InputError):
        if slide.get("identity") not in (None, identify(slide["path"])):
            _log.warning(
                "%s: is another slide than the one that was embedded, which is what is segmented here; fseg "
                "embed it again",
                slide["path"],
            )


def _embedded(out: Path, slide: str | None) -> str:
    """The name of the slide embedded in a folder, or of the one that is asked for."""
    names = embedded_slides(out)
    if not names:
        raise InputError(f"{out}: holds no embedded slide; make one with fseg embed SLIDE -o {out}")
    if slide is None and len(names) > 1:
        raise InputError(f"{out}: holds {', '.join(names)}; choose one with --slide")
    if slide is not None and slide not in names:
        near = did_you_mean(slide, names)
        raise InputError(f"{out}: holds no embedded slide {slide!r}; {near}it holds {', '.join(names)}")
    return slide or names[0]


class SeedFile(NamedTuple):
    """What a file of seeds says: points (x, y) in level-0 pixels and the name of each one's class.

    ``classes`` are those that there are, the negative one first; None where the file does not say. ``sha256``
    is the file's.
    """

    points: Float[np.ndarray, "m 2"]
    names: list[str]
    classes: tuple[str, ...] | None
    sha256: str


def read_seed_file(path: Path) -> SeedFile:
    """Read seeds, or none, from JSON or GeoJSON. Raises ``InputError`` where the file is neither."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _FILE_BYTES else b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a name that no file can have
        raise InputError(f"{str(path)!r}: cannot be read ({first_line(error)})") from None
    if size > _FILE_BYTES:
        raise InputError(f"{path}: {size >> 20} MB, and a file of seeds has {_FILE_BYTES >> 20} at most")
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError(f"{path}: not valid JSON: not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {first_line(error)}") from None
    try:
        if isinstance(content, dict) and "seeds" in content:
            found = [(_point([s["x"], s["y"]]), _text(s["class"])) for s in content["seeds"]]
            stated = content.get("classes")
        else:
            found = list(_points(content, path))
            stated = content["fseg"]["classes"] if isinstance(content, dict) and "fseg" in content else None
        if not isinstance(stated, list | None):
            raise TypeError("classes are no list")
        classes = tuple(_text(c) for c in stated) if stated else None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{path}: not a file of seeds ({type(error).__name__}: {first_line(error)}); "
            "each needs x, y and class"
        ) from None
    points = np.array([xy for xy, _ in found], np.float64).reshape(-1, 2)
    return SeedFile(points, [name for _, name in found], classes, hashlib.sha256(data).hexdigest())


def read_seeds(
    path: Path, classes: tuple[str, ...] | None = None
) -> tuple[Float[np.ndarray, "m 2"], Int[np.ndarray, " m"], tuple[str, ...]]:
    """Read seeds from a file: points (x, y) in level-0 pixels, their classes 0, 1…, and the classes' names.

    The names are ``classes``, or what the file states, or those of its seeds. Raises ``InputError`` as
    ``read_seed_file`` does, where a seed is of no class that there is, and where none is there.
    """
    file = read_seed_file(path)
    return file.points, *_numbered(file, path, classes)


def _numbered(
    file: SeedFile, path: Path, classes: tuple[str, ...] | None
) -> tuple[Int[np.ndarray, " m"], tuple[str, ...]]:
    if classes:
        try:
            classes = class_names(classes)
        except InputError as error:
            raise InputError(f"--classes: {error}") from None
    try:
        return number_seeds(file, classes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def number_seeds(
    file: SeedFile, classes: tuple[str, ...] | None = None, *, otherwise: tuple[str, ...] = CLASSES
) -> tuple[Int[np.ndarray, " m"], tuple[str, ...]]:
    """The classes of a file's seeds, 0, 1…, and the classes' names: ``classes``, or what the file states, or
    ``own_classes(…, otherwise)``. Raises ``InputError`` as ``read_seeds`` does.
    """
    if not file.names:
        raise InputError("holds no seeds")
    names = class_names(classes or file.classes or own_classes(file.names, otherwise))
    numbers = {name.lower(): j for j, name in enumerate(names)}
    for (x, y), name in zip(file.points, file.names, strict=True):
        if name.lower() not in numbers:
            raise InputError(
                f"the seed at x = {x:g}, y = {y:g} is of class {name!r}; there are {', '.join(names)}: "
                "name others with --classes"
            )
    return np.array([numbers[name.lower()] for name in file.names], np.int64), names


def own_classes(names: Sequence[str], otherwise: tuple[str, ...] = CLASSES) -> tuple[str, ...]:
    """The classes of seeds whose file does not say which there are, the background's first.

    They are ``otherwise`` where that has all of them. Else they come in the order in which they first
    appear, but one called ``negative`` or ``background`` comes first; one class alone is set against
    ``negative``, and a background alone against ``positive``.
    """
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(name.lower(), name)
    if found.keys() <= {name.lower() for name in otherwise}:
        return otherwise
    first = [found[name] for name in found if name in BACKGROUNDS]
    others = [found[name] for name in found if name not in BACKGROUNDS]
    if len(found) > 1:
        return (*first, *others)
    return (*first, CLASSES[1]) if first else (CLASSES[0], *others)


def class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """The classes' names, each space in them one blank and none around them.

    Raises ``InputError`` where there are fewer than two or more than 255, where two are the same but for
    case, and for what no file can hold or nobody can read as a name.
    """
    names = tuple(_squeezed(name) for name in classes)
    if not 2 <= len(names) <= _MOST_CLASSES:
        said = f"classes {', '.join(names)}" if len(names) < 2 else f"{len(names)} classes"
        raise InputError(f"{said}: at least two are needed, and {_MOST_CLASSES} at most")
    seen: set[str] = set()
    for name in names:
        # Control characters, and halves of characters that no file's text can have.
        if not name or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            raise InputError(f"{name!a} is no class's name: letters, digits, signs and blanks")
        if name.lower() in seen:
            raise InputError(f"two classes are called {name!r}; they must differ")
        seen.add(name.lower())
    return names


def _squeezed(name: str) -> str:
    return " ".join(name.split())


def _text(value: Any) -> str:
    """A class's name, which may be a number."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is no class's name")
    return _squeezed(str(value))


def _point(values: Any) -> tuple[float, float]:
    """The x and y of a point; what comes after them is height."""
    x, y = values[:2]
    for value in (x, y):
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"{value!r:.40} is no coordinate")
    try:
        return float(x), float(y)
    except OverflowError:
        raise ValueError("a coordinate is too large") from None


def _points(content: Any, path: Path) -> Iterator[tuple[tuple[float, float], str]]:
    """The points of GeoJSON, with their classes' names."""
    if isinstance(content, dict) and content["type"] != "FeatureCollection":
        content = [content]
    for feature in content if isinstance(content, list) else content["features"]:
        geometry, properties = feature["geometry"], feature.get("properties") or {}
        kind, coordinates = geometry["type"], geometry["coordinates"]
        if kind not in ("Point", "MultiPoint"):
            raise InputError(f"{path}: holds a {kind!s:.40}; seeds are points (Point or MultiPoint)")
        name = properties.get("classification") or properties.get("class")
        name = name.get("name") if isinstance(name, dict) else name
        for xy in [coordinates] if kind == "Point" else coordinates:
            x, y = _point(xy)
            if not name:
                raise InputError(f"{path}: the seed at x = {x:g}, y = {y:g} has no class")
            yield (x, y), _text(name)


def seeds_on_patches(
    points: Float[np.ndarray, "m 2"],
    given: Int[np.ndarray, " m"],
    embedded: Embeddings,
    size: tuple[int, int],
    path: Path,
) -> tuple[Int[np.ndarray, " n"], int]:
    """Give each seed to the patch around it whose centre is nearest.

    Returns the patches' classes (n,), −1 for none, and how many seeds were overruled. Where a patch gets
    seeds of several classes it takes the class of most of them, of the last one placed in a tie. Raises
    ``InputError`` for a seed outside the slide, or on no patch.
    """
    side = embedded.provenance["parameters"]["side_level0"]
    for x, y in points:
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise InputError(
                f"{path}: the seed at x = {x:g}, y = {y:g} is outside the slide, {size[1]} × {size[0]} pixels"
            )
    near = cKDTree(embedded.centers).query_ball_point(points[:, ::-1], side / 2 * 1.001, p=np.inf)
    placed: dict[int, list[int]] = {}
    for (x, y), j, found in zip(points, given, near, strict=True):
        rows = np.sort(np.asarray(found, np.int64))
        away = np.abs(embedded.centers[rows] - (y, x))
        inside = away.max(1, initial=0) <= side / 2
        if not inside.any():
            raise InputError(
                f"{path}: the seed at x = {x:g}, y = {y:g} is on no embedded patch: too little tissue"
            )
        nearest = int(rows[np.argmin(np.where(inside, (away**2).sum(1), np.inf))])
        placed.setdefault(nearest, []).append(int(j))
    classes = np.full(len(embedded.centers), -1, np.int32)
    overruled = 0
    for patch, theirs in placed.items():
        most = max(theirs.count(j) for j in theirs)
        classes[patch] = next(j for j in reversed(theirs) if theirs.count(j) == most)
        overruled += len(theirs) - theirs.count(int(classes[patch]))
    return classes, overruled


def vote(
    embedded: Embeddings, labels: Int[np.ndarray, " n"], soft: Float[np.ndarray, "n k"]
) -> Iterator[UInt[np.ndarray, "m width"]]:
    """Yield the slide's mask from top to bottom: where patches overlap, each pixel goes to the class of most.

    Class j has the label j + 1; a tie goes to the class with the larger sum of ``soft``, then to the lower
    one. 0 is what no patch covers or is not tissue.
    """
    made = embedded.provenance
    step, side = made["parameters"]["step"], made["parameters"]["patch"]
    height, width, mpp = made["height"], made["width"], made["parameters"]["mpp"]
    tissue = Tissue(embedded.tissue, made["tissue_mpp"])
    k = soft.shape[1]
    # Between the lines on which patches begin and end, every pixel lies in the same patches.
    cell = math.gcd(step, side)
    pitch, span = step // cell, side // cell
    cells = -(-width // cell)
    # So small a share of a vote that all of a pixel's together are less than one.
    ballots = np.eye(k)[labels] + soft / (2 * (-(-span // pitch)) ** 2)
    rows: dict[int, np.ndarray] = {}

    def row_votes(row: int) -> Float[np.ndarray, "cells k"]:
        """What a row of patches says of each cell along it: one adds where it begins, takes back where it
        ends.
        """
        if row not in rows:
            here = np.flatnonzero(embedded.grid[:, 0] == row)
            change = np.zeros((cells + span + 1, k))
            begin = embedded.grid[here, 1] * pitch
            np.add.at(change, begin, ballots[here])
            np.add.at(change, np.minimum(begin + span, cells + span), -ballots[here])
            covers = np.zeros(cells + span + 1)
            np.add.at(covers, begin, 1)
            np.add.at(covers, np.minimum(begin + span, cells + span), -1)
            # What has been taken back leaves rounding behind, which must not look like a vote.
            rows[row] = np.where(covers.cumsum()[:, None] > 0.5, change.cumsum(0), 0)[:cells]
        return rows[row]

    strip = max(1, _STRIP_PIXELS // width)
    for i in range(-(-height // cell)):
        first = max(0, -(-(i - span + 1) // pitch))
        for row in [row for row in rows if row < first]:
            del rows[row]
        total = sum((row_votes(row) for row in range(first, i // pitch + 1)), np.zeros((cells, k)))
        line = np.where(total.max(1) > 0.5, total.argmax(1) + 1, 0).astype(label_dtype(k))
        line = np.repeat(line, cell)[:width]
        for y in range(i * cell, min((i + 1) * cell, height), strip):
            m = min(strip, (i + 1) * cell - y, height - y)
            yield np.where(tissue.crop(y, 0, m, width, mpp), line, 0).astype(line.dtype)
