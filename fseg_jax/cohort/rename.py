"""``fseg names``: rename the clusters of finished slides, and in a cohort those of its tables and its report.

Slides come first, one after the other, then the cohort's names, its table and its report. So a run that is
killed leaves whole slides of either names, and the next run does the rest.
"""

from collections.abc import Callable
from pathlib import PurePosixPath

import numpy as np

from fseg_jax.cohort.records import AGREEMENT, NAMES, Agreement, record_key
from fseg_jax.errors import InputError
from fseg_jax.files.storage import Folder, Storage, open_storage
from fseg_jax.outputs.cluster_names import ClusterNames, Clusters, format_names
from fseg_jax.outputs.colours import format_hex
from fseg_jax.outputs.renaming import rename_columns
from fseg_jax.outputs.report import rename_report
from fseg_jax.pipeline.publish import Json
from fseg_jax.pipeline.renaming import list_clusters, read_record, rename_slide

_OTHER_COLUMNS = 4  # of areas.csv, before those of clusters


def rename_outputs(
    place: str,
    names: ClusterNames,
    slide: str | None = None,
    *,
    reset: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Rename the clusters of all slides of a place, or of one, and return how many slides these are.

    Args:
        place: A folder of ``fseg segment`` or ``fseg cohort``, or a bucket's of the latter.
        names: The names; clusters without one keep theirs.
        slide: The slide's name; None: all slides.
        reset: Whether clusters without one are called ``cluster N`` again.
        progress: Called with the slides that are done and all of them.

    Raises:
        InputError: The place holds no such outputs; their clusters are not the same on every slide; the names
            do not fit; or an output is gone or damaged. But for the last, nothing is changed.
        OutputError: The outputs cannot be written.
    """
    storage = open_storage(place)
    storage.recover()
    data = storage.read(AGREEMENT)
    agreement = Agreement.from_json(data)
    is_cohort = data is not None
    if is_cohort and (agreement is None or agreement.settings.get("codebook") is None):
        raise InputError(
            f"{place}: each slide has clusters of its own, which have no names in common; "
            "run fseg fit, and the cohort with its --codebook"
        )
    if is_cohort and slide is not None:
        raise InputError(f"--slide: {place} is a cohort, in which a cluster has one name on all slides")
    records = read_records(storage, agreement, slide)
    books = {str(record["codebook"]["hash"]) for record in records.values()}
    if len(books) > 1:
        raise InputError(
            f"{place}: its slides have clusters of their own, or of several codebooks: give --slide NAME"
        )
    first = next(iter(records.values()))  # of a cohort, all have its names, or those that a stopped run gave
    names.apply(len(first["areas_mm2"]), place)
    if not reset:
        names = names.keep(_read_clusters(first))
    clusters = names.apply(len(first["areas_mm2"]), place)
    called = list(zip(clusters.names, map(format_hex, clusters.colours), strict=True))
    for done, (name, record) in enumerate(records.items()):
        progress(done, len(records))
        if list_clusters(record) != called:
            rename_slide(storage, name, record, clusters)
    if is_cohort:
        _rename_tables(storage, names, clusters)
    return len(records)


def _read_clusters(record: Json) -> Clusters:
    names, colours = zip(*list_clusters(record), strict=True)
    return Clusters(names, np.array([[*bytes.fromhex(colour[1:])] for colour in colours], np.uint8))


def read_records(storage: Storage, agreement: Agreement | None, slide: str | None) -> dict[str, Json]:
    """Read the records of the slides of a place, or of one; in a cohort, those of its codebook.

    Raises:
        InputError: The place holds none, or one of another version of the program.
    """
    if agreement is not None:
        keys = [key.removeprefix("timings/") for key in storage.list_keys("timings")]
    elif isinstance(storage, Folder):
        keys = sorted(path.name for path in storage.path.glob("[!.]*.json"))
    else:
        keys = []
    if slide is not None:
        keys = [key for key in keys if key == record_key(slide)]
    records = {}
    for key, data in storage.read_all(keys).items():
        record = read_record(data, f"{storage.url}/{key}")
        if record is None:
            continue
        if agreement is None or record["codebook"]["hash"] == agreement.settings.get("codebook"):
            records[key.removesuffix(".json")] = record
    if not records:
        which = f"no slide {slide!r}" if slide is not None else "no segmented slides"
        raise InputError(f"{storage.url}: holds {which}; give the folder of fseg segment or fseg cohort")
    return records


def _rename_tables(storage: Storage, names: ClusterNames, clusters: Clusters) -> None:
    """Write what the clusters of a cohort are called, and rename them in its table and its report."""
    storage.write(NAMES, format_names(names))
    table, page = storage.read("areas.csv"), storage.read("report.html")
    key = "areas.csv"
    try:
        if table is not None:
            storage.write(key, rename_columns(table, _OTHER_COLUMNS, clusters))
        key = "report.html"
        if page is not None:
            pictures = storage.read_all(storage.list_keys("thumbnails"))
            thumbnails = {PurePosixPath(path).stem: data for path, data in pictures.items()}
            storage.write(key, rename_report(page.decode(), clusters, thumbnails).encode())
    except (ValueError, LookupError, TypeError, StopIteration) as error:
        raise InputError(
            f"{storage.url}/{key}: cannot be renamed ({error}); run fseg cohort again, which writes it anew"
        ) from None
