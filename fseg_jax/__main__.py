"""Run the command line as ``python -m fseg_jax``."""

from fseg_jax.cli import run

run()
