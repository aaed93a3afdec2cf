"""``fseg names``."""

from pathlib import Path

import click

from fseg_jax.cli.options import PATH
from fseg_jax.cli.progress import show_progress
from fseg_jax.cli.terminal import say


@click.command()
@click.argument("outputs", metavar="OUT")
@click.argument("names", type=PATH, metavar="NAMES.csv")
@click.option("--slide", metavar="NAME", help="Rename the clusters of this slide only.")
@click.option("--reset", is_flag=True, help='Call clusters that NAMES.csv does not name "cluster N" again.')
def names(outputs: str, names: Path, slide: str | None, reset: bool) -> int:
    """Rename the clusters of finished slides, without segmenting them again.

    OUT is the folder of fseg segment or fseg cohort, or the bucket of a cohort. NAMES.csv has the columns
    cluster, name and, if wanted, colour (#rrggbb); clusters that it does not name keep name and colour. All
    outputs take the names: picture, outlines, labels, tables, records and report.
    """
    from fseg_jax.cohort.rename import rename_outputs
    from fseg_jax.outputs.cluster_names import load_names

    loaded = load_names(names)
    with show_progress() as display:
        count = rename_outputs(
            outputs,
            loaded,
            slide,
            reset=reset,
            progress=lambda done, total: display.update("renaming", done, total),
        )
    say(f"{outputs}: clusters of {count} {'slide' if count == 1 else 'slides'} renamed")
    return 0
