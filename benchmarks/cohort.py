"""Measure a cohort end to end: slides an hour, CPU time and peak memory, and those of another checkout.

    FSEG_DATA=... python -m benchmarks.cohort [--against CHECKOUT] [--side N] [--encoder NAME] [--tiny]

Eight slides of 5,000² pixels, made by ``benchmarks.make_slide``, with the encoder he-small and its codebook
of k = 16; another encoder clusters each slide by itself. ``fseg cohort`` runs in a process of its own, once
to fill JAX's compilation cache and then in turn with that of the other checkout, say of ``git worktree add
../before v0.1``. All outputs are compared, byte by byte, but for the times, and what differs is named.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from statistics import median

import click

from benchmarks.examples import find_examples
from benchmarks.make_slide import make_slide_in_process
from benchmarks.measure import OURS, Cost, Timing, measure_command, report_row, save_result

SLIDES, SIDE, ROUNDS = 8, 5_000, 3
VOLATILE = ("timings", "report.html")  # when, and how fast


def hash_outputs(place: Path) -> dict[str, str]:
    """Hash the contents of all files of a cohort, by their names, but for the times."""
    files = {path.relative_to(place): path for path in sorted(place.rglob("*")) if path.is_file()}
    return {
        str(name): hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if name.parts[0] not in VOLATILE
    }


@click.command()
@click.option("--against", type=click.Path(exists=True, path_type=Path), help="Another checkout.")
@click.option("--rounds", default=ROUNDS, show_default=True, help="How often each of them runs.")
@click.option("--slides", "count", default=SLIDES, show_default=True, help="How many slides.")
@click.option("--side", default=SIDE, show_default=True, help="Pixels of a slide's side.")
@click.option("--encoder", default="he-small", show_default=True)
@click.option("--weights", type=click.Path(exists=True, path_type=Path), help="Of the encoder.")
@click.option("--k", default=16, show_default=True, help="Clusters.")
@click.option("--tiny", is_flag=True, help="Sizes that only show that it runs.")
def main(
    against: Path | None,
    rounds: int,
    count: int,
    side: int,
    encoder: str,
    weights: Path | None,
    k: int,
    tiny: bool,
) -> None:
    """Run the cohort with each checkout in turn."""
    if tiny:
        count, side, encoder, k = 2, 600, "classical", 2
    options = ["--encoder", encoder, "--k", str(k)]
    options += ["--codebook", encoder] if encoder == "he-small" else []
    options += [] if weights is None else ["--weights", str(weights.absolute())]
    sides = {OURS: Path(__file__).parents[1]} | ({} if against is None else {"before": against.absolute()})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "programs"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        source = find_examples() / "slides" / "CMU-1-Small-Region.svs"
        slide = make_slide_in_process(source, folder / "slide.tif", side)
        slides = folder / "slides"
        slides.mkdir()
        for number in range(count):
            (slides / f"slide-{number}.tif").symlink_to(slide)
        costs: dict[str, list[Cost]] = {name: [] for name in sides}
        outputs: dict[str, dict[str, str]] = {}
        for turn in range(1 if tiny else rounds + 1):
            for name, checkout in sides.items():
                out = folder / "out"
                costs[name].append(
                    measure_command(["cohort", str(slides), "-o", str(out), *options], checkout)
                )
                outputs[name] = hash_outputs(out)
                shutil.rmtree(out)
                print(turn, name, costs[name][-1], flush=True)
    ours, other = outputs[OURS], outputs.get("before", outputs[OURS])
    different = sorted(name for name in ours.keys() | other.keys() if ours.get(name) != other.get(name))
    if different:
        print(f"{len(different)} of {len(ours)} files differ: {', '.join(different[:20])}", flush=True)
    timings = {
        name: Timing.from_repeats([cost.wall for cost in each[1:] or each], each[0].wall)
        for name, each in costs.items()
    }
    row = report_row(
        f"{count} slides of {side}² pixels, {encoder}, k = {k}",
        "slides/h",
        3600.0 * count,
        timings,
        target=1.2 if against else None,
        cpu_s={name: round(median(cost.cpu for cost in each[1:] or each), 2) for name, each in costs.items()},
        different_files=len(different),
        peak_mb={name: round(max(cost.peak_mb for cost in each)) for name, each in costs.items()},
    )
    save_result("cohort", [row], tiny=tiny)


if __name__ == "__main__":
    main()
