"""Small cohorts, an engine that runs them in this process, and the hashes of their results."""

import csv
import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import tifffile

from fseg_jax.codebook import Codebook, Provenance, save_all
from fseg_jax.cohort import run
from fseg_jax.cohort.job import Job
from fseg_jax.cohort.manifest import load_manifest
from fseg_jax.cohort.run import Summary, run_cohort
from fseg_jax.encoders.classical import classical
from fseg_jax.pipeline.plan import Settings

# Times and speeds, and the report that shows them: they differ from run to run.
VOLATILE = ("timings", "report.html")


def write_slides(folder: Path, image: np.ndarray, count: int, side: int, mpp: float = 1.0) -> Path:
    """Cut slides out of an image, as TIFFs, and write their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    while len(rows) < count:
        y, x = (int(rng.integers(0, size - side + 1)) for size in image.shape[:2])
        cut = image[y : y + side, x : x + side]
        if cut.mean() > 225:  # hardly any tissue
            continue
        name = f"s{len(rows):02d}"
        per_cm = 10_000 / mpp
        tifffile.imwrite(
            folder / f"{name}.tif",
            cut,
            tile=(128, 128),
            resolution=(per_cm, per_cm),
            resolutionunit="CENTIMETER",
            compression="deflate",
        )
        rows.append((f"S-{len(rows):02d}", f"{name}.tif", "", ("Leeds", "Oslo")[len(rows) % 2]))
    return write_manifest(folder / "manifest.csv", rows)


def write_manifest(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("slide_id", "path", "mpp", "site"), *rows])
    return path


def write_codebook(path: Path, k: int = 4, seed: int = 0) -> Path:
    """Write a codebook of random centres for the classical encoder."""
    centers = np.random.default_rng(seed).gamma(0.5, size=(k, 20)).astype(np.float32)
    save_all(path, {k: Codebook(centers, Provenance(encoder="classical"))})
    return path


def hash_files(place: Path, *, without: Sequence[str] = VOLATILE) -> dict[str, str]:
    """Hash every file of a place, hidden ones too, except those under the names ``without``."""
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    names = [path.relative_to(place).as_posix() for path in files]
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in zip(names, files, strict=True)
        if name.split("/")[0] not in without
    }


class InProcessEngine(AbstractContextManager):
    """An engine that runs slides one after another in this process, in the order of ``order(slides)``."""

    def __init__(self, order=lambda slides: slides):
        self._order = order
        self.slide_ids: list[str] = []  # of the slides that were run

    def __exit__(self, *_):
        pass

    def describe(self, job):
        return classical().card

    def run(self, job, slides, wait_for_others):
        for slide in self._order(list(slides)):
            self.slide_ids.append(slide.slide_id)
            yield run.run_slide(job, slide, wait=wait_for_others)


def make_job(
    place: Path | str, codebook: Path | None, *, feature_options: dict | None = None, **changes
) -> Job:
    """Make a job of the classical encoder; ``changes`` are settings that differ from the tests' own."""
    settings = Settings(**{"tile": 128, "batch": 4, "features": "bfloat16", "smoothing": 0.0} | changes)
    book = Codebook.load(codebook) if codebook else None
    return Job(str(place), "classical", settings, codebook=book, **feature_options or {})


def run_in_process(
    manifest: Path | str,
    place: Path | str,
    codebook: Path | None = None,
    engine=None,
    *,
    changes: dict | None = None,
    feature_options: dict | None = None,
    **options,
) -> tuple[Summary, list[str]]:
    """Run a cohort in this process; return its summary and its messages."""
    messages: list[str] = []
    slides = load_manifest(manifest)
    job = make_job(place, codebook, feature_options=feature_options, **changes or {})
    return run_cohort(slides, job, engine or InProcessEngine(), tell=messages.append, **options), messages
