"""``fseg export``."""

from pathlib import Path

import click

from fseg_jax.cli.options import PATH, overwrite_option
from fseg_jax.errors import InputError


@click.command()
@click.argument("folder", type=PATH)
@click.option("--slide", metavar="NAME", help="Slide to export, where the folder holds several.")
@click.option(
    "--spatialdata",
    type=PATH,
    metavar="FILE.zarr",
    help="Write SpatialData: image, labels, regions and patches with their tables, in µm.",
)
@click.option(
    "--statistics",
    type=PATH,
    metavar="FOLDER",
    help="Write tables of clusters, of pairs of them (interfaces, neighbours, distances) and of regions, of "
    "all slides, and a plot.",
)
@click.option(
    "--tissuumaps",
    type=PATH,
    metavar="FILE.tmap",
    help="Write a project of TissUUmaps, and its files beside it.",
)
@click.option(
    "--patches",
    type=PATH,
    metavar="FILE",
    help="Write the features of patches as TRIDENT does (.h5), or as .parquet.",
)
@click.option(
    "--tokens",
    type=PATH,
    metavar="FILE",
    help="Write the dense tokens that fseg cohort --keep-features keeps, as .h5 or .parquet.",
)
@overwrite_option
def export(
    folder: Path,
    slide: str | None,
    spatialdata: Path | None,
    statistics: Path | None,
    tissuumaps: Path | None,
    patches: Path | None,
    tokens: Path | None,
    overwrite: bool,
) -> None:
    """Write results of FOLDER as other programs read them."""
    from fseg_jax.pipeline.export import (
        export_patches,
        export_spatialdata,
        export_statistics,
        export_tissuumaps,
    )

    if not any((spatialdata, statistics, tissuumaps, patches, tokens)):
        raise InputError("say what: --spatialdata, --statistics, --tissuumaps, --patches or --tokens")
    if spatialdata:
        export_spatialdata(folder, slide, spatialdata, overwrite=overwrite)
        click.echo(spatialdata)
    if statistics:
        export_statistics(folder, slide, statistics, overwrite=overwrite)
        click.echo(statistics)
    if tissuumaps:
        export_tissuumaps(folder, slide, tissuumaps, overwrite=overwrite)
        click.echo(tissuumaps)
    if patches:
        export_patches(folder, slide, patches, overwrite=overwrite)
        click.echo(patches)
    if tokens:
        export_patches(folder, slide, tokens, tokens=True, overwrite=overwrite)
        click.echo(tokens)
