"""Run every benchmark of speed, one after another, and write ``benchmarks/README.md``.

python -m benchmarks [--tiny] [QUESTION …]
"""

import subprocess
import sys

import click

from benchmarks.readme import QUESTIONS, write_page


@click.command()
@click.argument("questions", nargs=-1, type=click.Choice(list(QUESTIONS)))
@click.option("--tiny", is_flag=True, help="Sizes that only show that they run; nothing is kept.")
def main(questions: tuple[str, ...], tiny: bool) -> None:
    """Run the benchmarks that answer QUESTIONS, or all, each in a process of its own."""
    failed = []
    for question in questions or tuple(QUESTIONS):
        click.echo(f"— {QUESTIONS[question]}")
        # A process for each: no benchmark inherits another's memory, threads or caches.
        arguments = [sys.executable, "-m", f"benchmarks.{question}", *(["--tiny"] if tiny else [])]
        if subprocess.run(arguments, check=False).returncode:
            failed.append(question)
    if not tiny:
        write_page()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
