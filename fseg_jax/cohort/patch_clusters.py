"""Cluster the patches of slides whose features another program has computed, by k-means, all together.

Every slide gets its clusters' labels, outlines, areas and picture, as from ``fseg segment``; a cluster is the
same on all of them. Their patches stay in ``NAME.embeddings.zarr``, for ``fseg seed`` and the page.
"""

import glob
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int

from fseg_jax.cohort.records import record_key, thumbnail_key
from fseg_jax.errors import InputError, OutputError
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.files.partial_folders import open_partial_folder
from fseg_jax.files.storage import open_storage
from fseg_jax.files.tensor_reader import BrokenFileError, open_tensors
from fseg_jax.files.tensor_writer import write_tensors
from fseg_jax.numerics import kmeans
from fseg_jax.outputs import report
from fseg_jax.outputs.cluster_names import ClusterNames, Clusters, name_clusters
from fseg_jax.outputs.colours import format_hex
from fseg_jax.outputs.csv_table import write_csv
from fseg_jax.outputs.embeddings import Embeddings, open_embeddings
from fseg_jax.outputs.form import DEFAULT_FORM, OutputForm
from fseg_jax.outputs.labels import open_labels
from fseg_jax.outputs.neighbours import measure_neighbours
from fseg_jax.outputs.patch_h5 import import_h5py, list_patch_files
from fseg_jax.outputs.picture import read_picture
from fseg_jax.pipeline.patch_import import take_patches
from fseg_jax.pipeline.patch_map import write_patch_map
from fseg_jax.pipeline.patch_records import PatchProvenance, read_provenance
from fseg_jax.pipeline.publish import Json, check_outputs, finish
from fseg_jax.pipeline.record import made_with
from fseg_jax.pipeline.segment import FORMAT, output_paths

METHOD = "k-means of patch features"
CENTRES = "centres.safetensors"  # of the clusters, below the cohort's place
_SAMPLE = 200  # patches of a slide that centres are fitted on
_ROWS = 4096  # patches that are compared with the centres at once


@dataclass(frozen=True)
class PatchClusterSettings:
    """How to cluster patches.

    Attributes:
        k: Number of clusters to fit.
        centres: A file of centres that an earlier run fitted, in place of fitting any.
        slides: The folder of the slides, for pictures and resolutions; None: they are not at hand.
        mpp_override: µm per pixel of the slides' finest level, where slides are not at hand or do not say.
        names: Names and colours of clusters.
        form: How outputs are written.
        seed: Random seed.
    """

    k: int = 8
    centres: Path | None = None
    slides: Path | None = None
    mpp_override: float | None = None
    names: ClusterNames | None = None
    form: OutputForm = DEFAULT_FORM
    seed: int = 0


@dataclass(frozen=True)
class PatchClusterSummary:
    """How a run ended.

    Attributes:
        areas_mm2: Area of each cluster, by name, of each slide that is done.
        failed: The slides that failed, and why.
    """

    areas_mm2: Mapping[str, Mapping[str, float]]
    failed: Mapping[str, str]


def cluster_patch_files(
    folder: Path,
    out: Path,
    settings: PatchClusterSettings,
    *,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    tell_outcome: Callable[[str, Json | None, str], None] = lambda name, record, reason: None,
) -> PatchClusterSummary:
    """Cluster the patches of every HDF5 file of a folder; write each slide's outputs, tables and a report.

    A file that is damaged is left out and named; nothing of its slide is written.

    Args:
        folder: The folder of the files, or one file.
        out: The folder for the results.
        settings: How to cluster.
        overwrite: Whether results that exist are replaced; slides that have them fail otherwise.
        tell: Called with each line for the user.
        tell_outcome: Called with each slide, its record, None where it failed, and then why.

    Raises:
        InputError: h5py is not installed, there are no files, none can be used, or settings do not fit them.
        OutputError: Nothing can be written.
    """
    files = list_patch_files(folder)
    import_h5py()
    failed: dict[str, str] = {}
    embedded: dict[str, Embeddings] = {}
    for path in files:
        try:
            check_outputs(output_paths(path.stem, out), out, overwrite)
            take_patches(path, out, settings.slides, settings.mpp_override, overwrite=overwrite)
            opened = open_embeddings(out / f"{path.stem}.embeddings.zarr")
            first = next(iter(embedded.values()), opened)
            if opened.embeddings.shape[1] != first.embeddings.shape[1]:
                raise InputError(
                    f"{path}: its features have {opened.embeddings.shape[1]} channels, the others' "
                    f"{first.embeddings.shape[1]}: another encoder made them"
                )
            embedded[path.stem] = opened
        except OutputError:
            raise
        except InputError as error:
            failed[path.stem] = str(error)
            tell(f"{path.stem}: failed: {error}")
            tell_outcome(path.stem, None, str(error))
    if not embedded:
        first_reason = next(iter(failed.values()))
        raise InputError(f"{folder}: none of its {len(files)} files can be used: {first_reason}")
    centres = _choose_centres(embedded, settings)
    clusters = name_clusters(settings.names, len(centres), "the codebook")
    records = {}
    for number, (name, opened) in enumerate(embedded.items(), 1):
        records[name] = _write_slide(out, name, opened, centres, clusters, settings, overwrite)
        tell(f"[{number}/{len(embedded)}] {name}")
        tell_outcome(name, records[name], "")
    areas = {name: record["areas_mm2"] for name, record in records.items()}
    _write_tables(out, centres, clusters, areas, failed)
    _write_report(out, records, embedded, failed)
    return PatchClusterSummary(areas, failed)


def _choose_centres(
    embedded: Mapping[str, Embeddings], settings: PatchClusterSettings
) -> Float[np.ndarray, "k c"]:
    """Read centres, or fit them on a sample of each slide's patches, whatever the slides' order."""
    channels = next(iter(embedded.values())).embeddings.shape[1]
    if settings.centres is not None:
        centres = read_centres(settings.centres)
        if centres.shape[1] != channels:
            raise InputError(
                f"{settings.centres}: its centres are {centres.shape[1]} wide, the features {channels}: "
                "another encoder made them"
            )
        return centres
    parts = []
    for name in sorted(embedded):
        opened = embedded[name]
        rng = np.random.default_rng([settings.seed, zlib.crc32(name.encode())])
        n = len(opened.centers)
        rows = np.sort(rng.choice(n, min(n, _SAMPLE), replace=False))
        parts.append(np.asarray(opened.embeddings[rows].read().result(), np.float32))
    X = np.concatenate(parts)
    if len(X) < settings.k:
        raise InputError(f"--k {settings.k}: there are {len(X)} patches to cluster; choose fewer clusters")
    fitted = kmeans.fit(X, settings.k, key=jax.random.key(settings.seed))
    return np.asarray(fitted.centers, np.float32)


def read_centres(path: Path) -> Float[np.ndarray, "k c"]:
    """Read the centres that ``cluster_patch_files`` wrote.

    Raises:
        InputError: The file holds none.
    """
    try:
        with open_tensors(path) as tensors:
            centres = np.asarray(tensors.get("centres"), np.float32)
    except (BrokenFileError, OSError, LookupError, ValueError):
        raise InputError(
            f"{path}: holds no centres of patches; give the {CENTRES} of fseg cohort --from-h5"
        ) from None
    if centres.ndim != 2 or 0 in centres.shape or not np.isfinite(centres).all():
        raise InputError(f"{path}: its centres are damaged")
    return centres


def assign(opened: Embeddings, centres: Float[np.ndarray, "k c"]) -> Int[np.ndarray, " n"]:
    """Assign each patch to the nearest centre; in a tie, to the first."""
    n = len(opened.centers)
    labels = np.empty(n, np.int32)
    half = (centres.astype(np.float64) ** 2).sum(1) / 2
    for first in range(0, n, _ROWS):
        part = np.asarray(opened.embeddings[first : min(first + _ROWS, n)].read().result(), np.float64)
        labels[first : first + len(part)] = np.argmin(half - part @ centres.T.astype(np.float64), axis=1)
    return labels


def _write_slide(
    out: Path,
    name: str,
    opened: Embeddings,
    centres: Float[np.ndarray, "k c"],
    clusters: Clusters,
    settings: PatchClusterSettings,
    overwrite: bool,
) -> Json:
    """Write all outputs of a slide, and return its record."""
    facts: PatchProvenance = read_provenance(opened)
    labels = assign(opened, centres)
    paths = output_paths(name, out)
    check_outputs(paths, out, overwrite)
    provenance = {
        "format": FORMAT,
        "method": METHOD,
        **vars(made_with()),
        "slide": facts.slide.to_json(),
        "encoder": facts.encoder.to_json(),
        "centres": {"k": len(centres), "hash": hash_centres(centres), "seed": settings.seed},
        "embeddings": {**asdict(facts.parameters), "patches": facts.patches},
    }
    with open_partial_folder(name, out) as folder:
        made = write_patch_map(
            folder,
            name,
            opened,
            facts,
            labels,
            np.eye(len(centres), dtype=np.float32)[labels],
            name=name,
            names=clusters.names,
            colours=clusters.colours,
            provenance=provenance,
            title=f"{name} · {facts.encoder.card.name} · k = {len(centres)}",
            form=settings.form,
        )
        record = {
            **provenance,
            "form": asdict(settings.form),
            "tissue_mm2": round(sum(made.areas_mm2.values()), 6),
            "areas_mm2": made.areas_mm2,
            "area_step_mm2": made.step_mm2,
            "colours": dict(zip(clusters.names, map(format_hex, clusters.colours), strict=True)),
            "outlines": asdict(made.outlines),
        }
        return finish(folder, record, paths)


def _write_report(
    out: Path, records: Mapping[str, Json], embedded: Mapping[str, Embeddings], failed: Mapping[str, str]
) -> None:
    """Write the report of a cohort, of patches in place of tiles, and the slides' thumbnails."""
    slides, neighbours = [], []
    for name, record in records.items():
        picture = read_picture((out / f"{name}.png").read_bytes())
        labels = open_labels(out / f"{name}.ome.zarr")
        thumbnail = report.encode_thumbnail(picture.image, picture.labels, labels.colours)
        path = out / thumbnail_key(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(thumbnail)
        totals = report.SlideTotals(
            record["tissue_mm2"],
            record["areas_mm2"],
            record["colours"],
            {},
            {},
            len(embedded[name].centers),
            record["versions"],
            record["device"],
        )
        slides.append(report.Slide(name, "", "", totals, None, thumbnail))
        neighbours.append(measure_neighbours(labels))
    first = next(iter(records.values()))
    page = report.render_report(
        slides=[*slides, *(report.Slide(name, "", "", None, None, None) for name in failed)],
        failures=[{"slide_id": name, "reason": reason} for name, reason in failed.items()],
        settings={
            "encoder": first["encoder"]["name"],
            "k": first["centres"]["k"],
            "mode": METHOD,
            "mpp": first["embeddings"]["mpp"],
            "seed": first["centres"]["seed"],
        },
        encoder=first["encoder"],
        codebook={"centres": CENTRES, "hash": first["centres"]["hash"]},
        typical={},
        neighbours=neighbours,
    )
    with replace_atomically(out / "report.html") as part:
        part.write_text(page, encoding="utf-8")


def check_bucket(folder: Path, place: str) -> None:
    """Check that a bucket has no results of the slides whose patches are to be clustered.

    Raises:
        InputError: It has some.
    """
    keys = [record_key(path.stem) for path in list_patch_files(folder)]
    if present := sorted(open_storage(place).find_present(keys)):
        raise InputError(f"{place}/{present[0]} exists: choose another place, or --redo")


def publish_patch_clusters(folder: Path, names: Iterable[str], place: str) -> None:
    """Publish in a bucket what ``cluster_patch_files`` wrote to a folder.

    Args:
        folder: The folder.
        names: The slides that are done.
        place: The bucket's address, and a path in it.
    """
    storage = open_storage(place)
    for name in names:
        paths = [*output_paths(name, folder), *sorted(folder.glob(f"{glob.escape(name)}.embeddings.*"))]
        storage.publish(folder, [*(path.name for path in paths), thumbnail_key(name)])
    for table in (CENTRES, "areas.csv", "failures.csv", "report.html"):
        storage.write(table, (folder / table).read_bytes())


def hash_centres(centres: Float[np.ndarray, "k c"]) -> str:
    """SHA-256 of centres: shape and values."""
    return hashlib.sha256(repr(centres.shape).encode() + centres.astype("<f4").tobytes()).hexdigest()


def _write_tables(
    out: Path,
    centres: Float[np.ndarray, "k c"],
    clusters: Clusters,
    areas: Mapping[str, Mapping[str, float]],
    failed: Mapping[str, str],
) -> None:
    """Write the centres, ``areas.csv`` and ``failures.csv``."""
    write_tensors(out / CENTRES, {"centres": centres}, {"format": "fseg patch centres"})
    rows = [{"slide_id": name, "tissue_mm2": round(sum(a.values()), 6), **a} for name, a in areas.items()]
    write_csv(out / "areas.csv", ("slide_id", "tissue_mm2", *clusters.names), rows)
    lines = [{"slide_id": name, "reason": reason} for name, reason in failed.items()]
    write_csv(out / "failures.csv", ("slide_id", "reason"), lines)
