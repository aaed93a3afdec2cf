"""What coordinates on a slide count from.

A file may place its scan on a larger canvas: the glass that the scanner could have looked at. OpenSlide's
coordinates are the canvas's, and its bounds say where the scan lies; QuPath shows the bounds' part and counts
from its corner. So does this program, unless the canvas is asked for. Most files have no canvas but the scan.
"""

from pathlib import Path
from typing import Any, Literal

from fseg_jax.errors import InputError

Frame = Literal["bounds", "canvas"]
Origin = tuple[int, int]  # (y, x) of a frame's corner on the canvas, in level-0 pixels


def explain_frame(frame: Frame) -> str:
    """Say, at the end of an error, what fits the canvas of a slide that is a part of it; else nothing."""
    return "; for what covers the file's whole canvas, --frame canvas" if frame == "bounds" else ""


def check_frame(path: Path, content: Any, origin: Origin) -> None:
    """Check that coordinates in a GeoJSON file of this program count from where a slide's do.

    Args:
        path: The file, for the error message.
        content: What it holds, decoded; files of other programs do not say what they count from.
        origin: Where the slide's coordinates count from.

    Raises:
        InputError: They count from elsewhere.
    """
    stated = content.get("fseg") if isinstance(content, dict) else None
    if not isinstance(stated, dict) or "frame" not in stated:
        return
    x, y = (stated.get(f"frame_{axis}") for axis in "xy")
    if (y, x) != origin:
        other = "canvas" if (y, x) == (0, 0) else "bounds"
        raise InputError(
            f"{path}: its coordinates count from x = {x!r:.20}, y = {y!r:.20} on the canvas, and those here "
            f"from x = {origin[1]}, y = {origin[0]}: if it is of this slide, give --frame {other}"
        )
