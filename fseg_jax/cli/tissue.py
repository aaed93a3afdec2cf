"""``fseg tissue``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fseg_jax.cli.options import (
    SLIDE,
    combine,
    frame_option,
    mpp_override_option,
    output_option,
    overwrite_option,
    series_option,
)
from fseg_jax.cli.progress import show_progress
from fseg_jax.cli.terminal import tolerate_failure
from fseg_jax.errors import InputError

if TYPE_CHECKING:
    from fseg_jax.slides.bounds import Frame


@click.command()
@click.argument("slides", nargs=-1, required=True, type=SLIDE, metavar="SLIDE...")
@combine(
    output_option(),
    mpp_override_option("Resolution of the slide in µm per pixel, instead of what its file says."),
    frame_option,
    series_option,
    overwrite_option,
)
def tissue(
    slides: tuple[Path, ...],
    output: Path,
    mpp_override: float | None,
    frame: "Frame",
    series: int | None,
    overwrite: bool,
) -> int:
    """Find the tissue of slides, and ink, folds and what is out of focus, without an encoder.

    Writes a picture, outlines that QuPath edits and the other commands take back with --tissue, and areas.
    """
    from fseg_jax.pipeline.publish import check_outputs
    from fseg_jax.pipeline.tissue_files import list_tissue_paths, write_tissue_files
    from fseg_jax.slides.dicom_series import merge_series
    from fseg_jax.slides.reader import name_outputs, open_slide

    paths = merge_series(slides)
    names = [name_outputs(path) for path in paths]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(f"several slides are called {sorted(repeated)[0]!r}: give them different folders")
    for name in names:
        check_outputs(list_tissue_paths(name, output), output, overwrite)
    done = 0
    with show_progress(len(paths)) as display:
        for path in paths:
            with tolerate_failure(paths, f"finding the tissue of {path}"):
                with open_slide(path, mpp_override, frame=frame, series=series) as slide:
                    display.begin(slide.name)
                    display.note("finding the tissue")
                    write_tissue_files(slide, output, mpp_override=mpp_override, overwrite=overwrite)
                done += 1
                display.print(list_tissue_paths(slide.name, output)[-1])
    if done < len(paths):
        click.echo(f"fseg: {len(paths) - done} of {len(paths)} slides failed", err=True)
    return 0 if done == len(paths) else 2
