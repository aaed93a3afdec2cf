"""Write a large pyramidal TIFF of islands of tissue on white, pasted from a small slide.

    python -m benchmarks.make_slide SOURCE OUT.tif --side 40000

The picture is a function of position: inside wavy ellipses ("islands") it shows the source's windows with
most tissue, mirrored without end, and turned and shifted differently on each island. Every pyramid level is
the same function of windows averaged to its scale: no level is held in memory or read back.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import tifffile
from PIL import Image

from fseg_jax.slides.reader import Slide, open_slide
from fseg_jax.slides.tissue import find_tissue

_WINDOW = 1024  # pixels of the source's own resolution
_GLASS = 243
_TILE = 256
_BIG = 4 << 30  # bytes of raw pixels; larger slides get 64-bit offsets (BigTIFF)


class _Island(NamedTuple):
    """A piece of tissue; lengths are (y, x) in level-0 pixels.

    Attributes:
        window: index of the source's window that it shows.
        turn: whether to transpose, to flip rows, to flip columns.
        shift: of the window.
        centre: of the ellipse.
        radii: of the ellipse.
        phases: of the two waves of its outline.
    """

    window: int
    turn: np.ndarray
    shift: np.ndarray
    centre: np.ndarray
    radii: np.ndarray
    phases: np.ndarray

    def covers(self, dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
        """Test which offsets, in radii, are inside the wavy outline: bool (rows, columns)."""
        if (
            np.hypot(abs(dy).max(), abs(dx).max()) < 0.9
        ):  # the outline is at 0.9 to 1.1: most tiles are inside
            return np.ones((dy.size, dx.size), bool)
        angle = np.arctan2(dy[:, None], dx)
        wave = 0.06 * np.sin(3 * angle + self.phases[0]) + 0.04 * np.sin(5 * angle + self.phases[1])
        return np.asarray(np.hypot(dy[:, None], dx) < 1 + wave)


class Islands:
    """The picture: ``draw_tile(level, row, column)`` is uint8 (256, 256, 3)."""

    def __init__(self, slide: Slide, side: int, seed: int = 0):
        self.side = side
        self.levels = 1
        while side >> self.levels >= 2 * _TILE:
            self.levels += 1
        step = 1 << (self.levels - 1)
        self._windows = [_reduce(window, self.levels) for window in _read_windows(slide, step)]
        random = np.random.default_rng(seed)
        self._per_side = max(2, round(side / 5000))
        self._cell = side / self._per_side
        self._islands = [
            _Island(
                window=int(random.integers(len(self._windows))),
                turn=random.integers(2, size=3),
                shift=random.integers(0, 4096 // step, size=2) * step,
                centre=(np.array([row, column]) + 0.5 + random.uniform(-0.015, 0.015, 2)) * self._cell,
                radii=random.uniform(0.4, 0.44, 2) * self._cell,
                phases=random.uniform(0, 2 * np.pi, 2),
            )
            for row in range(self._per_side)
            for column in range(self._per_side)
        ]

    def get_shape(self, level: int) -> tuple[int, int, int]:
        """Return (height, width, 3) of a level."""
        return (self.side >> level, self.side >> level, 3)

    def draw_tile(self, level: int, row: int, column: int) -> np.ndarray:
        """Draw one tile of a level; beyond the level's edge the picture goes on."""
        scale = 1 << level
        out = np.full((_TILE, _TILE, 3), _GLASS, np.uint8)
        rows, columns = np.arange(_TILE) + row * _TILE, np.arange(_TILE) + column * _TILE
        y, x = (rows + 0.5) * scale, (columns + 0.5) * scale
        for island in self._islands:
            dy, dx = y - island.centre[0], x - island.centre[1]
            if min(abs(dy)) > 1.1 * island.radii[0] or min(abs(dx)) > 1.1 * island.radii[1]:
                continue
            inside = island.covers(dy / island.radii[0], dx / island.radii[1])
            if inside.any():
                window = self._windows[island.window][level]
                if island.turn[0]:
                    window = window.swapaxes(0, 1)
                i = _mirror(rows + island.shift[0] // scale, window.shape[0], island.turn[1])
                j = _mirror(columns + island.shift[1] // scale, window.shape[1], island.turn[2])
                pixels: np.ndarray = window[i].take(j, axis=1)
                if inside.all():
                    return pixels  # islands do not overlap
                out[inside] = pixels[inside]
        return out

    def draw_tiles(self, level: int) -> Iterator[np.ndarray]:
        """Draw the tiles of a level, row by row."""
        count = -(-(self.side >> level) // _TILE)
        return (self.draw_tile(level, row, column) for row in range(count) for column in range(count))


def write_slide(slide: Slide, out: Path, side: int, quality: int = 80) -> None:
    """Write the picture as a tiled, pyramidal JPEG TIFF with the slide's resolution in its tags."""
    islands = Islands(slide, side)
    part = out.with_name(out.name + ".part")  # a stopped run leaves no slide without its pyramid
    with tifffile.TiffWriter(part, bigtiff=3 * side * side > _BIG) as writer:
        for level in range(islands.levels):
            per_cm = 10_000 / (slide.mpp * (1 << level))
            writer.write(
                islands.draw_tiles(level),
                shape=islands.get_shape(level),
                dtype=np.uint8,
                tile=(_TILE, _TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": quality},
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                metadata=None,
            )
    part.replace(out)


def make_slide_in_process(source: Path, out: Path, side: int) -> Path:
    """Make a slide in a process of its own, whose memory does not count in what is measured."""
    command = [sys.executable, "-m", "benchmarks.make_slide", str(source), str(out), "--side", str(side)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def _read_windows(slide: Slide, step: int) -> list[np.ndarray]:
    """Read up to six square windows with most tissue; their sides are multiples of ``step``."""
    side = min(_WINDOW, slide.height, slide.width) // step * step
    if side == 0:
        raise click.UsageError("the source is too small for a slide of this side")
    tissue = find_tissue(slide)
    corners = [
        (y, x)
        for y in range(0, slide.height - side + 1, max(1, side // 4))
        for x in range(0, slide.width - side + 1, max(1, side // 4))
    ]
    shares = {(y, x): tissue.crop(y, x, side, side, slide.mpp).mean() for y, x in corners}
    best = sorted(shares, key=lambda corner: -shares[corner])[:6]
    best = [corner for corner in best if shares[corner] >= 0.9 * shares[best[0]]]
    return [slide.read(y, x, side, side, slide.mpp) for y, x in best]


def _reduce(window: np.ndarray, levels: int) -> list[np.ndarray]:
    """Average a window to the scale of every level."""
    return [np.asarray(Image.fromarray(window).reduce(1 << level)) for level in range(levels)]


def _mirror(index: np.ndarray, size: int, flip: int) -> np.ndarray:
    """Fold indices into [0, size) as if the axis were mirrored without end."""
    index = index % (2 * size)
    index = np.where(index < size, index, 2 * size - 1 - index)
    return size - 1 - index if flip else index


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--side", default=40_000, show_default=True, type=click.IntRange(512), help="pixels of a side")
@click.option(
    "--quality", default=80, show_default=True, type=click.IntRange(1, 100), help="of the JPEG tiles"
)
@click.option("--mpp-override", type=float, help="µm per pixel of a source that does not say")
def main(source: Path, out: Path, side: int, quality: int, mpp_override: float | None) -> None:
    """Paste SOURCE's tissue over a slide of --side pixels and write it to OUT."""
    with open_slide(source, mpp_override) as slide:
        write_slide(slide, out, side, quality)
    click.echo(f"{out}: {side} × {side}, {out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
