"""``fseg segment`` and ``fseg demo``."""

import logging
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fseg_jax.cli.options import (
    SLIDE,
    artefacts_option,
    batching_options,
    choose_encoder,
    combine,
    encoder_options,
    encoder_or_codebook_options,
    form_options,
    json_option,
    method_options,
    names_option,
    output_option,
    overwrite_option,
    pop_form,
    pop_tissue_setting,
    seed_option,
    stain_normalization_option,
    tiling_options,
    tissue_options,
)
from fseg_jax.cli.parameters import WholeNumber
from fseg_jax.cli.progress import Display, show_progress
from fseg_jax.cli.terminal import encode_result, tolerate_failure
from fseg_jax.errors import InputError

if TYPE_CHECKING:
    from fseg_jax.slides.bounds import Frame

_LOG = logging.getLogger(__name__)

DEMO_K, DEMO_SLIDE_K = 2, 8  # its image shows glands and stroma; a third cluster would be of their border
DEMO_MPP = 0.5  # an estimate: nuclei of the colon are some 10 µm long, and some 20 pixels in this image


@click.command()
@click.argument("slides", nargs=-1, required=True, type=SLIDE, metavar="SLIDE...")
@combine(
    output_option(),
    encoder_or_codebook_options,
    method_options,
    names_option,
    form_options,
    tiling_options,
    tissue_options,
    artefacts_option,
    stain_normalization_option,
    seed_option,
    batching_options,
    json_option,
    overwrite_option,
)
def segment(slides: tuple[Path, ...], output: Path, overwrite: bool, as_json: bool, **options: Any) -> int:
    """Segment slides into clusters: labels, outlines for QuPath, a picture, areas.

    Without --codebook, K clusters are fitted on each slide itself, so that clusters of one slide are not
    those of another; with one, a cluster is the same tissue everywhere.

    Slides are segmented one after another. fseg cohort has several in hand, so that no device waits for
    outlines and pictures, and goes on where it ended.
    """
    return _segment(list(slides), output, overwrite, options, as_json)


@click.command()
@click.option(
    "--slide", is_flag=True, help="Segment OpenSlide's test slide, which is downloaded (1.9 MB, CC0)."
)
@click.option(
    "--k",
    type=WholeNumber(1),
    show_default=f"{DEMO_K}, or {DEMO_SLIDE_K} with --slide",
    metavar="K",
    help="Number of clusters.",
)
@combine(output_option(), encoder_options, form_options, overwrite_option)
def demo(slide: bool, output: Path, overwrite: bool, k: int | None, **options: Any) -> int:
    """Segment a colon image that comes with scikit-image: no slide, no download."""
    options["k"] = k or (DEMO_SLIDE_K if slide else DEMO_K)
    if slide:
        from fseg_jax.files.downloads import fetch_test_slide

        return _segment([fetch_test_slide()], output, overwrite, options)
    with resources.as_file(resources.files("skimage.data") / "ihc.png") as image:
        return _segment([image], output, overwrite, options | {"mpp_override": DEMO_MPP, "mpp": DEMO_MPP})


def _segment(
    slides: list[Path], output: Path, overwrite: bool, options: dict[str, Any], as_json: bool = False
) -> int:
    """Segment slides, and return the exit code."""
    with show_progress() as display:
        done, count = _segment_slides(slides, output, overwrite, options, display, as_json)
    if done < count:
        click.echo(f"fseg: {count - done} of {count} slides failed", err=True)
    return 0 if done == count else 2


def _segment_slides(
    slides: list[Path],
    output: Path,
    overwrite: bool,
    options: dict[str, Any],
    display: Display,
    as_json: bool,
) -> tuple[int, int]:
    """Check all slides and options, then segment slide after slide: how many were, and how many there are."""
    from fseg_jax.codebook import Codebook
    from fseg_jax.encoders.load import load_encoder
    from fseg_jax.outputs.cluster_names import load_names, name_clusters
    from fseg_jax.pipeline.image import check_codebook
    from fseg_jax.pipeline.plan import Settings
    from fseg_jax.pipeline.publish import check_outputs
    from fseg_jax.pipeline.segment import output_paths, segment_slide
    from fseg_jax.slides.dicom_series import merge_series
    from fseg_jax.slides.reader import name_outputs, open_slide

    for path in slides:
        if path.suffix.lower() == ".csv":
            raise InputError(f"{path}: a manifest is for fseg cohort: fseg cohort {path} -o {output}")
    tissue, form = pop_tissue_setting(options), pop_form(options)
    slides = merge_series(slides)
    names = [name_outputs(slide) for slide in slides]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(
            f"several slides are called {sorted(repeated)[0]!r}: segment them to different folders"
        )
    names_file = options.pop("names", None)
    cluster_names = load_names(names_file) if names_file else None
    if cluster_names and len(slides) > 1 and options.get("codebook") is None:
        raise InputError(
            "--names: without --codebook each slide has clusters of its own; give a codebook, or one slide"
        )
    for name in names:
        check_outputs(output_paths(name, output), output, overwrite)
    mpp_override: float | None = options.get("mpp_override")
    frame: "Frame" = options.get("frame", "bounds")  # the demo has no such options
    series: int | None = options.get("series")
    readable = []

    def report_failure(path: Path) -> Callable[[str], None]:
        def report(reason: str) -> None:
            if as_json:
                display.print(encode_result(name_outputs(path), None, (), reason))

        return report

    for path in slides:  # mistakes come first; slides are closed again, since there may be thousands
        with tolerate_failure(slides, f"opening {path}", report_failure(path)):
            open_slide(path, mpp_override, frame=frame, series=series).close()
            readable.append(path)
    if len(slides) > 1 and options.get("codebook") is None:
        _LOG.warning(
            "no --codebook: each slide is clustered by itself, and cluster 1 of one is not cluster 1 of "
            "another; fseg fit makes a codebook for all of them"
        )
    if len(slides) > 1 and tissue not in ("find", "all"):
        _LOG.warning(
            "--tissue: %s is taken for all %d slides; a manifest of fseg cohort names a file for each in its "
            "column tissue",
            tissue,
            len(slides),
        )
    display.note("loading the encoder")
    path = options.pop("codebook", None)
    book = None if path is None else Codebook.load(path, options["k"])
    encoder = load_encoder(
        choose_encoder(options.pop("encoder"), book),
        weights=options.pop("weights"),
        dtype=options.pop("dtype"),
    )
    if book is not None:
        check_codebook(book, encoder)
    chosen = {name: value for name, value in options.items() if value is not None}
    settings = Settings(**chosen, tissue=tissue)
    if book is not None:
        name_clusters(cluster_names, book.k)
    else:
        name_clusters(cluster_names, settings.k, "the slide")

    done = 0
    display.expect(len(readable))
    for path in readable:
        with tolerate_failure(slides, f"segmenting {path}", report_failure(path)):
            with open_slide(path, mpp_override, frame=frame, series=series) as slide:
                record = segment_slide(
                    slide,
                    output,
                    encoder,
                    book,
                    settings,
                    names=cluster_names,
                    form=form,
                    overwrite=overwrite,
                    progress=display.begin(slide.name),
                )
            done += 1
            paths = [str(path) for path in output_paths(slide.name, output)]
            png = output / f"{slide.name}.png"
            display.print(encode_result(slide.name, record, paths) if as_json else png)
            _LOG.info("%s: %s tiles, seconds: %s", slide.name, record["tiles"], record["seconds"])
    return done, len(slides)
