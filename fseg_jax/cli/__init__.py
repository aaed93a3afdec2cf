"""The command line: parse, call, print.

A file is a command, or a few that belong together. ``options.py`` has the options that several share,
``parameters.py`` the kinds of their values. Commands import what they need when they run, so that --help is
quick.
"""

import os
import signal
import sys

import click

from fseg_jax.cli.cam import cam
from fseg_jax.cli.codebook import codebook
from fseg_jax.cli.cohort import cohort
from fseg_jax.cli.completion import completion
from fseg_jax.cli.encoders import doctor, encoders
from fseg_jax.cli.evaluate import evaluate
from fseg_jax.cli.export import export
from fseg_jax.cli.fit import fit
from fseg_jax.cli.names import names
from fseg_jax.cli.patches import embed, seed
from fseg_jax.cli.pretrain import pretrain
from fseg_jax.cli.segment import demo, segment
from fseg_jax.cli.terminal import CommandGroup, accept_verbosity, run_command
from fseg_jax.cli.tissue import tissue
from fseg_jax.cli.view import view
from fseg_jax.process import (
    STOPPED,
    collect_less_often,
    limit_heaps,
    silence_swallowed_interrupts,
    stop,
    stop_once,
)
from fseg_jax.versions import find_version


def run() -> None:
    """Run ``main`` as a program that ends at once on any signal to stop."""
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    collect_less_often()
    silence_swallowed_interrupts()
    try:
        main()
    except (SystemExit, KeyboardInterrupt):
        if not STOPPED.is_set():
            raise
    if STOPPED.is_set():  # here no frame holds the locks of interrupted outputs any more
        from fseg_jax.files.partial_folders import remove_partial_folders

        signal.signal(signal.SIGINT, stop_once)
        signal.signal(signal.SIGTERM, stop_once)
        remove_partial_folders()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)  # compiled code in threads would crash as the interpreter ends


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 something failed, 2 bad input, 130 interrupted."""
    limit_heaps()
    sys.exit(run_command(cli, arguments, "fseg"))


@click.group(
    cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(find_version("fseg-jax"), prog_name="fseg")
def cli() -> None:
    """Unsupervised segmentation of pathology slides."""


for command in (
    segment,
    tissue,
    fit,
    cohort,
    demo,
    names,
    evaluate,
    pretrain,
    embed,
    seed,
    view,
    export,
    encoders,
    doctor,
    codebook,
    cam,
    completion,
):
    cli.add_command(command)
accept_verbosity(cli)
