"""``fseg view``."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fseg_jax.cli.options import PATH, classes_option, distance_option
from fseg_jax.cli.parameters import WholeNumber
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import suggest_names

if TYPE_CHECKING:
    from fseg_jax.numerics.pca import Distance


@click.command()
@click.argument("folder", type=PATH, metavar="OUT")
@click.option("--slide", metavar="NAME", help="Slide to open first, where OUT holds several.")
@click.option(
    "--port",
    type=WholeNumber(1, 65535),
    show_default="5006, or any free one",
    help="Port of the page's address.",
)
@click.option(
    "--slides",
    type=PATH,
    metavar="FOLDER",
    help="Folder of the slide files, if they were moved.",
)
@classes_option
@click.option("--seeds", type=PATH, metavar="FILE", help="Begin with the seeds of this file.")
@distance_option
@click.option("--open", "browser", is_flag=True, help="Open the page in the browser.")
def view(
    folder: Path,
    slide: str | None,
    port: int | None,
    slides: Path | None,
    classes: str | None,
    seeds: Path | None,
    distance: "Distance",
    browser: bool,
) -> int:
    """Look at a slide's segmentation, and segment it by clicks, in a browser on this machine."""
    check_packages()
    from fseg_jax.pipeline.clicks import SeedSettings
    from fseg_jax.viewer.folder import Folder
    from fseg_jax.viewer.server import serve

    settings = SeedSettings(classes=tuple(classes.split(",")) if classes else None, distance=distance)
    served_folder = Folder(folder, slides, settings)
    name = slide or served_folder.names[0]
    if name not in served_folder.names:
        hint = suggest_names(name, served_folder.names)
        raise InputError(
            f"{folder}: holds no slide {name!r}; {hint}it holds {', '.join(served_folder.names)}"
        )

    is_served = False

    def tell(url: str) -> None:
        nonlocal is_served
        is_served = True
        click.echo(url)
        click.echo("fseg: Ctrl-C ends it; seeds are saved as they are placed", err=True)
        if browser:
            click.launch(url)

    try:
        serve(served_folder, name, tell, port=port, seeds=seeds)
    except KeyboardInterrupt:
        if not is_served:
            raise
    click.echo("fseg: ended; the seeds are saved", err=True)
    return 0


def check_packages() -> None:
    """Raise ``InputError`` where a package that the page needs is not installed."""
    for package in ("bokeh", "umap"):
        if find_spec(package) is None:
            raise InputError(f"the page needs the package {package}: pip install 'fseg-jax[view]'")
