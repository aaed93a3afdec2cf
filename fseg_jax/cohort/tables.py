"""What is written of a cohort as a whole: ``failures.csv``, ``areas.csv`` and ``report.html``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fseg_jax.cohort.job import Job, hash_settings, list_shared_dependencies, resolve_settings
from fseg_jax.cohort.manifest import ManifestSlide
from fseg_jax.cohort.records import (
    FAILURES,
    Failure,
    SlideRecord,
    neighbours_key,
    read_timing,
    record_key,
    thumbnail_key,
    timing_key,
)
from fseg_jax.cohort.typical import read_typical
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.files.storage import Storage
from fseg_jax.outputs import report
from fseg_jax.outputs.csv_table import format_csv
from fseg_jax.outputs.neighbours import Neighbours, decode_neighbours
from fseg_jax.outputs.report import SlideTotals, make_own_label

_FAILURE_COLUMNS = ("slide_id", "path", "reason")
_OWN_COLUMNS = ("slide_id", "site", "split", "cluster", "area_mm2", "share_of_tissue")


def write_tables(
    storage: Storage, job: Job, card: EncoderCard, slides: Sequence[ManifestSlide], *, is_whole: bool
) -> None:
    """Write ``failures.csv``, ``areas.csv`` and, once every slide is done or has failed, ``report.html``.

    Slides of other settings are in none of them, nor are outdated results that could not be made again.
    Other shards may finish at the same moment: the files are read and written again until nothing changes.

    Args:
        storage: The cohort's place.
        job: The run.
        card: The encoder's card.
        slides: All slides of the manifest.
        is_whole: Whether this run did all of them, not a shard.
    """
    before = None
    while True:
        failure_files = storage.read_all(storage.list_keys(FAILURES))
        record_files = storage.read_all([record_key(slide.slide_id) for slide in slides])
        now = (sorted(failure_files.items()), sorted(record_files.items()))
        if now == before:
            return
        before = now
        failures = [f for _, data in sorted(failure_files.items()) if (f := Failure.from_json(data))]
        outdated = {failure.slide_id for failure in failures if failure.outdated}
        totals = {
            slide.slide_id: each
            for slide in slides
            if slide.slide_id not in outdated
            and (each := _read_totals(record_files.get(record_key(slide.slide_id)), job, card, slide))
        }
        missing = {slide.slide_id for slide in slides} - totals.keys()
        failed = [
            {name: getattr(failure, name) for name in _FAILURE_COLUMNS}
            for failure in failures
            if failure.slide_id in missing
        ]
        storage.write("failures.csv", _encode_table(_FAILURE_COLUMNS, failed))
        if not is_whole and len(totals) + len(failed) < len(slides):
            continue  # the last shard writes the rest
        encode_areas = _encode_areas if job.codebook else _encode_own_areas
        storage.write("areas.csv", encode_areas([s for s in slides if s.slide_id in totals], totals))
        storage.write("report.html", _render_report(storage, job, card, slides, totals, failed).encode())


def _read_totals(data: bytes | None, job: Job, card: EncoderCard, slide: ManifestSlide) -> SlideTotals | None:
    """Read what is shown of a slide; None where its results are of other settings, or damaged."""
    record = SlideRecord.from_json(data)
    if record is None or record.settings_hash != hash_settings(job, card, resolve_settings(slide, job)):
        return None
    return record.totals


def _render_report(
    storage: Storage,
    job: Job,
    card: EncoderCard,
    slides: Sequence[ManifestSlide],
    totals: Mapping[str, SlideTotals],
    failures: Sequence[dict[str, str]],
) -> str:
    timing_files = storage.read_all([timing_key(slide_id) for slide_id in totals])
    pictures = storage.read_all([thumbnail_key(slide_id) for slide_id in totals])

    def show(slide: ManifestSlide) -> report.Slide:
        return report.Slide(
            slide.slide_id,
            slide.site,
            slide.split,
            totals.get(slide.slide_id),
            read_timing(timing_files.get(timing_key(slide.slide_id))),
            pictures.get(thumbnail_key(slide.slide_id)),
        )

    return report.render_report(
        slides=[show(slide) for slide in slides],
        failures=failures,
        settings=asdict(list_shared_dependencies(job, card)),
        encoder=card.to_json(),
        codebook=asdict(job.codebook.provenance) if job.codebook else None,
        typical=read_typical(storage, totals) if job.codebook else {},
        neighbours=_read_neighbours(storage, totals) if job.codebook else [],
    )


def _read_neighbours(storage: Storage, totals: Mapping[str, SlideTotals]) -> list[Neighbours]:
    """Read how clusters lie to each other on slides; slides of older versions do not say."""
    files = storage.read_all([neighbours_key(slide_id) for slide_id in totals])
    return [each for _, data in sorted(files.items()) if (each := decode_neighbours(data))]


def _encode_areas(slides: Sequence[ManifestSlide], totals: Mapping[str, SlideTotals]) -> bytes:
    """Encode ``areas.csv`` of slides that share a codebook: a line a slide, a column a cluster."""
    clusters = list(dict.fromkeys(name for slide in totals.values() for name in slide.areas_mm2))
    rows = [
        {
            "slide_id": slide.slide_id,
            "site": slide.site,
            "split": slide.split,
            "tissue_mm2": totals[slide.slide_id].tissue_mm2,
            **totals[slide.slide_id].areas_mm2,
        }
        for slide in slides
    ]
    return _encode_table(["slide_id", "site", "split", "tissue_mm2", *clusters], rows)


def _encode_own_areas(slides: Sequence[ManifestSlide], totals: Mapping[str, SlideTotals]) -> bytes:
    """Encode ``areas.csv`` of slides that were each clustered by themselves: a line a cluster.

    No column and no name is common to clusters of two slides, so that nothing lines them up by mistake.
    """
    rows = [
        {
            "slide_id": slide.slide_id,
            "site": slide.site,
            "split": slide.split,
            "cluster": make_own_label(slide.slide_id, label),
            "area_mm2": area,
            "share_of_tissue": f"{area / total:.3f}" if (total := totals[slide.slide_id].tissue_mm2) else "",
        }
        for slide in slides
        for label, area in enumerate(totals[slide.slide_id].areas_mm2.values(), 1)
    ]
    return _encode_table(_OWN_COLUMNS, rows)


def _encode_table(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> bytes:
    return format_csv(columns, rows).encode()
