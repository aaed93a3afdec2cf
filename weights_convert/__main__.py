"""Convert a published checkpoint to a weights file of fseg_jax: ``python -m weights_convert NAME``."""

import sys
from pathlib import Path

import click
import jax.numpy as jnp

from fseg_jax.cli.terminal import accept_verbosity, run_command
from fseg_jax.encoders.catalog.names import find_row
from fseg_jax.encoders.weights.convert import convert_file
from fseg_jax.encoders.weights.hub import fetch_checkpoint


@click.command()
@click.argument("name")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Published checkpoint [fetched by default].",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Output file [NAME.safetensors].")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
def convert(name: str, checkpoint: Path | None, out: Path | None, dtype: str) -> None:
    """Convert the checkpoint of the encoder NAME (`fseg encoders` lists them)."""
    row = find_row(name)
    if checkpoint is None:
        checkpoint = fetch_checkpoint(row)
    out = out or Path(f"{row.name.replace(':', '-')}.safetensors")
    convert_file(checkpoint, out, row.config, name=row.name, dtype=jnp.dtype(dtype))
    click.echo(out)


accept_verbosity(convert)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 bad input, 130 interrupted."""
    sys.exit(run_command(convert, arguments, "weights_convert"))


if __name__ == "__main__":
    main()
