"""The command line: parse, call, print. Imports are made where they are used, so that --help is quick."""

import ctypes
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fseg_jax.errors import InputError

if TYPE_CHECKING:
    from fseg_jax.codebook import Codebook
    from fseg_jax.cohort.worker import Report
    from fseg_jax.encoders.encoder import Encoder
    from fseg_jax.slides.reader import Slide

_LOG = logging.getLogger(__name__)

DEMO_MPP = 0.5  # scikit-image does not say; nuclei of the colon are some 10 µm long, and here some 20 pixels


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 something found wanting, 2 bad input, 130 interrupted."""
    _share_the_heap()
    try:
        code = cli.main(arguments, prog_name="fseg", standalone_mode=False)
    except InputError as error:
        click.echo(f"fseg: error: {error}", err=True)
        code = 2
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        code = 2
    except click.ClickException as error:
        click.echo(f"fseg: error: {error.format_message()}", err=True)
        code = 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("fseg: interrupted; nothing half-written is left", err=True)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("fseg-jax"), prog_name="fseg")
def cli() -> None:
    """Unsupervised segmentation of pathology slides."""


def _options(*decorators: Callable) -> Callable:
    def apply(function: Callable) -> Callable:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


_output = click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where results go.",
)
_verbose = click.option("-v", "--verbose", count=True, help="Say what is done; twice for more.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace results that exist.")
_encoder = _options(
    click.option("--encoder", default="classical", show_default=True, metavar="NAME", help="Which encoder."),
    click.option(
        "--weights",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Its weights, instead of the hub's.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16"]),
        default="float32",
        show_default=True,
        help="Precision of its products; sums are float32.",
    ),
)
_method = _options(
    click.option(
        "--codebook",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Cluster centres, from fit or import.",
    ),
    click.option(
        "--k",
        type=click.IntRange(1),
        metavar="K",
        help="Clusters: which of the codebook's, or how many to fit (8).",
    ),
    click.option(
        "--mode",
        type=click.Choice(["fixed", "assign"]),
        default="fixed",
        show_default=True,
        help="Concepts fixed to the centres, or factorized a tile and named by them.",
    ),
    click.option(
        "--concepts",
        type=click.IntRange(1),
        default=20,
        show_default=True,
        help="Concepts a tile, in mode assign.",
    ),
    click.option(
        "--resize",
        type=click.Choice(["bilinear", "nearest"]),
        default="bilinear",
        show_default=True,
        help="Resize the weights and then label, or resize the labels.",
    ),
)
_tiling = _options(
    click.option(
        "--mpp", type=float, metavar="µM", help="Work at this many µm per pixel (the encoder's own: 1.0)."
    ),
    click.option(
        "--tile", type=click.IntRange(1), metavar="PIXELS", help="Side of a tile (the encoder's own)."
    ),
    click.option(
        "--halo",
        type=float,
        default=1 / 16,
        metavar="FRACTION",
        help="Overlap on each side, of the tile (1/16).",
    ),
    click.option("--tissue", metavar="FILE", help="Where the tissue is: a mask image or GeoJSON."),
    click.option("--no-tissue", is_flag=True, help="Segment everything, glass too."),
    click.option(
        "--mpp-override", type=float, metavar="µM", help="The slide's µm per pixel, whatever it says."
    ),
)
_running = _options(
    click.option(
        "--seed",
        type=click.IntRange(0, 2**31 - 1),
        default=0,
        show_default=True,
        help="Of everything drawn at random.",
    ),
    click.option(
        "--batch",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        help="Tiles the encoder takes at once.",
    ),
    click.option(
        "--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads that decode."
    ),
)


@cli.command()
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SLIDE...")
@_options(_output, _encoder, _method, _tiling, _running, _overwrite, _verbose)
def segment(slides: tuple[Path, ...], output: Path, overwrite: bool, verbose: int, **options: Any) -> int:
    """Segment slides into clusters: labels, outlines for QuPath, a picture, areas.

    Without --codebook, K clusters are fitted on each slide itself, so that clusters of one slide are not
    those of another; with one, a cluster is the same tissue everywhere.
    """
    with ExitStack() as stack:
        _log(verbose)
        from fseg_jax.slides.reader import open_slide

        opened = [stack.enter_context(open_slide(path, options["mpp_override"])) for path in slides]
        return _segment(opened, output, overwrite, options)


@cli.command()
@click.option("--slide", is_flag=True, help="Fetch OpenSlide's test slide (1.9 MB, CC0) and segment that.")
@click.option("--k", type=click.IntRange(1), default=5, show_default=True, metavar="K", help="Clusters.")
@_options(_output, _encoder, _verbose)
def demo(slide: bool, output: Path, verbose: int, **options: Any) -> int:
    """Segment a colon image that comes with scikit-image: no slide, no download."""
    with ExitStack() as stack:
        _log(verbose)
        from fseg_jax.slides.reader import open_slide

        if slide:
            from fseg_jax.downloads import fetch_test_slide

            opened = open_slide(fetch_test_slide())
        else:
            image = stack.enter_context(resources.as_file(resources.files("skimage.data") / "ihc.png"))
            opened = open_slide(image, DEMO_MPP)
            options |= {"mpp_override": DEMO_MPP, "mpp": DEMO_MPP}
        stack.enter_context(opened)
        return _segment([opened], output, True, options)


@cli.command()
@click.argument("name", required=False)
def encoders(name: str | None) -> None:
    """List the encoders, or say all about one: its licence, and whether its weights are within reach."""
    from fseg_jax.encoders import listing
    from fseg_jax.encoders.catalog import CATALOG, lookup
    from fseg_jax.encoders.classical import classical
    from fseg_jax.encoders.load import status

    if name == "classical":
        for field, value in vars(classical().card).items():
            click.echo(f"{field:14}{value}")
    elif name:
        row = lookup(name)
        click.echo(listing.sheet(row, status(row)))
    else:
        click.echo("classical: stain and texture, no weights and nothing to download. From the hub:\n")
        click.echo(listing.table(list(CATALOG.values())))


@cli.command()
def doctor() -> int:
    """Say what this machine can do and what to mend, line by line; exit code 1 when segmenting would fail."""
    from fseg_jax import doctor

    found = doctor.checks()
    click.echo(doctor.table(found))
    return doctor.exit_code(found)


@cli.group()
def codebook() -> None:
    """Cluster centres: read the authors', look at any."""


@codebook.command("import")
@click.argument("source", type=click.Path(path_type=Path), metavar="JOBLIB")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A .safetensors file.",
)
@click.option("--encoder", default="", metavar="NAME", help="The encoder that the centres were made with.")
@click.option("--layer", default="", metavar="NAME", help="Its layer.")
@click.option("--mpp", type=float, metavar="µM", help="The resolution.")
@_overwrite
def codebook_import(
    source: Path, output: Path, encoder: str, layer: str, mpp: float | None, overwrite: bool
) -> None:
    """Turn the F-SEG authors' joblib file of centres into a codebook, without running anything in it."""
    from fseg_jax.codebook import Provenance, import_joblib, save_all

    if output.exists() and not overwrite:
        raise InputError(f"{output} exists: choose another name, or --overwrite")
    books = import_joblib(source, Provenance(encoder=encoder, layer=layer, mpp=mpp, source=source.name))
    save_all(output, books)
    click.echo(f"{output}: k = {', '.join(str(k) for k in sorted(books))}")


@codebook.command("show")
@click.argument("path", type=click.Path(path_type=Path), metavar="FILE")
def codebook_show(path: Path) -> None:
    """Print what codebooks a file holds and where they came from."""
    from fseg_jax.codebook import load_all

    books = load_all(path)
    for name, value in vars(next(iter(books.values())).provenance).items():
        click.echo(f"{name:12}  {'unknown' if value in ('', None) else value}")
    for k, book in sorted(books.items()):
        click.echo(f"k = {k:<8}  {book.channels} channels, hash {book.hash[:12]}")


def _segment(slides: "list[Slide]", output: Path, overwrite: bool, options: dict[str, Any]) -> int:
    """Check everything that can be checked, then segment slide after slide; the exit code."""
    from fseg_jax.cohort.worker import Settings, check_outputs, segment_slide
    from fseg_jax.encoders.load import load_encoder

    tissue, no_tissue = options.pop("tissue", None), options.pop("no_tissue", False)
    if tissue and no_tissue:
        raise InputError("--tissue and --no-tissue contradict each other: give one of them")
    names = [slide.name for slide in slides]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"several slides are called {sorted(twice)[0]!r}: segment them to different folders")
    for name in names:
        check_outputs(name, output, overwrite)
    encoder = load_encoder(options.pop("encoder"), weights=options.pop("weights"), dtype=options.pop("dtype"))
    book = _load_codebook(options.pop("codebook", None), options, encoder)
    given = {name: value for name, value in options.items() if value is not None}
    settings = Settings(**given, tissue="all" if no_tissue else tissue or "find")

    failed = 0
    with _bars(len(slides)) as bars:
        for slide in slides:
            try:
                record = segment_slide(
                    slide, output, encoder, book, settings, overwrite=overwrite, report=bars(slide.name)
                )
            except InputError as error:
                if len(slides) == 1:
                    raise
                click.echo(f"fseg: error: {error}", err=True)
                failed += 1
                continue
            click.echo(output / f"{slide.name}.png")
            _LOG.info("%s: %s tiles, seconds: %s", slide.name, record["tiles"], record["seconds"])
    if failed:
        click.echo(f"fseg: {failed} of {len(slides)} slides failed", err=True)
    return 2 if failed else 0


def _load_codebook(path: Path | None, options: dict[str, Any], encoder: "Encoder") -> "Codebook | None":
    from fseg_jax.codebook import Codebook

    if path is None:
        return None
    book = Codebook.load(path, options["k"])
    book.check(encoder.card.name, encoder.card.channels, encoder.card.weights_hash)
    return book


@contextmanager
def _bars(slides: int) -> "Iterator[Callable[[str], Report]]":
    """A bar over slides and one over a slide's tiles, with speed and time left; none without a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name: lambda phase, done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        over = progress.add_task("slides", total=slides, rate="", visible=slides > 1)
        current: dict[str, TaskID] = {}

        def for_slide(name: str) -> "Report":
            for task in current.values():
                progress.remove_task(task)
            progress.update(over, completed=len(seen))
            seen.append(name)
            current.clear()

            def report(phase: str, done: int, total: int) -> None:
                if phase not in current:
                    current[phase] = progress.add_task(f"{name}: {phase}", total=total, rate="")
                speed = progress.tasks[progress.task_ids.index(current[phase])].speed
                rate = f"{speed:.1f} tiles/s" if speed else ""
                progress.update(current[phase], completed=done, rate=rate)

            return report

        seen: list[str] = []
        yield for_slide


def _share_the_heap() -> None:
    """Let threads share two heaps: with one each, what decoders free is kept as many times over."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no mallopt, nor the trouble
            ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX


def _log(verbose: int) -> None:
    logging.basicConfig(format="fseg: %(message)s", level=logging.WARNING, force=True)
    logging.getLogger("fseg_jax").setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])


if __name__ == "__main__":
    main()
