"""Write ``results/devices.md``: a CPU's results and accelerators', side by side.

python -m benchmarks.devices
"""

import json
from typing import Any

from benchmarks.measure import RESULTS
from fseg_jax.evaluation.report.markdown import format_markdown_table

# Each with the results of a CPU and of an accelerator, and the command that measures the latter.
SECTIONS = {
    "A cohort, from files to outlines": (
        ("speed_cohort",),
        "device_cohort",
        "python -m benchmarks.cohort --encoder uni --k 64 --side 40000",
    ),
    "Encoders": (("speed_encoders",), "device_encoders", "python -m benchmarks --device"),
    "Numerics": (("speed_nmf", "speed_kmeans"), "device_numerics", "python -m benchmarks --device"),
}

Result = dict[str, Any]


def read_result(name: str) -> Result | None:
    """Read a result; None where it was not measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_page() -> None:
    """Write the page."""
    sections = {
        title: ([result for name in cpu if (result := read_result(name))], read_result(device), command)
        for title, (cpu, device, command) in SECTIONS.items()
    }
    (RESULTS / "devices.md").write_text(format_page(sections), encoding="utf-8")


def format_page(sections: dict[str, tuple[list[Result], Result | None, str]]) -> str:
    """Format the page: for each title the results of a CPU, that of an accelerator, and its command."""
    lines = [
        "# On a CPU and on an accelerator",
        "",
        "What the committed benchmarks measured, and on what; made by `python -m benchmarks.devices`. In "
        "brackets, how many times as fast it was as the best peer in the same run.",
    ]
    for title, (cpus, device, command) in sections.items():
        head = ["what", _name(cpus[0]) if cpus else "a CPU", _name(device) if device else "an accelerator"]
        columns = [
            {row["what"]: _format_rate(row) for result in results for row in result["rows"]}
            for results in (cpus, [device] if device else [])
        ]
        if device is None:
            columns[1] = dict.fromkeys(columns[0], "not measured")
        rows = [[what, *(column.get(what, "") for column in columns)] for what in columns[0] | columns[1]]
        lines += ["", f"## {title}", ""]
        if rows:
            lines += [*format_markdown_table(head, rows), ""]
        if device is None:
            lines.append(f"On an accelerator it was not measured: `{command}` does.")
        elif not cpus:
            lines.append("On a CPU it was not measured.")
    return "\n".join(lines).rstrip() + "\n"


def _name(result: Result) -> str:
    """Name what a result was measured on."""
    device = result["device"]
    return f"{result['processor']}, {result['cores']} cores" if device == "cpu" else device


def _format_rate(row: Result) -> str:
    beside = f" ({row['ratio']:.3g} × {row['peer']})" if row["peer"] else ""
    return f"{row['rates'][row['ours']]:.4g} {row['unit']}{beside}"


if __name__ == "__main__":
    write_page()
