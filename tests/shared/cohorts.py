"""Small cohorts to run, and what can be said of a place for results."""

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

# Made anew by every run: when and how fast, and the page that says so.
OF_THE_RUN = ("timings", "report.html")


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
    """Centres of the classical encoder's width, apart from each other."""
    centers = np.random.default_rng(seed).gamma(0.5, size=(k, 20)).astype(np.float32)
    save_all(path, {k: Codebook(centers, Provenance(encoder="classical"))})
    return path


def contents(place: Path, *, without: Sequence[str] = OF_THE_RUN) -> dict[str, str]:
    """The hash of every file, what is hidden too, but for what differs from run to run."""
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    names = [path.relative_to(place).as_posix() for path in files]
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in zip(names, files, strict=True)
        if name.split("/")[0] not in without
    }


class InProcess(AbstractContextManager):
    """An engine that runs slides here and now, in the order that is asked for."""

    def __init__(self, order=lambda slides: slides):
        self._order = order
        self.ran: list[str] = []

    def __exit__(self, *_):
        pass

    def describe(self, job):
        return classical().card

    def run(self, job, slides, wait_for_others):
        for slide in self._order(list(slides)):
            self.ran.append(slide.slide_id)
            yield run.run_slide(job, slide, wait=wait_for_others)


def job_for(place: Path | str, codebook: Path | None, *, kept: dict | None = None, **changes) -> Job:
    """A job of the classical encoder; ``kept`` are its options on features, ``changes`` its settings."""
    settings = Settings(**{"tile": 128, "batch": 4, "features": "bfloat16"} | changes)
    book = Codebook.load(codebook) if codebook else None
    return Job(str(place), "classical", settings, codebook=book, **kept or {})


def cohort(
    manifest: Path | str,
    place: Path | str,
    codebook: Path | None = None,
    engine=None,
    *,
    changes: dict | None = None,
    kept: dict | None = None,
    **options,
) -> tuple[Summary, list[str]]:
    """Run a cohort in this process: its summary, and what was told."""
    told: list[str] = []
    slides = load_manifest(manifest)
    job = job_for(place, codebook, kept=kept, **changes or {})
    return run_cohort(slides, job, engine or InProcess(), tell=told.append, **options), told
