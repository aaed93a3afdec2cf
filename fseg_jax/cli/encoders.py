"""``fseg encoders`` and ``fseg doctor``."""

import click


@click.command()
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


@click.command()
def doctor() -> int:
    """Say what this machine can do and what to mend, line by line; exit code 1 when segmenting would fail."""
    from fseg_jax import doctor

    found = doctor.checks()
    click.echo(doctor.table(found))
    return doctor.exit_code(found)
