"""Read the manifest of a cohort: its slides, each with an id of its own, and what is known of them.

A manifest is a CSV file with a header, on disk or at ``s3://`` or ``gs://``:

    slide_id,path,mpp,series,tissue,site,split
    A-017,scans/A-017.svs,,,,Leeds,train
    B-003,/archive/B-003.tif,0.25,1,masks/B-003.geojson,Oslo,test

``slide_id`` and ``path`` are needed; an empty cell of the rest says nothing. Relative paths are relative to
the manifest. A folder is a manifest of the slides directly in it, a glob of what it matches, and their ids
are the files' names without suffixes. A DICOM slide is one, whether its files or their folder are found.

A path may be an address at ``s3://``, ``gs://`` or ``https://``, which is opened when its turn comes.
"""

import csv
import hashlib
import io
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import tensorstore as ts

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.addresses import is_address, locate
from fseg_jax.files.bucket import is_bucket, make_bucket_spec
from fseg_jax.files.futures import wait_for_store
from fseg_jax.files.kinds import suggest_names
from fseg_jax.files.paths import is_folder, is_there
from fseg_jax.slides.dicom_series import is_other_object, key_series, list_series, list_slides, merge_series
from fseg_jax.slides.pixels import is_plausible
from fseg_jax.slides.reader import name_outputs, open_slide

_log = logging.getLogger(__name__)

COLUMNS = ("slide_id", "path", "mpp", "series", "tissue", "site", "split")
# What a folder's files must end in to be slides; a glob and a table take what they name.
SUFFIXES = (
    *(
        ".svs",
        ".ndpi",
        ".mrxs",
        ".scn",
        ".svslide",
        ".bif",
        ".vms",
        ".vmu",
        ".dcm",
        ".czi",
        ".ome.zarr",
        ".ozx",
    ),
    *(".tif", ".tiff", ".tf2", ".tf8", ".btf", ".png", ".jpg", ".jpeg", ".bmp", ".webp"),
)
_LONGEST_ID = 180  # bytes: outputs add their suffixes, and file systems end at 255
_LONGEST_NUMBER = 6  # digits of a series
_HEADER_THREADS = 8
_HEAD = 4096  # bytes in which what is no text shows
_WANTED = "a manifest is a CSV file, a folder or a glob of slides"


@dataclass(frozen=True)
class ManifestSlide:
    """A slide of a cohort.

    Attributes:
        slide_id: Its name, and the name of its outputs.
        path: Its file.
        mpp: µm per level-0 pixel, instead of what the file says.
        tissue: A file that marks the tissue, "all" or "find"; empty: the manifest does not say.
        site: Where it is from; a free name, or empty.
        split: Which split it belongs to; a free name, or empty.
        line: Line of the manifest; 0 in a folder or a glob.
        series: Which of the file's images it is; None: the manifest does not say.
    """

    slide_id: str
    path: Path
    mpp: float | None = None
    tissue: str = ""
    site: str = ""
    split: str = ""
    line: int = 0
    series: int | None = None


@dataclass(frozen=True)
class _Problem:
    line: int
    text: str


def load_manifest(
    source: str | Path,
    *,
    sample_check: bool = False,
    slides_needed: bool = True,
    mpp_override: float | None = None,
    series: int | None = None,
) -> tuple[ManifestSlide, ...]:
    """Read and check a whole manifest, and return its slides in their order.

    Args:
        source: A CSV file, with commas, semicolons or tabs between its columns; a folder; or a glob.
        sample_check: Whether to open each slide's header, too.
        slides_needed: Whether a slide that is gone is a problem.
        mpp_override: µm per pixel of slides whose line has no mpp, for ``sample_check``.
        series: Which image to read of slides whose line has no series, for ``sample_check``.

    Raises:
        InputError: Something is wrong; one message lists every problem with its line.
    """
    name = str(source)
    slides, problems = _read(name, slides_needed)
    if sample_check:
        problems += _check_headers(slides, mpp_override, series)
    if problems:
        problems.sort(key=lambda problem: problem.line)
        listed = [f"  line {p.line}: {p.text}" if p.line else f"  {p.text}" for p in problems]
        count = "1 problem" if len(listed) == 1 else f"{len(listed)} problems"
        raise InputError("\n".join([f"{name}: {count}; nothing was started", *listed]))
    return tuple(slides)


def select_split(
    slides: tuple[ManifestSlide, ...], split: str | None, source: str | Path
) -> tuple[ManifestSlide, ...]:
    """Return the slides of one split of a manifest, all of them where ``split`` is None.

    Raises ``InputError`` where the split has no slides.
    """
    if split is None:
        return slides
    chosen = tuple(slide for slide in slides if slide.split == split)
    if not chosen:
        splits = sorted({slide.split for slide in slides if slide.split})
        listed = f"it has {', '.join(splits)}" if splits else "its column split is empty or missing"
        raise InputError(f"{source}: no slide of the split {split!r}; {suggest_names(split, splits)}{listed}")
    return chosen


def hash_tissue_file(tissue: str) -> str | None:
    """Return the SHA-256 of a tissue file; None for "find" and "all", and where it cannot be read."""
    if tissue in ("find", "all"):
        return None
    try:
        return hashlib.sha256(Path(tissue).read_bytes()).hexdigest()
    except OSError:
        return None


def read_bytes(location: str) -> bytes:
    """Read a file on disk, or an object at ``s3://BUCKET/KEY`` or ``gs://BUCKET/KEY``."""
    if not is_bucket(location):
        try:
            return Path(location).read_bytes()
        except FileNotFoundError:
            raise InputError(f"{location}: no such file; {_WANTED}") from None
        except OSError as error:
            raise InputError(f"{location}: cannot be read ({error.strerror or error})") from error
    try:
        folder, _, key = location.rpartition("/")
        (store,) = wait_for_store(location, ts.KvStore.open(make_bucket_spec(folder + "/")))
        (answer,) = wait_for_store(location, store.read(key))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{location}: cannot be read ({first_line(error)})") from error
    if answer.state != "value":
        raise InputError(f"{location}: there is no such object")
    content: bytes = answer.value
    return content


def _read(name: str, slides_needed: bool) -> tuple[list[ManifestSlide], list[_Problem]]:
    if not is_bucket(name):
        path = Path(name)
        if path.name.lower().endswith((*SUFFIXES, ".zarr")) and is_there(path):
            raise InputError(f"{name}: is a slide; {_WANTED}; fseg segment takes single slides")
        if is_folder(path):
            return _name_slides(*_list_folder(path))
        if has_magic(name) and not is_there(path):
            return _name_slides(*_match_glob(name))
    return _read_table(name, read_bytes(name), slides_needed)


def _list_folder(folder: Path) -> tuple[list[Path], list[_Problem]]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    visible = [path for path in entries if not path.name.startswith(".")]
    paths = [path for path in visible if path.name.lower().endswith(SUFFIXES)]
    slides, problems = _filter_paths(paths, lambda p, folder: folder == p.name.lower().endswith(".ome.zarr"))
    slides += [series.main for series in list_series(folder)]
    slides, more = _add_dicom(folder, slides, visible)
    problems += more
    if not slides and not problems:
        raise InputError(f"{folder}: no slides in it; a glob looks deeper: '{folder}/**/*.svs', in quotes")
    return slides, problems


def _match_glob(pattern: str) -> tuple[list[Path], list[_Problem]]:
    paths = sorted(Path(path) for path in glob(pattern, recursive=True))  # noqa: PTH207, of any root
    # Folders are matched on the way to files (and .mrxs slides come with one); OME-Zarr slides are folders.
    slides, problems = _filter_paths(paths, lambda p, folder: not folder or p.name.lower().endswith(".zarr"))
    slides, more = _add_dicom(pattern, slides, paths)
    problems += more
    if not slides and not problems:
        raise InputError(f"{pattern}: matches no file")
    return slides, problems


def _filter_paths(
    paths: list[Path], is_wanted: Callable[[Path, bool], bool]
) -> tuple[list[Path], list[_Problem]]:
    """Return the paths that ``is_wanted(path, is_folder)`` selects; others may be problems."""
    slides, problems = [], []
    for path in paths:
        try:
            if is_wanted(path, is_folder(path)):
                slides.append(path)
        except InputError as error:
            problems.append(_Problem(0, str(error)))
    return slides, problems


def _add_dicom(
    source: str | Path, slides: list[Path], places: list[Path]
) -> tuple[list[Path], list[_Problem]]:
    """Add the DICOM slides of folders among ``places``, and leave out what is one slide twice, or none.

    Returns the slides in the order of their paths, and folders that cannot be read as problems.
    """
    found, problems = [], []
    for place in places:
        try:
            if place.is_dir() and not place.name.lower().endswith(".zarr"):
                found += list_slides(place)
        except InputError as error:
            problems.append(_Problem(0, str(error)))
    others = {path for path in slides if is_other_object(path)}
    if others:
        _log.warning(
            "%s: %d DICOM file(s) that are no slides are left out, such as %s",
            source,
            len(others),
            min(others),
        )
    return merge_series(sorted({*slides, *found} - others)), problems


def _name_slides(paths: list[Path], problems: list[_Problem]) -> tuple[list[ManifestSlide], list[_Problem]]:
    """Name slides by their files; names that cannot be used are problems."""
    slides, ids = [], _SlideIds()
    for path in paths:
        slide = ManifestSlide(name_outputs(path), path)
        problems += [_Problem(0, f"{path}: {text}") for text in ids.check(slide.slide_id, str(path))]
        slides.append(slide)
    return slides, problems


class _SlideIds:
    """The ids of the slides so far, and where each was."""

    def __init__(self) -> None:
        self._where: dict[str, str] = {}

    def check(self, slide_id: str, where: str) -> Iterator[str]:
        """Add an id, and yield what is wrong with it: it names outputs, and must be a new file name."""
        printable = slide_id.isprintable()
        if not slide_id:
            yield "no slide_id"
        elif not printable or any(c in slide_id for c in '/\\:*?"<>|') or slide_id.startswith("."):
            yield (
                f"slide_id {slide_id!r} names files: it must not begin with a point, nor hold "
                '/ \\ : * ? " < > | or control characters'
            )
        elif slide_id[-1] in " .":
            yield f"slide_id {slide_id!r} names files: it must not end with a point or a space"
        elif len(slide_id.encode("utf-8", "replace")) > _LONGEST_ID:
            yield f"slide_id {slide_id[:40]!r}… is too long: {_LONGEST_ID} bytes at most"
        # Two ids that differ in case are one file on macOS and Windows.
        elif (before := self._where.setdefault(slide_id.casefold(), where)) != where:
            yield f"the slide_id {slide_id!r} is also that of {before}"


def _read_table(name: str, content: bytes, slides_needed: bool) -> tuple[list[ManifestSlide], list[_Problem]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if b"\0" in content[:_HEAD] and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{name}: is no text; {_WANTED}; fseg segment takes single slides") from None
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{name}: line {line} is not UTF-8; save the table as CSV in UTF-8") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = list(_read_lines(reader))
    except csv.Error as error:
        raise InputError(f"{name}: line {reader.line_num} is not CSV ({error})") from None
    columns = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if missing := [column for column in COLUMNS[:2] if column not in columns]:
        raise InputError(
            f"{name}: no column {' and no column '.join(missing)} in its first line; a manifest is CSV with "
            f"the columns {', '.join(COLUMNS[:2])} and, if wanted, {', '.join(COLUMNS[2:])}"
        )
    if twice := [column for column, count in Counter(columns).items() if count > 1 and column in COLUMNS]:
        raise InputError(f"{name}: two columns are called {twice[0]}; keep one")
    if ignored := [column for column in columns if column and column not in COLUMNS]:
        _log.warning("%s: columns that mean nothing here: %s", name, ", ".join(ignored))
    if len(rows) == 1:
        raise InputError(f"{name}: no slides, only a header")
    slides: list[ManifestSlide] = []
    problems: list[_Problem] = []
    ids = _SlideIds()
    series: dict[Any, ManifestSlide] = {}
    for line, cells in rows[1:]:
        if len(cells) != len(columns):
            problems.append(_Problem(line, f"{len(cells)} cells, but the header has {len(columns)}"))
            continue
        row = {c: v.strip() for c, v in zip(columns, cells, strict=True) if c in COLUMNS}
        wrong = list(ids.check(row["slide_id"], f"line {line}"))
        slide = _make_slide(name, row, line, wrong, slides_needed)
        key = key_series(slide.path) if slides_needed else None
        if key and (before := series.setdefault(key, slide)).path != slide.path:
            wrong.append(
                f"path {row['path']}: is of the same DICOM slide as that of line {before.line}; keep one"
            )
        problems += [_Problem(line, text) for text in wrong]
        slides.append(slide)
    return slides, problems


def _read_lines(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the records that are not blank, each with the line that it begins at."""
    line = 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield line, cells
        line = reader.line_num + 1


def _make_slide(
    name: str, row: dict[str, str], line: int, wrong: list[str], slides_needed: bool
) -> ManifestSlide:
    """Make a slide of one line; problems are added to ``wrong``."""
    path = _locate(name, row["path"], "path", wrong, needed=slides_needed)
    tissue = row.get("tissue", "")
    if tissue and tissue not in ("find", "all"):
        tissue = str(_locate(name, tissue, "tissue", wrong))
    mpp = None
    if text := row.get("mpp"):
        try:
            mpp = float(text)
        except ValueError:
            mpp = math.nan
        if not is_plausible(mpp):
            wrong.append(f"mpp {text}: must be µm per level-0 pixel, from 0.05 to 20, as 0.25 for 40×")
    series = None
    if text := row.get("series"):
        if text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER:
            series = int(text)
        else:
            wrong.append(f"series {text}: must be the number of one of the file's images, counted from 0")
    site, split = row.get("site", ""), row.get("split", "")
    return ManifestSlide(row["slide_id"], path, mpp, tissue, site, split, line, series)


def _locate(name: str, cell: str, column: str, wrong: list[str], *, needed: bool = True) -> Path:
    """Return where a cell points to, relative to the manifest; problems are added to ``wrong``."""
    path = Path(cell)
    if not cell:
        wrong.append(f"no {column}")
    elif "\0" in cell:
        wrong.append(f"{column} {cell!r}: no path has such a character")
    elif is_address(cell) or (is_address(name) and not path.is_absolute()):
        try:
            path = locate(cell if is_address(cell) else f"{name.rpartition('/')[0]}/{cell}")
        except InputError as error:
            wrong.append(f"{column} {error}")
        else:
            if column != "path":
                wrong.append(f"{column} {path}: is read from a disk; copy it there")
    else:
        path = path if is_address(name) else Path(name).parent / path
        if needed:
            wrong += _find_missing(path, column, cell)
    return path


def _find_missing(path: Path, column: str, cell: str) -> Iterator[str]:
    """Yield the problem of a file that is needed and is not there, or cannot be looked at."""
    try:
        if not is_there(path):
            yield f"{column} {cell}: no such file{'' if str(path) == cell else f' ({path})'}"
    except InputError as error:
        yield f"{column} {error}"


def _check_headers(
    slides: list[ManifestSlide], mpp_override: float | None, series: int | None
) -> list[_Problem]:
    """Open the slides whose files are there, and return the problems with their headers."""

    def check(slide: ManifestSlide) -> _Problem | None:
        try:
            chosen = series if slide.series is None else slide.series
            open_slide(slide.path, slide.mpp or mpp_override, series=chosen).close()
        except InputError as error:
            text, _, advice = str(error).partition("; give it with --mpp-override")
            in_table = "; give it in the column mpp, as 0.5 for 20×, 0.25 for 40×"
            return _Problem(slide.line, text + in_table if slide.line and advice else str(error))
        return None

    present = [slide for slide in slides if not any(_find_missing(slide.path, "path", str(slide.path)))]
    present = [slide for slide in present if slide.mpp is None or is_plausible(slide.mpp)]
    with ThreadPoolExecutor(_HEADER_THREADS, thread_name_prefix="fseg-check") as pool:
        return [problem for problem in pool.map(check, present) if problem is not None]
