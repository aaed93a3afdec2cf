"""Run every benchmark of speed, one after another, and write ``benchmarks/README.md``.

python -m benchmarks [--tiny] [QUESTION …]
"""

import subprocess
import sys

import click

from benchmarks.readme import QUESTIONS, write


@click.command()
@click.argument("questions", nargs=-1, type=click.Choice(list(QUESTIONS)))
@click.option("--tiny", is_flag=True, help="Sizes that only show that they run; nothing is kept.")
def main(questions: tuple[str, ...], tiny: bool) -> None:
    failed = []
    for question in questions or tuple(QUESTIONS):
        click.echo(f"— {QUESTIONS[question]}")
        # A process each: memory, threads and caches of one are not the next one's.
        arguments = [sys.executable, "-m", f"benchmarks.{question}", *(["--tiny"] if tiny else [])]
        if subprocess.run(arguments, check=False).returncode:
            failed.append(question)
    if not tiny:
        write()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
