"""Run every benchmark of speed, one after another, and write ``benchmarks/README.md``.

python -m benchmarks [--tiny] [--device | QUESTION …]
"""

import os
import subprocess
import sys

import click

from benchmarks import devices
from benchmarks.readme import QUESTIONS, write_page

ENCODERS_ON_DEVICE = ["ViT-L/16", "ResNet-50", "he-small"]


@click.command()
@click.argument("questions", nargs=-1, type=click.Choice(list(QUESTIONS)))
@click.option("--tiny", is_flag=True, help="Sizes that only show that they run; nothing is kept.")
@click.option("--device", is_flag=True, help="What an accelerator does: numerics and encoders, in minutes.")
def main(questions: tuple[str, ...], tiny: bool, device: bool) -> None:
    """Run the benchmarks that answer QUESTIONS, or all, each in a process of its own."""
    failed = []
    # JAX and torch share the accelerator's memory.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    for question in ("device", "encoders") if device else questions or tuple(QUESTIONS):
        click.echo(f"— {QUESTIONS.get(question, 'Numerics on this device')}")
        # A process for each: no benchmark inherits another's memory, threads or caches.
        arguments = [sys.executable, "-m", f"benchmarks.{question}", *(["--tiny"] if tiny else [])]
        if device and question == "encoders" and not tiny:
            arguments += ENCODERS_ON_DEVICE
        if subprocess.run(arguments, check=False, env=environment).returncode:
            failed.append(question)
    if not tiny:
        devices.write_page()
        if not device:
            write_page()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
