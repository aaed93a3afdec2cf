"""``fseg encoders`` and ``fseg doctor``."""

import click


@click.command()
@click.argument("name", required=False)
def encoders(name: str | None) -> None:
    """List the encoders, or describe one: its licence, and whether its weights are available."""
    from fseg_jax.encoders import listing
    from fseg_jax.encoders.catalog.names import find_row
    from fseg_jax.encoders.catalog.published import CATALOG
    from fseg_jax.encoders.classical import classical
    from fseg_jax.encoders.trained import SHIPPED, load_trained
    from fseg_jax.encoders.weights.cache import check_status

    if name in ("classical", *SHIPPED) or (name and name.endswith(".safetensors")):
        card = classical().card if name == "classical" else load_trained(name).card
        for field, value in vars(card).items():
            click.echo(f"{field:14}{value}")
    elif name:
        row = find_row(name)
        click.echo(listing.format_sheet(row, check_status(row)))
    else:
        channels = load_trained("he-small").card.channels
        about = "trained on open H&E; the weights come with the program."
        click.echo(f"he-small: the default. {channels} channels, {about}")
        click.echo("classical: stain and texture, a baseline without weights.")
        click.echo("FILE.safetensors: your own, from fseg pretrain. From the hub:\n")
        click.echo(listing.format_table(list(CATALOG.values())))


@click.command()
def doctor() -> int:
    """Check what this machine can do, and say what to repair.

    Exit code 1 means that segmenting would fail.
    """
    from fseg_jax.cli import machine

    checks = machine.check_machine()
    click.echo(machine.format_table(checks))
    return machine.choose_exit_code(checks)
