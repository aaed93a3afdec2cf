"""The two papers' experiments from data to files: protocols compute, reports write."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.encoder import Encoder
from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.datasets import Dataset
from fseg_jax.evaluation.data.encoded_dataset import encode_dataset
from fseg_jax.evaluation.protocols import fseg_experiment, sic_experiment
from fseg_jax.evaluation.protocols.judging import COLOUR, compare_with_colour
from fseg_jax.evaluation.protocols.segmented_panels import segment_panels
from fseg_jax.evaluation.report import panels, plots, sic_report, tables
from fseg_jax.evaluation.results import EvaluationRow, SicRow
from fseg_jax.evaluation.settings import EvaluationSettings, SicSettings
from fseg_jax.files.partial_folders import recover_outputs
from fseg_jax.pipeline.publish import check_outputs, together
from fseg_jax.process import Progress

RECORD = "evaluation.json"


def evaluate_fseg(
    dataset: Dataset,
    encoders: Sequence[Encoder],
    settings: EvaluationSettings = EvaluationSettings(),  # noqa: B008  frozen
    *,
    out: Path,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[EvaluationRow]:
    """Evaluate encoders on a dataset as the F-SEG paper does, and write tables and figures to ``out``.

    Features lie in a hidden folder in ``out`` until the end. ``evaluation.json`` is written last.

    Raises:
        InputError: Settings that cannot be, before anything is encoded, or results that are there already.
    """
    started = time.time()
    settings = replace(settings, k=tuple(sorted(set(settings.k))))
    fseg_experiment.check_settings(dataset, encoders, settings)
    out = Path(out)
    recover_outputs("evaluation", out)
    if (out / RECORD).exists() and not overwrite:
        raise InputError(f"{out / RECORD} exists: choose another folder, or --overwrite")
    if all(encoder.card.name != COLOUR for encoder in encoders):
        encoders = [*encoders, classical()]
    rows: list[EvaluationRow] = []
    with together(RECORD, out) as folder:
        for number, encoder in enumerate(encoders):
            with tempfile.TemporaryDirectory(dir=folder, prefix=".features-") as features:
                encoded = encode_dataset(
                    dataset,
                    encoder,
                    Path(features),
                    scale=fseg_experiment.choose_scale(dataset, encoder, settings),
                    tile=settings.tile,
                    stain_normalization=settings.stain_normalization,
                    progress=progress,
                )
                rows += fseg_experiment.score_encoder(dataset, encoded, settings, progress)
                if number == 0 and settings.panels:
                    segmented = segment_panels(dataset, encoded, settings)
                    panels.write_panels(folder / "panels", segmented, dataset.categories)
        rows = compare_with_colour(rows, settings.seed)
        tables.write_tables(folder, dataset, rows)
        plots.write_matching(folder, dataset, rows)
        plots.write_probing(folder, dataset, rows)
        cards = [encoder.card for encoder in encoders]
        tables.write_record(folder, dataset, cards, settings, rows, seconds=time.time() - started)
    return rows


def evaluate_sic(
    slides: Path,
    encoders: Sequence[Encoder],
    settings: SicSettings = SicSettings(),  # noqa: B008  frozen
    *,
    out: Path,
    overwrite: bool = False,
    progress: Callable[[str], Progress] = lambda name: lambda phase, done, total: None,
) -> list[SicRow]:
    """Evaluate encoders on slides with masks as the SIC paper does, and write table and figure to ``out``.

    Embeddings stay in ``out/embeddings/ENCODER`` (``fseg seed`` takes them), and are made again only where
    slide, encoder or the settings of the patches have changed. Writes results.csv and .md, slides.csv (a line
    a run), figure_sic.png and .svg, and evaluation.json last.

    Args:
        slides: A folder of slides with masks.
        encoders: What to compare.
        settings: What to try.
        out: Where results are written.
        overwrite: Whether they may replace others.
        progress: Returns what is told of a slide's progress, given the slide's name.

    Raises:
        InputError: Settings that cannot be, before anything is encoded, results that are there already, or
            no slide with patches of both classes.
    """
    started = time.time()
    settings = replace(settings, clicks=tuple(sorted(set(settings.clicks))))
    sic_experiment.check_settings(encoders, settings)
    check_outputs([out / RECORD], out, overwrite)
    result = sic_experiment.run_experiment(slides, encoders, settings, out / "embeddings", progress)
    cards = [encoder.card for encoder in encoders]
    with together(RECORD, out) as folder:
        sic_report.write_report(folder, slides.name, result, cards, settings, seconds=time.time() - started)
    return result.rows
