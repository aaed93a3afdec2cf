"""``fseg codebook import``, ``name`` and ``show``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fseg_jax.cli.options import (
    MICRONS,
    PATH,
    batching_options,
    dtype_option,
    output_option,
    overwrite_option,
)
from fseg_jax.cli.parameters import Number, WholeNumber
from fseg_jax.cli.progress import show_progress
from fseg_jax.cli.terminal import CommandGroup
from fseg_jax.errors import InputError

if TYPE_CHECKING:
    from fseg_jax.codebook import Provenance
    from fseg_jax.cohort.naming import NamedByWords


@click.group(cls=CommandGroup)
def codebook() -> None:
    """Import the authors' cluster centres, show any codebook, or name its clusters by words."""


@codebook.command("import")
@click.argument("source", type=PATH, metavar="JOBLIB")
@output_option("FILE", "Codebook to write, a .safetensors file.")
@click.option("--encoder", default="", metavar="NAME", help="Encoder that the centres were made with.")
@click.option("--layer", default="", metavar="NAME", help="Layer of the encoder.")
@click.option("--mpp", type=MICRONS, metavar="µm", help="Resolution that they were made at, in µm per pixel.")
@overwrite_option
def codebook_import(
    source: Path, output: Path, encoder: str, layer: str, mpp: float | None, overwrite: bool
) -> None:
    """Turn the F-SEG authors' joblib file of centres into a codebook, without running anything in it.

    Where the encoder's weights are on this machine, its fingerprint is stored too, so that another encoder of
    the same width is refused.
    """
    from fseg_jax.codebook import Provenance, import_joblib, save_all
    from fseg_jax.files.paths import is_there

    if is_there(output) and not overwrite:
        raise InputError(f"{output} exists: choose another name, or --overwrite")
    provenance = Provenance(encoder=encoder, layer=layer, mpp=mpp, source=source.name)
    books = import_joblib(source, provenance)
    if encoder:
        provenance = _add_fingerprint(provenance, next(iter(books.values())).channels)
        books = {k: replace(book, provenance=provenance) for k, book in books.items()}
    save_all(output, books)
    click.echo(f"{output}: k = {', '.join(str(k) for k in sorted(books))}")


def _add_fingerprint(provenance: "Provenance", channels: int) -> "Provenance":
    """Add the fingerprint of the encoder to a provenance, where its weights are on this machine.

    Raises ``InputError`` where its features are not as wide as the centres.
    """
    from fseg_jax.encoders.fingerprint import take_fingerprint
    from fseg_jax.encoders.load import is_local, load_encoder

    if not is_local(provenance.encoder):
        return provenance
    encoder = load_encoder(provenance.encoder)
    card = encoder.card
    if card.channels != channels:
        raise InputError(
            f"--encoder {provenance.encoder}: its features are {card.channels} wide, and the centres "
            f"{channels}: name the encoder that they were made with"
        )
    return replace(
        provenance,
        encoder=card.name,
        layer=provenance.layer or card.layer,
        fingerprint=take_fingerprint(encoder),
    )


@codebook.command("name")
@click.argument("path", type=PATH, metavar="CODEBOOK")
@click.option(
    "--prompts",
    required=True,
    type=PATH,
    metavar="FILE",
    help="Names and words for them: CSV with the columns name and, if wanted, prompt.",
)
@output_option("NAMES.csv", "File of names to write, which --names and fseg names take.")
@click.option("--k", type=WholeNumber(1), metavar="K", help="Which of the file's codebooks.")
@click.option(
    "--encoder",
    metavar="NAME",
    show_default="the codebook's",
    help="Model of images and words that looks at the tiles, keep or conch-v1, whichever the codebook is of.",
)
@click.option("--weights", type=PATH, metavar="FILE", help="Its published checkpoint, instead of the hub's.")
@click.option("--tokenizer", type=PATH, metavar="FILE", help="Its tokenizer, instead of the published one.")
@dtype_option
@click.option(
    "--features",
    type=PATH,
    metavar="FOLDER",
    show_default="CODEBOOK.features",
    help="Folder of the features that the codebook was fitted on: tiles near each centre are looked at.",
)
@click.option(
    "--results",
    metavar="OUT",
    help="Folder of fseg segment or fseg cohort, or a cohort's bucket, made with this codebook: its typical "
    "places are looked at instead.",
)
@click.option(
    "--tiles",
    type=WholeNumber(3, 1000),
    default=8,
    show_default=True,
    help="Number of tiles of each cluster that are looked at; their slides are read again.",
)
@click.option(
    "--margin",
    type=Number(0, 2),
    metavar="COSINE",
    show_default="so far that the name is twice as likely",
    help="How far a name must be ahead of the runner-up; less, and the cluster stays unnamed.",
)
@batching_options
@overwrite_option
def codebook_name(
    path: Path,
    prompts: Path,
    output: Path,
    k: int | None,
    encoder: str | None,
    weights: Path | None,
    tokenizer: Path | None,
    dtype: str,
    features: Path | None,
    results: str | None,
    tiles: int,
    margin: float | None,
    batch: int | None,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Name the clusters of CODEBOOK by words: by the prompts that their typical tiles are most alike to.

    A line of the file of prompts is a name and a prompt, such as "stroma,an H&E image of fibrous stroma";
    several prompts of a name are averaged, and a name without one is put in words by five templates, such as
    "an H&E image of stroma." Give a name for all that a cluster may be, also glass, ink and folds: one of
    them always comes first.

    A cluster gets the name that its tiles are most alike to on average, if that is far enough ahead of the
    runner-up (--margin), and first on at least two thirds of three tiles or more. Any other keeps
    the name that it has, and the table says what came first. A name that several clusters get is numbered.
    Look at the codebook's card, and correct the file, before you use it.
    """
    from fseg_jax.codebook import Codebook
    from fseg_jax.cohort.naming import MPP, NamingSettings, name_clusters_by_words, write_suggestions
    from fseg_jax.cohort.prompts import load_prompts
    from fseg_jax.cohort.typical_tiles import choose_from_features, choose_from_results
    from fseg_jax.encoders.image_text import find_text_row, load_image_text
    from fseg_jax.files.paths import is_folder, is_there

    if is_there(output) and not overwrite:
        raise InputError(f"{output} exists: choose another name, or --overwrite")
    if not is_folder(output.parent):
        raise InputError(f"{output.parent}: no such folder")
    if features and results:
        raise InputError("--features and --results contradict each other: give one of them")
    words = load_prompts(prompts)
    book = Codebook.load(path, k)
    name = encoder or book.provenance.encoder
    if not name:
        raise InputError(f"{path}: does not say its encoder: give a model of images and words with --encoder")
    row, _ = find_text_row(name)
    field = row.input_size * MPP
    if results:
        typical = choose_from_results(results, book, tiles, field)
    else:
        typical = choose_from_features(features or path.with_suffix(".features"), book, tiles, field)
    settings = NamingSettings(margin, batch, threads)
    model = load_image_text(name, weights=weights, tokenizer=tokenizer, dtype=dtype)
    with show_progress() as display:
        named = name_clusters_by_words(
            typical,
            book.k,
            words,
            model,
            settings,
            lambda done, total, slide: display.update("looking", done, total, slide),
        )
    write_suggestions(output, named, model.name)
    for number, each in enumerate(named, 1):
        click.echo(_describe_naming(number, each))
    sure, least = sum(each.is_sure for each in named), settings.choose_margin(model.scale)
    click.echo(
        f"{output}: {sure} of {len(named)} clusters named, ahead by {least:.3g} at least: look at the card, "
        "and correct it"
    )


def _describe_naming(number: int, named: "NamedByWords") -> str:
    """Describe in a line what words say of a cluster."""
    if not named.tiles:
        return f"cluster {number}: no tiles"
    lead = round(named.agreement * named.tiles)
    scores = f"{named.score:.3f}; {named.runner_up} {named.runner_up_score:.3f}"
    called = named.name if named.is_sure else f"not sure, {named.best}"
    return f"cluster {number}: {called} ({scores}; first on {lead} of {named.tiles} tiles)"


@codebook.command("show")
@click.argument("path", type=PATH, metavar="FILE")
def codebook_show(path: Path) -> None:
    """Print what codebooks a file holds and where they came from."""
    from fseg_jax.codebook import load_all

    books = load_all(path)
    for name, value in vars(next(iter(books.values())).provenance).items():
        click.echo(f"{name:12}  {'unknown' if value in ('', None) else value}")
    mixtures = next(iter(books.values())).mixtures
    click.echo(
        f"{'mixtures':12}  {'none' if mixtures is None else f'{len(mixtures)}, for tokens at borders'}"
    )
    for k, book in sorted(books.items()):
        click.echo(f"k = {k:<8}  {book.channels} channels, hash {book.hash[:12]}")
