"""``fseg completion``."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, /, shell: str) -> None:
    """Print what makes a shell complete fseg's commands, options and files.

    bash: add  eval "$(fseg completion bash)"  to ~/.bashrc; zsh: the same with zsh, to ~/.zshrc; fish:
    fseg completion fish > ~/.config/fish/completions/fseg.fish
    """
    complete = get_completion_class(shell)
    assert complete is not None  # click has all three
    click.echo(complete(context.find_root().command, {}, "fseg", "_FSEG_COMPLETE").source())
