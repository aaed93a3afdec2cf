"""One slide, end to end: plan → tokens → labels → outputs → record.

``segment_slide`` is the whole way, from top to bottom. After the plan come ``write_labels``, which keeps the
device at work, and ``draw_labelled``, which does not need it. A cohort enters there with a plan of its own,
and has another slide in each (``cohort.run``). A few rows of the slide's tiles are in memory.
Outputs appear under their final names only when all of them are there, the record ``NAME.json`` last.
"""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from fseg_jax.codebook import Codebook
from fseg_jax.encoders.encoder import Encoder, EncoderCard
from fseg_jax.errors import InputError
from fseg_jax.files.partial_folders import open_partial_folder
from fseg_jax.methods import fseg
from fseg_jax.numerics.regions import merge_small_regions, weigh_borders
from fseg_jax.outputs.areas import round_area, write_areas
from fseg_jax.outputs.cluster_names import ClusterNames, name_clusters
from fseg_jax.outputs.colours import format_hex, make_palette
from fseg_jax.outputs.figures import write_overlay
from fseg_jax.outputs.form import DEFAULT_FORM, OutputForm
from fseg_jax.outputs.geojson import write_geojson
from fseg_jax.outputs.labels import LabelWriter, open_labels, read_level_for
from fseg_jax.outputs.picture import Picture
from fseg_jax.outputs.slide_image import SlideImage
from fseg_jax.pipeline.artefact_names import list_outlines
from fseg_jax.pipeline.artefacts import ARTEFACTS, write_artefact_labels
from fseg_jax.pipeline.batching import choose_threads
from fseg_jax.pipeline.border import measure_border_shares
from fseg_jax.pipeline.image import check_codebook
from fseg_jax.pipeline.labels import Shortfall, label_rows
from fseg_jax.pipeline.plan import (
    Plan,
    Settings,
    check_min_region,
    choose_min_region,
    choose_mixtures,
    choose_smoothing,
    lay_out,
)
from fseg_jax.pipeline.publish import Clock, Json, check_outputs, finish, now
from fseg_jax.pipeline.record import (
    Parameters,
    Provenance,
    Segmentation,
    Timing,
    TypicalPlace,
    codebook_facts,
    made_with,
)
from fseg_jax.pipeline.slide_codebook import fit_codebook
from fseg_jax.pipeline.tokens import FeatureSource, encode_tiles, keep_features, open_writer
from fseg_jax.pipeline.typical import Place, TypicalPlaces, read_places, select_largest
from fseg_jax.process import Progress
from fseg_jax.slides.reader import Slide, open_slide

_log = logging.getLogger(__name__)

FORMAT = 4  # of the outputs: raised when what they hold changes
METHOD = "F-SEG (Gildenblat & Hadar 2024, arXiv 2409.05697)"
# The record first: it goes first when outputs are replaced, and comes last.
SUFFIXES = (".json", ".ome.zarr", ".geojson", ".png", ".csv")


class Keep(NamedTuple):
    """How to keep a slide's features beside its outputs.

    Attributes:
        features_hash: Hash of the settings that features depend on.
        dtype: The encoder's dtype.
    """

    features_hash: str
    dtype: str


def output_paths(name: str, out: Path) -> list[Path]:
    """List everything that ``segment_slide`` writes for a slide of this name, its record first."""
    return [out / f"{name}{suffix}" for suffix in SUFFIXES]


def segment_slide(
    slide: Slide | str | Path,
    out: str | Path,
    encoder: Encoder,
    codebook: Codebook | None = None,
    settings: Settings | None = None,
    *,
    names: ClusterNames | None = None,
    form: OutputForm = DEFAULT_FORM,
    overwrite: bool = False,
    progress: Progress = lambda phase, done, total: None,
) -> Json:
    """Segment a slide into the clusters of a codebook, or of one fitted on itself, and write all outputs.

    Writes ``out/NAME.ome.zarr``, ``.geojson``, ``.png``, ``.csv`` and, last, ``.json``.

    Args:
        slide: An open slide, or a path that is opened with the settings' ``mpp_override``, ``frame``
            and ``series``.
        out: The folder to write to.
        encoder: The encoder.
        codebook: The codebook; None fits one on the slide.
        settings: How to segment.
        names: Names and colours of clusters; those without are called ``cluster N``.
        form: How outputs are written.
        overwrite: Whether outputs that exist are replaced.
        progress: Called as the work goes on.

    Returns:
        What the record ``NAME.json`` holds.

    Raises:
        InputError: Something that was given is wrong, a tile that cannot be decoded included. Nothing is
            written then.
    """
    settings = settings or Settings()
    if not isinstance(slide, Slide):
        with open_slide(slide, settings.mpp_override, frame=settings.frame, series=settings.series) as opened:
            return segment_slide(
                opened,
                out,
                encoder,
                codebook,
                settings,
                names=names,
                form=form,
                overwrite=overwrite,
                progress=progress,
            )
    out = Path(out)
    card = encoder.card
    fseg.check_options(settings.mode, settings.resize)
    if codebook is not None:
        check_codebook(codebook, encoder)
    if codebook is not None:
        name_clusters(names, codebook.k)
    else:
        name_clusters(names, settings.k, "the slide")
    paths = output_paths(slide.name, out)
    check_outputs(paths, out, overwrite)
    clock = Clock()
    plan = lay_out(slide, card, settings, codebook)
    clock.lap("tissue")
    source = encode_tiles(slide, plan, encoder, settings)
    with open_partial_folder(slide.name, out) as folder:
        labelled = write_labels(
            folder,
            plan,
            source,
            card,
            codebook,
            settings,
            names=names,
            form=form,
            clock=clock,
            progress=progress,
        )
        result = draw_labelled(
            folder, labelled, settings, slide=slide, form=form, clock=clock, progress=progress
        )
        return finish(folder, result.to_json(), paths)


class Labelled(NamedTuple):
    """A slide whose labels are written, and all that is needed to draw it.

    Attributes:
        plan: The slide laid out.
        provenance: All that affects the result, and what made it.
        clusters: Names of the clusters.
        colours: uint8 (k, 3), their colours.
        image: The OME-Zarr, whose label images are written.
        pixels: int64 (k + 1,), pixels of each label.
        artefacts_mm2: Areas of the artefacts by their names; None: they are not known.
        shortfall: What the labels lack.
        typical: The most typical places of each cluster.
    """

    plan: Plan
    provenance: Provenance
    clusters: tuple[str, ...]
    colours: UInt8[np.ndarray, "k 3"]
    image: SlideImage
    pixels: Int64[np.ndarray, " labels"]
    artefacts_mm2: dict[str, float] | None
    shortfall: Shortfall
    typical: TypicalPlaces


def write_labels(
    folder: Path,
    plan: Plan,
    source: FeatureSource,
    card: EncoderCard,
    codebook: Codebook | None,
    settings: Settings,
    *,
    names: ClusterNames | None = None,
    form: OutputForm = DEFAULT_FORM,
    first_colour: int = 0,
    keep: Keep | None = None,
    clock: Clock,
    progress: Progress,
) -> Labelled:
    """Label a slide that is laid out, and write its labels to a folder: what keeps the device at work.

    Args:
        folder: An empty folder.
        plan: The slide laid out.
        source: The features of its tiles.
        card: The encoder that they are of.
        codebook: The codebook; None fits one on the slide.
        settings: How to segment.
        names: Names and colours of clusters.
        form: How outputs are written.
        first_colour: Place in the palette of cluster 1's colour, where no names are given.
        keep: How to keep the features there too; None does not.
        clock: Started when the slide was laid out.
        progress: Called as the work goes on.
    """
    check_min_region(plan, settings)
    if settings.artefacts == "drop" and not plan.tissue.drop_artefacts().mask.any():
        raise InputError(
            f"{plan.slide.path}: all of its tissue is ink, folded or out of focus; --artefacts keep labels it"
        )
    if codebook is None:
        codebook = fit_codebook(plan, source, card, settings, progress)
        clock.lap("codebook")
    k, name = codebook.k, plan.name
    clusters, colours = name_clusters(names, k)
    if names is None:
        colours = make_palette(k, first_colour)
    provenance = _provenance(plan, card, codebook, settings)
    image = SlideImage(folder / f"{name}.ome.zarr", form)
    shape = (plan.grid.height, plan.grid.width)
    shortfall = Shortfall()
    writer = LabelWriter(
        image.clusters,
        shape,
        plan.mpp,
        k,
        names=clusters,
        colours=colours,
        provenance=provenance.to_json(),
        slide_mpp=plan.slide.mpp,
        source=image.source,
        sharded=form.shards,
    )
    keeper = None
    if keep is not None:
        keeper = open_writer(folder, plan, card, keep.features_hash, keep.dtype)
        source = keep_features(source, keeper)
    min_region = provenance.parameters.min_region
    typical = TypicalPlaces(plan)
    labels = label_rows(plan, source, card, codebook, settings, progress, shortfall, typical)
    least = math.ceil(min_region / plan.mpp**2)
    for rows in merge_small_regions(labels, least, weigh_borders(codebook.centers)):
        writer.append(rows)
    if keeper is not None:
        keeper.close()
    artefacts_mm2 = write_artefact_labels(
        image.locate(ARTEFACTS),
        plan,
        provenance.to_json(),
        source=image.source,
        sharded=form.shards,
    )
    pixels = writer.close()
    clock.lap("segmentation")
    return Labelled(plan, provenance, clusters, colours, image, pixels, artefacts_mm2, shortfall, typical)


def draw_labelled(
    folder: Path,
    labelled: Labelled,
    settings: Settings,
    *,
    slide: Slide | None,
    form: OutputForm = DEFAULT_FORM,
    clock: Clock,
    progress: Progress,
) -> Segmentation:
    """Draw a slide whose labels are written: all outputs but the record, on the host alone.

    Args:
        folder: The folder that holds the labels.
        labelled: The slide.
        settings: How it was segmented.
        slide: The slide, of which the picture shows typical places; None: it is not at hand.
        form: How outputs are written.
        clock: Started when the labels were written.
        progress: Called as the work goes on.
    """
    plan, clusters, colours, pixels = labelled.plan, labelled.clusters, labelled.colours, labelled.pixels
    parameters, card = labelled.provenance.parameters, labelled.provenance.encoder
    name, labels_path = plan.name, labelled.image.clusters
    progress("outlines and pictures", 0, 0)
    beside = () if labelled.artefacts_mm2 is None else (ARTEFACTS,)
    areas = pixels * plan.mpp**2 * 1e-6
    uncovered = labelled.shortfall.pixels * plan.mpp**2 * 1e-6
    _warn_of_shortfall(plan, labelled.shortfall.tokens, uncovered)
    step_mm2 = (card.stride * plan.mpp) ** 2 * 1e-6
    typical = labelled.typical
    places = select_largest(typical.finish(), pixels)
    with ThreadPoolExecutor(2, thread_name_prefix="fseg-outputs") as pool:
        outlines = pool.submit(
            write_geojson,
            folder / f"{name}.geojson",
            labels_path,
            slide_mpp=plan.slide.mpp,
            names=form.name_classes(clusters, name),
            colours=colours,
            outlines=form.outlines,
            min_area_um2=parameters.min_region,
            frame=plan.slide.frame_to_json(),
        )
        image = pool.submit(
            labelled.image.close, plan.image, plan.image_mpp, slide_mpp=plan.slide.mpp, beside=beside
        )
        border_shares = measure_border_shares(open_labels(labels_path), plan.tissue).round(4).tolist()
        write_areas(
            folder / f"{name}.csv",
            clusters,
            pixels,
            plan.mpp,
            step_mm2=step_mm2,
            colours=colours,
            border_shares=border_shares,
        )
        tiles = (
            {}
            if slide is None
            else read_places(slide, places, typical.field, choose_threads(settings.threads))
        )
        progress("outlines and pictures", 0, 0)
        picture = Picture(
            title=f"{name} · {card.name} · k = {len(clusters)}",
            image=plan.image,
            mpp=plan.image_mpp,
            labels=read_level_for(labels_path, plan.image.shape[0]),
            areas_mm2=areas[1:].tolist(),
            step_mm2=step_mm2,
            border_shares=border_shares,
            tiles=tiles,
            field=typical.field,
            outlines=list_outlines(plan.tissue),
        )
        write_overlay(folder / f"{name}.png", picture, names=clusters, colours=colours)
        outlines.result()
        image.result()
    clock.lap("outputs")
    tile_count = int(plan.tissue_tiles.sum())
    return Segmentation(
        provenance=labelled.provenance,
        form=form,
        tissue_mm2=round_area(areas[1:].sum(), step_mm2),
        areas_mm2={name: round_area(area, step_mm2) for name, area in zip(clusters, areas[1:], strict=True)},
        area_step_mm2=float(f"{step_mm2:.6g}"),
        colours={name: format_hex(colour) for name, colour in zip(clusters, colours, strict=True)},
        border_share=dict(zip(clusters, border_shares, strict=True)),
        typical={
            clusters[cluster - 1]: [_locate_place(place, plan) for place in own]
            for cluster, own in places.items()
        },
        artefacts_mm2=labelled.artefacts_mm2,
        uncovered_mm2=round_area(uncovered, step_mm2),
        tokens_not_converged=labelled.shortfall.tokens,
        tiles=tile_count,
        outlines=outlines.result(),
        timing=Timing(clock.laps, round(tile_count / clock.laps["segmentation"], 2), now()),
    )


def _locate_place(place: Place, plan: Plan) -> TypicalPlace:
    """Locate a typical place in pixels of the slide's finest level."""
    return TypicalPlace(
        x=round(place.x / plan.slide.mpp, 1), y=round(place.y / plan.slide.mpp, 1), share=place.share
    )


def _warn_of_shortfall(plan: Plan, tokens: int, uncovered_mm2: float) -> None:
    """Warn where tissue has no label, or one of a solver that had to stop."""
    if uncovered_mm2:
        _log.warning(
            "%s: %.3g mm² of tissue have no weight in any cluster, and are background",
            plan.name,
            uncovered_mm2,
        )
    if tokens:
        _log.warning("%s: the factorization of %d tokens of tissue has not converged", plan.name, tokens)


def _provenance(plan: Plan, card: EncoderCard, codebook: Codebook, settings: Settings) -> Provenance:
    """Collect all that affects the result, and what made it."""
    mixtures = choose_mixtures(settings, codebook)
    return Provenance(
        format=FORMAT,
        method=METHOD,
        **vars(made_with()),
        slide=plan.slide,
        encoder=card,
        codebook=codebook_facts(codebook),
        parameters=Parameters(
            mode=settings.mode,
            resize=settings.resize,
            concepts=settings.concepts if settings.mode == "assign" else None,
            mpp=plan.mpp,
            tile=plan.grid.tile,
            halo=plan.grid.halo,
            tissue=settings.tissue,
            stain_gains=plan.gains,
            artefacts=settings.artefacts,
            smoothing=choose_smoothing(settings, plan.mpp, card.stride),
            min_region=choose_min_region(settings, plan.mpp, card.stride),
            mixtures=0 if mixtures is None else len(mixtures),
            seed=settings.seed,
            mpp_override=settings.mpp_override,
            features=settings.features,
        ),
    )
