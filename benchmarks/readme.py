"""Write ``benchmarks/README.md`` and its plot from the results in ``benchmarks/results``.

python -m benchmarks.readme
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.measure import OURS, RESULTS
from fseg_jax.evaluation.report.markdown import format_markdown_table
from fseg_jax.outputs.style import OKABE_ITO, save_figure, use_style

HERE = Path(__file__).parent
QUESTIONS = {
    "encoders": "Encoders: images a second",
    "processors": "Encoders on an AVX2 machine: images a second of a core's time",
    "nmf": "Factorization: tiles a second",
    "kmeans": "k-means: 50,000 × 1024",
    "race": "k-means: fits a second, all to one inertia",
    "reading": "Reading: megapixels of a level a second",
    "slide": "A slide, end to end",
    "cohort": "A cohort, from files to outlines",
    "startup": "From the command to the first tile",
    "growth": "What grows with what",
}
# Under rows that miss their target: what was tried, and what is missing.
NOTES: dict[str, str] = json.loads((HERE / "notes.json").read_text(encoding="utf-8"))


def read_results() -> dict[str, dict[str, Any]]:
    """Read the results, by question; questions without a result are left out."""
    paths = {question: RESULTS / f"speed_{question}.json" for question in QUESTIONS}
    return {q: json.loads(path.read_text(encoding="utf-8")) for q, path in paths.items() if path.exists()}


def write_page() -> None:
    """Write the page and the plot."""
    results = read_results()
    (HERE / "README.md").write_text(format_page(results), encoding="utf-8")
    draw_ratios(results)


def format_page(results: dict[str, dict[str, Any]]) -> str:
    """Format the page as Markdown."""
    text = [
        "# Benchmarks of speed",
        "",
        "Made by `python -m benchmarks` (`FSEG_DATA` names the folder of example slides; peers that are not "
        "installed are left out); every figure is of the committed scripts, the results are in `results/`. "
        "Both sides do the same work in one process, in turn; rates are of the median of five, compilation "
        "apart (the first call, in the JSON). Where answers can be compared they are, in the same run, and a "
        "mismatch is an error. *Limit*: the rate that the machine's measured matrix products (or what is "
        "named) would allow.",
        "",
        "![Ours over the best peer](results/speed.png)",
    ]
    for question, result in results.items():
        text += [
            "",
            f"## {QUESTIONS[question]}",
            "",
            _format_setting(result),
            "",
            *_format_table(question, result["rows"]),
        ]
        if question in NOTES:
            text += ["", NOTES[question]]
    text += ["", *_format_click(), "", *_format_cohort()]
    text += [
        "",
        "## On an accelerator",
        "",
        "[Beside a CPU](results/devices.md), and [compiled for TPUs](results/ahead_of_time.md) without one. "
        "`benchmarks/check_device.sh RESULTS` runs the benchmarks, and tests that say something new there, "
        "in under ten minutes. Where there is no network, `benchmarks/pack_wheels.sh` packs what is missing: "
        "beside JAX for CUDA and the usual packages of science 2 MB without those that read slides, which "
        "numerics and encoders do without, and 75 MB with them; unpacked, `strip --strip-unneeded` on what "
        "is compiled, and packed by `tar -cJ`, 42 MB, which `check_device.sh` takes too.",
        "",
        "## Elsewhere",
        "",
        "[Encoders' parity](results/encoder_parity.md) · [text towers'](results/text_parity.md) · "
        "[evaluations](../docs/he-small.md) ·",
        "[tissue](results/tissue.md) · [what segmentations look like](results/looks.md),",
        "[what each step brings](results/steps.md), and",
        "[what makes features cleaner](results/clean_features.md)",
        "",
    ]
    return "\n".join(text)


def _format_setting(result: dict[str, Any]) -> str:
    """Format the machine, the commit and the versions of a result."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{result['processor'] or result['device']}, {result['cores']} cores; load "
        f"{result['load_average'][0]} at the end; commit {result['commit']}; Python {result['python']}, "
        f"{versions}."
    )


def _format_table(question: str, rows: list[dict[str, Any]]) -> list[str]:
    """Format the rows of a result as a table; some questions have columns of their own."""
    if question == "growth":
        head = ["against", "sizes", "seconds", "peak MB", "time grows with the power", "memory"]
        return format_markdown_table(
            head,
            [
                [
                    row["what"],
                    " · ".join(f"{size:g}" for size in row["sizes"]),
                    " · ".join(f"{value:g}" for value in row["wall_s"]),
                    " · ".join(f"{value:g}" for value in row["peak_mb"]),
                    f"{row['time_exponent']:.2f}",
                    f"{row['memory_exponent']:.2f}",
                ]
                for row in rows
            ],
        )
    if question == "startup":
        head = ["what", "seconds", "aim"]
        return format_markdown_table(
            head, [[r["what"], f"{1 / r['rates'][r['ours']]:.2f}", f"{1 / r['limit']:.2g}"] for r in rows]
        )
    if question == "processors":
        sides = list(dict.fromkeys(side for row in rows for side in row["rates"]))
        head = ["what", *(side.removeprefix(f"{OURS} ") for side in sides)]
        return format_markdown_table(
            head,
            [
                [row["what"], *(f"{row['rates'][s]:.4g}" if s in row["rates"] else "" for s in sides)]
                for row in rows
            ],
        )
    head = ["what", "ours", "best peer", "ratio", "to reach", "of the limit"]
    head += ["overhead"] if question == "slide" else []
    return format_markdown_table(head, [_format_cells(question, row) for row in rows])


def _format_cells(question: str, row: dict[str, Any]) -> list[str]:
    """Format a row that compares our side with a peer."""
    peer = row["peer"]
    cells = [
        row["what"],
        f"{row['rates'][row['ours']]:.4g} {row['unit']} ({row['ours']})",
        f"{row['rates'][peer]:.4g} ({peer})" if peer else "",
        f"**{row['ratio']:.3g} ×**" if peer else "",
        f"{row['target']:g} ×" + ("" if row["ratio"] >= row["target"] else ": not reached")
        if peer and row["target"]
        else "",
        f"{100 * row['of_limit']:.0f} % of {row['limited_by']}" if row["of_limit"] else "",
    ]
    if question == "slide":
        is_missed = row["overhead"] > row["overhead_target"]
        cells.append(
            f"{row['overhead']:.3g}" + (f" ({row['overhead_target']:.3g}: not reached)" if is_missed else "")
        )
    return cells


def _format_click() -> list[str]:
    """Format the result of ``benchmarks/sic_click.py``."""
    result = json.loads((RESULTS / "sic_click.json").read_text(encoding="utf-8"))
    click, one = result["click_ms"], result["one_seeded_kmeans_ms"]
    sklearn = result["sklearn_kmeans_same_start_ms"]
    ratio = sklearn / click["median"]
    return [
        f"## A click on {result['patches']:,} patches × {result['channels']}",
        "",
        f"`python benchmarks/sic_click.py`, {result['cores']} cores: clustered anew after each of ten "
        f"clicks, three clusterings each, of what was prepared once in {result['prepare_once_s']} s; "
        "scikit-learn once and in full, from the start of the first of the three, which ends with the same "
        "labels.",
        "",
        *format_markdown_table(
            ["what", "ms", "ratio", "to reach"],
            [
                [
                    "a click, median (least, most)",
                    f"{click['median']} ({click['min']}, {click['max']})",
                    f"**{ratio:.3g} ×**",
                    "3 ×" + ("" if ratio >= 3 else ": not reached"),
                ],
                ["one clustering", f"{one}", f"{sklearn / one:.3g} ×", ""],
                ["scikit-learn, one clustering", f"{sklearn:g}", "", ""],
            ],
        ),
    ]


def _format_cohort() -> list[str]:
    """Format the result of ``benchmarks/kmeans_scale.py``."""
    result = json.loads((RESULTS / "kmeans_scale.json").read_text(encoding="utf-8"))
    n, channels = result["points"]
    rows = []
    for name, seconds in result["seconds"].items():
        ratios = [each["inertia"][name] / each["inertia"]["fseg_jax"] for each in result["k"].values()]
        planted = [f"{each['planted'][name]['recovered']}/{k}" for k, each in result["k"].items()]
        inertia = f"{min(ratios):.3f} to {max(ratios):.3f}"
        rows.append([name, f"{seconds['wall_s']}", inertia, " · ".join(planted)])
    return [
        f"## k-means over a cohort: {n:,} × {channels}",
        "",
        f"`{result['command']}`, {result['cores']} cores, from disk; all of k = {', '.join(result['k'])}. "
        "The others are quicker, and end well above our inertia: at equal inertia they were not raced.",
        "",
        *format_markdown_table(["what", "seconds", "inertia over ours", "planted centres found, by k"], rows),
    ]


def draw_ratios(results: dict[str, dict[str, Any]]) -> None:
    """Draw a bar for each row: our speed over the best peer's, with the target."""
    from matplotlib.figure import Figure

    rows = [row for result in results.values() for row in result["rows"] if row["ratio"]]
    if not rows:
        return
    with use_style():
        figure = Figure(figsize=(7.2, 0.28 * len(rows) + 0.9), layout="constrained")
        axis = figure.add_subplot()
        for y, row in enumerate(rows):
            is_reached = row["ratio"] >= (row["target"] or 1)
            axis.barh(y, row["ratio"], color=OKABE_ITO[2 if is_reached else 1], height=0.6)
            axis.text(row["ratio"] * 1.06, y, f"{row['ratio']:.3g}", va="center", fontsize=7)
            if row["target"]:
                axis.plot([row["target"]] * 2, [y - 0.4, y + 0.4], color="black", lw=1.2)
        axis.set_yticks(range(len(rows)), [f"{row['what']}" for row in rows])
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.axvline(1, color="grey", lw=0.6)
        axis.set_xlabel("times as fast as the best peer (line: to be reached)")
        save_figure(figure, RESULTS / "speed.png", 150)


if __name__ == "__main__":
    write_page()
