"""What reads each sample, below the net of the command line: only an ``InputError`` may come out of it."""

import contextlib
import io
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import samples
import tifffile

from fseg_jax import cli
from fseg_jax.cam import classifier_training
from fseg_jax.cam.classifier_file import load_classifier, read_state
from fseg_jax.cam.image_folder import read_image
from fseg_jax.cam.image_labels import read_labels
from fseg_jax.cam.score_masks import score_folder
from fseg_jax.codebook import load_all
from fseg_jax.cohort.job import adopt_kept_settings, hash_feature_settings, load_card, resolve_settings
from fseg_jax.cohort.manifest import load_manifest
from fseg_jax.cohort.run import Outcome, run_cohort
from fseg_jax.cohort.sample_folder import prepare_folder
from fseg_jax.cohort.sample_rows import SampleRows
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.trained import load_trained
from fseg_jax.encoders.weights.checkpoint import open_checkpoint
from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.layouts import open_dataset
from fseg_jax.files.storage import open_storage
from fseg_jax.outputs.embeddings import open_embeddings
from fseg_jax.outputs.labels import open_labels, read_level_for
from fseg_jax.pipeline.clicks import SeedSettings
from fseg_jax.pipeline.seed_file import read_seed_file
from fseg_jax.pipeline.tokens import open_kept
from fseg_jax.pretraining import checkpoint, simclr
from fseg_jax.slides.reader import Slide, open_slide, read_thumbnail
from fseg_jax.slides.tissue import load_tissue
from fseg_jax.viewer import annotation
from fseg_jax.viewer.session import SlideSession


class Idle(contextlib.AbstractContextManager):
    """An engine that runs nothing: what is read of a cohort's place is what was there."""

    def __exit__(self, *_: Any) -> None:
        pass

    def describe(self, job: Any) -> Any:
        return classical().card

    def run(self, job: Any, slides: Any, wait_for_others: bool) -> Any:
        return (Outcome(slide.slide_id, "failed", "not run") for slide in slides)


def slide(path: Path) -> None:
    with open_slide(path) as opened:
        read_thumbnail(opened, 200)
        opened.read_scanned(4 * opened.mpp)
        opened.read(0, 0, 64, 64, opened.mpp)
        opened.read(-10, 30, 64, 64, 2 * opened.mpp)


@cache
def _whole_slide() -> Slide:
    path = Path(_scratch()) / "whole.tif"
    resolution = {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, samples.picture(), tile=(64, 64), **resolution)
    return open_slide(path)


@cache
def _scratch() -> str:
    import tempfile

    return tempfile.mkdtemp()


def tissue(path: Path) -> None:
    load_tissue(path, _whole_slide())


def seeds(path: Path) -> None:
    read_seed_file(path)
    annotation.read_annotation(path)


def published(path: Path) -> None:
    for tensor in open_checkpoint(path).values():
        np.asarray(tensor)


@cache
def _learner() -> Any:
    return classifier_training.make_trainer(samples.LEARNER, 2)


@cache
def _begin() -> Any:
    return simclr.make_trainer(samples.TRAINED, samples.TRUNK).begin


def unfinished_encoder(path: Path) -> None:
    checkpoint.load_checkpoint(path, _begin(), {"settings": {"steps": 2}})


def cohort(folder: Path) -> None:
    slides = load_manifest(str(folder / "slides.csv"), slides_needed=False)
    out = folder / "out"
    made = samples.job(out)
    kept = adopt_kept_settings(made.__class__(**{**vars(made), "features": str(out), "keep_features": False}))
    settings = resolve_settings(slides[0], kept)
    with contextlib.suppress(InputError):
        hash_ = hash_feature_settings(kept, load_card(kept), settings)
        plan, tokens = open_kept(open_storage(str(out)), "A", settings, hash_)
        for _ in tokens(plan.tiles()):
            pass
    with contextlib.suppress(InputError):
        _levels(out / "A.ome.zarr")
    run_cohort(slides, made, Idle())


def _levels(path: Path) -> None:
    pyramid = open_labels(path)
    for level in range(len(pyramid.levels)):
        pyramid.read(level)
    read_level_for(path, 64)


def sampled(folder: Path) -> None:
    prepare_folder(folder / "features", classical().card, samples.SAMPLED, 1)
    rows = SampleRows(folder / "features", ["A"])
    rows[:]
    rows.read_thumbnails(np.arange(1))


def embeddings(folder: Path) -> None:
    with contextlib.suppress(InputError):
        open_embeddings(folder / "a.embeddings.zarr").read()
    SlideSession(folder, "a", None, SeedSettings()).close()


def dataset(folder: Path) -> None:
    images = open_dataset(folder)
    for item in images.items:
        images.read_image(item)
        images.read_truth(item)


def labelled(folder: Path) -> None:
    images = read_labels(folder, folder / "labels.csv", "polyp")
    for path in images.files:
        read_image(path)


def masks(folder: Path) -> None:
    score_folder(folder / "masks", folder / "truth")


def program(*arguments: str) -> Callable[[Path], None]:
    """The command line with a file: one line and exit code 2, or none and 0, and no fault of the program."""

    def run(path: Path) -> None:
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                cli.main([a.format(path=path, out=path.parent / "out") for a in arguments])
        except SystemExit as ended:
            if ended.code not in (0, 1, 2) or "fault of the program" in err.getvalue():
                raise RuntimeError(f"exit code {ended.code}: {err.getvalue()}") from None
        finally:
            shutil.rmtree(path.parent / "out", ignore_errors=True)

    return run


# The reader of each sample; a second one of the same sample has a name after "by".
READERS: dict[str, Callable[[Path], Any]] = {
    "manifest": lambda path: load_manifest(str(path)),
    "tissue outline": tissue,
    "tissue mask, PNG": tissue,
    "tissue mask, TIFF": tissue,
    "tissue mask, JPEG": tissue,
    "seeds": seeds,
    "slide, tiled TIFF": slide,
    "slide, striped TIFF": slide,
    "slide, deflated TIFF": slide,
    "slide, JPEG in TIFF": slide,
    "slide, OME-TIFF": slide,
    "slide, SVS": slide,
    "slide, OME-Zarr": slide,
    "slide, zipped OME-Zarr": slide,
    "slide, DICOM": slide,
    "image, PNG": read_image,
    "image, JPEG": read_image,
    "codebook": load_all,
    "codebook, joblib": load_all,
    "encoder": load_trained,
    "published checkpoint": published,
    "published checkpoint, torch's": published,
    "published checkpoint, old torch's": published,
    "classifier": load_classifier,
    "unfinished classifier": lambda path: read_state(path, _learner(), "of this training"),
    "unfinished encoder": unfinished_encoder,
    "cohort": cohort,
    "sampled features": sampled,
    "embeddings": embeddings,
    "dataset": dataset,
    "image labels": labelled,
    "masks to score": masks,
    "codebook by fseg codebook show": program("codebook", "show", "{path}"),
    "encoder by fseg encoders": program("encoders", "{path}"),
    "codebook, joblib by fseg codebook import": program("codebook", "import", "{path}", "-o", "{out}"),
    "slide, tiled TIFF by fseg segment": program(
        *("segment", "{path}", "-o", "{out}", "--encoder", "classical", "--k", "2", "--tile", "64")
    ),
}
