"""Write ``benchmarks/README.md`` and its plot from the results that are there.

python -m benchmarks.readme
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.measure import OURS, RESULTS
from fseg_jax.evaluation.report.tables import format_markdown_table
from fseg_jax.outputs.style import OKABE_ITO, save_figure, use_style

HERE = Path(__file__).parent
QUESTIONS = {
    "encoders": "Encoders: images a second",
    "processors": "Encoders on an AVX2 machine: images a second of a core's time",
    "nmf": "Factorization: tiles a second",
    "kmeans": "k-means: 50,000 × 1024",
    "slide": "A slide, end to end",
    "startup": "From the command to the first tile",
    "growth": "What grows with what",
}
# What was tried where a row falls short, and what it would take: kept here, beside what is measured.
NOTES: dict[str, str] = json.loads((HERE / "notes.json").read_text(encoding="utf-8"))


def results() -> dict[str, dict[str, Any]]:
    paths = {question: RESULTS / f"speed_{question}.json" for question in QUESTIONS}
    return {q: json.loads(path.read_text(encoding="utf-8")) for q, path in paths.items() if path.exists()}


def write() -> None:
    """The page and the plot; questions without a result are left out."""
    found = results()
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
    for question, result in found.items():
        text += ["", f"## {QUESTIONS[question]}", "", _where(result), "", *_table(question, result["rows"])]
        if question in NOTES:
            text += ["", NOTES[question]]
    text += ["", *_click(), "", *_cohort()]
    text += [
        "",
        "## Elsewhere",
        "",
        "[Encoders' parity](results/encoder_parity.md) · [evaluations](../docs/he-small.md)",
        "",
    ]
    (HERE / "README.md").write_text("\n".join(text), encoding="utf-8")
    draw(found)


def _where(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{result['processor'] or result['device']}, {result['cores']} cores; load "
        f"{result['load_average'][0]} at the end; commit {result['commit']}; Python {result['python']}, "
        f"{versions}."
    )


def _table(question: str, rows: list[dict[str, Any]]) -> list[str]:
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
    return format_markdown_table(head, [_cells(question, row) for row in rows])


def _cells(question: str, row: dict[str, Any]) -> list[str]:
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
        missed = row["overhead"] > row["overhead_target"]
        cells.append(
            f"{row['overhead']:.3g}" + (f" ({row['overhead_target']:.3g}: not reached)" if missed else "")
        )
    return cells


def _click() -> list[str]:
    """What ``benchmarks/sic_click.py`` found."""
    found = json.loads((RESULTS / "sic_click.json").read_text(encoding="utf-8"))
    click, one = found["click_ms"], found["one_seeded_kmeans_ms"]
    theirs = found["sklearn_kmeans_same_start_ms"]
    ratio = theirs / click["median"]
    return [
        f"## A click on {found['patches']:,} patches × {found['channels']}",
        "",
        f"`python benchmarks/sic_click.py`, {found['cores']} cores: clustered anew after each of ten clicks, "
        f"three clusterings each, of what was prepared once in {found['prepare_once_s']} s; scikit-learn "
        "once and in full, from the start of the first of the three, which ends with the same labels.",
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
                ["one clustering", f"{one}", f"{theirs / one:.3g} ×", ""],
                ["scikit-learn, one clustering", f"{theirs:g}", "", ""],
            ],
        ),
    ]


def _cohort() -> list[str]:
    """What ``benchmarks/kmeans_scale.py`` found."""
    found = json.loads((RESULTS / "kmeans_scale.json").read_text(encoding="utf-8"))
    n, channels = found["points"]
    rows = []
    for name, seconds in found["seconds"].items():
        over = [each["inertia"][name] / each["inertia"]["fseg_jax"] for each in found["k"].values()]
        planted = [f"{each['planted'][name]['recovered']}/{k}" for k, each in found["k"].items()]
        inertia = f"{min(over):.3f} to {max(over):.3f}"
        rows.append([name, f"{seconds['wall_s']}", inertia, " · ".join(planted)])
    return [
        f"## k-means over a cohort: {n:,} × {channels}",
        "",
        f"`{found['command']}`, {found['cores']} cores, from disk; all of k = {', '.join(found['k'])}. The "
        "others are quicker, and end well above our inertia: at equal inertia they were not raced.",
        "",
        *format_markdown_table(["what", "seconds", "inertia over ours", "planted centres found, by k"], rows),
    ]


def draw(found: dict[str, dict[str, Any]]) -> None:
    """Bars of ours over the best peer, with what is to be reached."""
    from matplotlib.figure import Figure

    rows = [row for result in found.values() for row in result["rows"] if row["ratio"]]
    if not rows:
        return
    with use_style():
        figure = Figure(figsize=(7.2, 0.28 * len(rows) + 0.9), layout="constrained")
        axis = figure.add_subplot()
        for y, row in enumerate(rows):
            reached = row["target"] is None or row["ratio"] >= row["target"]
            axis.barh(y, row["ratio"], color=OKABE_ITO[2 if reached else 1], height=0.6)
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
    write()
