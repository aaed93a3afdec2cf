"""``fseg codebook import`` and ``show``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fseg_jax.cli.options import MICRONS, PATH, output_option, overwrite_option
from fseg_jax.cli.terminal import CommandGroup
from fseg_jax.errors import InputError

if TYPE_CHECKING:
    from fseg_jax.codebook import Provenance


@click.group(cls=CommandGroup)
def codebook() -> None:
    """Import the authors' cluster centres, or show any codebook."""


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
