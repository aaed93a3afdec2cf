"""The catalog as text: all encoders as a table, or all that is known of one."""

from collections.abc import Iterable

from fseg_jax.encoders.architectures import find_family
from fseg_jax.encoders.catalog.row import Row
from fseg_jax.encoders.weights.hub import Status


def format_table(rows: Iterable[Row]) -> str:
    """Format a table with a line an encoder: its name, title, features, size and licence."""
    lines = [("NAME", "ENCODER", "PIXELS/TOKEN", "CHANNELS", "PARAMETERS", "LICENCE", "")]
    for row in rows:
        size, gate = f"{row.parameters / 1e6:,.0f} M", "gated" if row.gated else ""
        lines.append((row.name, row.title, str(row.stride), str(row.channels), size, row.licence, gate))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = {2, 3, 4}
    return "\n".join(
        "  ".join(
            text.rjust(width) if column in numbers else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def format_sheet(row: Row, status: Status) -> str:
    """Format all that the catalog says of an encoder, and whether its weights are available."""
    kind = " (dataset)" if row.repo_type == "dataset" else ""
    place = f"{row.repo}{kind}" if row.package is None else f"package {row.package}"
    source = row.url + row.files[0] if row.url else f"{place}, {' or '.join(row.files)}"
    trained = "not stated" if row.mpp is None else " · ".join(f"{mpp:g}" for mpp in row.mpp) + " µm per pixel"
    facts = {
        "name": row.name,
        "encoder": row.title,
        "architecture": f"{find_family(row.config)}, {row.parameters:,} parameters",
        "read at": f"{row.layer}: {row.channels} channels, {row.stride} pixels a token, "
        f"prefix tokens (dropped): {row.prefix}",
        "words": "none"
        if row.text is None
        else f"a text tower of {row.text.parameters:,} parameters (fseg codebook name)",
        "images": f"{row.input_size} × {row.input_size}, resized to {row.resize} ({row.resampling})",
        "mean, std": f"{_format_numbers(row.normalisation.mean)}; {_format_numbers(row.normalisation.std)}",
        "trained at": trained,
        "published": source,
        "licence": row.licence + (" (gated)" if row.gated else ""),
        "page": row.page,
        "citation": row.citation,
        "weights": f"{status.state}: {status.detail}",
    }
    return "\n".join(f"{name:13} {value}" for name, value in facts.items())


def _format_numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
