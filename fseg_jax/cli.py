"""The command line: parse, call, print. Imports are made where they are used, so that --help is quick."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fseg_jax.errors import InputError
from fseg_jax.terminal import STOPPED, Several, bars, log, share_the_heap, stop, tell

if TYPE_CHECKING:
    from fseg_jax.codebook import Codebook
    from fseg_jax.encoders.encoder import Encoder

_LOG = logging.getLogger(__name__)

DEMO_MPP = 0.5  # scikit-image does not say; nuclei of the colon are some 10 µm long, and here some 20 pixels


def run() -> None:
    """The program: ``main``, with signals that are not lost, and an end that waits for nothing."""
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        main()
    except SystemExit as error:
        if STOPPED.is_set():  # compiled code still runs in threads, and trips over the interpreter's end
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        raise error


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 something found wanting, 2 bad input, 130 interrupted."""
    share_the_heap()
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
    except MemoryError:
        click.echo("fseg: error: out of memory: choose a smaller --batch or --tile", err=True)
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
_where = _options(
    click.option("--tissue", metavar="FILE", help="Where the tissue is: a mask image or GeoJSON."),
    click.option("--no-tissue", is_flag=True, help="Take everything, glass too."),
    click.option(
        "--mpp-override", type=float, metavar="µM", help="The slide's µm per pixel, whatever it says."
    ),
)
_tiling = _options(
    click.option(
        "--mpp", type=float, metavar="µM", help="Work at this resolution (the codebook's, or the encoder's)."
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
)
_batching = _options(
    click.option(
        "--batch",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        help="Images the encoder takes at once.",
    ),
    click.option(
        "--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads that decode."
    ),
)
_seed = click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Of everything drawn at random.",
)
_anndata = click.option("--anndata", is_flag=True, help="Also write AnnData (.h5ad), for scanpy and squidpy.")


@cli.command()
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SLIDE...")
@_options(_output, _encoder, _method, _tiling, _where, _seed, _batching, _overwrite, _verbose)
def segment(slides: tuple[Path, ...], output: Path, overwrite: bool, verbose: int, **options: Any) -> int:
    """Segment slides into clusters: labels, outlines for QuPath, a picture, areas.

    Without --codebook, K clusters are fitted on each slide itself, so that clusters of one slide are not
    those of another; with one, a cluster is the same tissue everywhere.
    """
    log(verbose)
    return _segment(list(slides), output, overwrite, options)


@cli.command()
@click.option("--slide", is_flag=True, help="Fetch OpenSlide's test slide (1.9 MB, CC0) and segment that.")
@click.option("--k", type=click.IntRange(1), default=5, show_default=True, metavar="K", help="Clusters.")
@_options(_output, _encoder, _overwrite, _verbose)
def demo(slide: bool, output: Path, overwrite: bool, verbose: int, **options: Any) -> int:
    """Segment a colon image that comes with scikit-image: no slide, no download."""
    log(verbose)
    if slide:
        from fseg_jax.downloads import fetch_test_slide

        return _segment([fetch_test_slide()], output, overwrite, options)
    with resources.as_file(resources.files("skimage.data") / "ihc.png") as image:
        return _segment([image], output, overwrite, options | {"mpp_override": DEMO_MPP, "mpp": DEMO_MPP})


@cli.command(cls=Several)
@click.argument("dataset", type=click.Path(path_type=Path))
@_output
@click.option(
    "--encoder", "encoders", multiple=True, default=["classical"], metavar="NAME ...", help="Which encoders."
)
@click.option(
    "--k",
    type=click.IntRange(1),
    multiple=True,
    default=[16, 32, 64, 128, 256],
    metavar="K ...",
    help="Numbers of clusters (16 32 64 128 256).",
)
@click.option(
    "--mode",
    "modes",
    type=click.Choice(["fixed", "assign"]),
    multiple=True,
    default=["fixed", "assign"],
    help="Which of the paper's two ways (both).",
)
@click.option(
    "--starts", type=click.IntRange(1), default=3, show_default=True, help="k-means starts to average."
)
@click.option("--same-split", is_flag=True, help="Also match on the test split itself, the paper's variant.")
@click.option("--mpp", type=float, metavar="µM", help="Work at this many µm per pixel.")
@click.option("--mpp-override", type=float, metavar="µM", help="The images' µm per pixel.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Precision of the encoders' products.",
)
@_options(_seed, _overwrite, _verbose)
def evaluate(
    dataset: Path,
    output: Path,
    encoders: tuple[str, ...],
    k: tuple[int, ...],
    modes: tuple[str, ...],
    dtype: str,
    verbose: int,
    **options: Any,
) -> None:
    """Score encoders on images with masks, as the F-SEG paper does: linear probing, cluster matching, plots.

    DATASET is a folder laid out as BCSS, WSSS4LUAD or EBHI-Seg, or images/, masks/ and a dataset.yaml.
    """
    log(verbose)
    from fseg_jax.encoders.load import load_encoder
    from fseg_jax.evaluation.datasets import open_dataset
    from fseg_jax.evaluation.experiment import evaluate

    images = open_dataset(dataset)
    loaded = [load_encoder(name, dtype=dtype) for name in dict.fromkeys(encoders)]
    with bars(1) as progress:
        evaluate(images, loaded, out=output, k=k, modes=modes, report=progress(dataset.name), **options)
    click.echo(output / "results.md")


@cli.command()
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SLIDE...")
@_options(_output, _encoder)
@click.option(
    "--patch", type=click.IntRange(1), default=256, show_default=True, help="Side of a patch, pixels."
)
@click.option("--overlap", type=float, default=0.5, show_default=True, help="Of neighbouring patches.")
@click.option(
    "--mpp", type=float, default=0.5, show_default=True, metavar="µM", help="Work at this resolution."
)
@click.option(
    "--min-tissue", type=float, default=0.25, show_default=True, help="Share of a patch that must be tissue."
)
@_options(_where)
@click.option(
    "--store",
    "stored",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="What embeddings are kept as.",
)
@_options(_batching, _anndata, _overwrite, _verbose)
def embed(
    slides: tuple[Path, ...], output: Path, overwrite: bool, anndata: bool, verbose: int, **options: Any
) -> int:
    """Embed a slide's patches, once, so that clicks can cluster them in an instant (then: fseg seed)."""
    log(verbose)
    from fseg_jax.cohort.patches import PatchSettings, embed_slide
    from fseg_jax.encoders.load import load_encoder
    from fseg_jax.slides.reader import open_slide

    encoder = load_encoder(options.pop("encoder"), weights=options.pop("weights"), dtype=options.pop("dtype"))
    settings = PatchSettings(dtype=options.pop("stored"), tissue=_tissue(options), **options)
    done = 0
    with bars(len(slides)) as progress:
        for path in slides:
            try:
                with open_slide(path, settings.mpp_override) as slide:
                    embed_slide(
                        slide,
                        output,
                        encoder,
                        settings,
                        anndata=anndata,
                        overwrite=overwrite,
                        report=progress(slide.name),
                    )
            except InputError as error:
                tell(error, list(slides))
                continue
            done += 1
            click.echo(output / f"{slide.name}.embeddings.zarr")
    return 0 if done == len(slides) else 2


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("seeds", type=click.Path(path_type=Path))
@click.option("--slide", metavar="NAME", help="Which slide of the folder, where it holds several.")
@click.option("--classes", metavar="A,B", help="The classes' names, the background's first.")
@click.option("--metric", default="f1", show_default=True, help="What the iteration is to raise.")
@click.option(
    "--distance", type=click.Choice(["euclidean", "cosine"]), default="euclidean", show_default=True
)
@click.option("--hard", is_flag=True, help="Seeds keep their labels.")
@click.option("--smooth", is_flag=True, help="Let neighbouring patches agree.")
@_options(_seed, _anndata, _overwrite, _verbose)
def seed(
    folder: Path,
    seeds: Path,
    slide: str | None,
    classes: str | None,
    metric: str,
    anndata: bool,
    overwrite: bool,
    verbose: int,
    **options: Any,
) -> None:
    """Segment an embedded slide from a few clicks: SEEDS is GeoJSON points, as QuPath exports them."""
    log(verbose)
    from fseg_jax.cohort.seeds import SeedSettings, seed_slide
    from fseg_jax.slides.reader import slide_name

    named = tuple(classes.split(",")) if classes else None
    settings = SeedSettings(named, metric, **options)
    record = seed_slide(folder, seeds, settings, slide=slide, anndata=anndata, overwrite=overwrite)
    click.echo(folder / f"{slide_name(Path(record['slide']['path']))}.sic.png")


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


def _segment(slides: list[Path], output: Path, overwrite: bool, options: dict[str, Any]) -> int:
    """Check everything that can be checked, then segment slide after slide; the exit code."""
    from fseg_jax.cohort.worker import Settings, check_outputs, segment_slide
    from fseg_jax.encoders.load import load_encoder
    from fseg_jax.slides.reader import open_slide, slide_name

    tissue = _tissue(options)
    names = [slide_name(slide) for slide in slides]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"several slides are called {sorted(twice)[0]!r}: segment them to different folders")
    for name in names:
        check_outputs(name, output, overwrite)
    mpp_override = options.get("mpp_override")
    good = []
    for path in slides:  # mistakes are told first; none stays open, so that there may be thousands
        try:
            open_slide(path, mpp_override).close()
            good.append(path)
        except InputError as error:
            tell(error, slides)
    encoder = load_encoder(options.pop("encoder"), weights=options.pop("weights"), dtype=options.pop("dtype"))
    book = _load_codebook(options.pop("codebook", None), options, encoder)
    given = {name: value for name, value in options.items() if value is not None}
    settings = Settings(**given, tissue=tissue)

    done = 0
    with bars(len(good)) as progress:
        for path in good:
            try:
                with open_slide(path, mpp_override) as slide:
                    record = segment_slide(
                        slide,
                        output,
                        encoder,
                        book,
                        settings,
                        overwrite=overwrite,
                        report=progress(slide.name),
                    )
            except InputError as error:
                tell(error, slides)
                continue
            done += 1
            click.echo(output / f"{slide.name}.png")
            _LOG.info("%s: %s tiles, seconds: %s", slide.name, record["tiles"], record["seconds"])
    if done < len(slides):
        click.echo(f"fseg: {len(slides) - done} of {len(slides)} slides failed", err=True)
    return 0 if done == len(slides) else 2


def _tissue(options: dict[str, Any]) -> str:
    """What --tissue and --no-tissue say, as settings have it; both are taken out of the options."""
    tissue, everything = options.pop("tissue", None), options.pop("no_tissue", False)
    if tissue and everything:
        raise InputError("--tissue and --no-tissue contradict each other: give one of them")
    return "all" if everything else tissue or "find"


def _load_codebook(path: Path | None, options: dict[str, Any], encoder: "Encoder") -> "Codebook | None":
    from fseg_jax.codebook import Codebook

    if path is None:
        return None
    book = Codebook.load(path, options["k"])
    book.check(encoder.card.name, encoder.card.channels, encoder.card.weights_hash)
    return book


if __name__ == "__main__":
    run()
