"""Patches as the page draws them: on the slide as a mosaic or dots, in the map, and as chosen in either.

All share one of Bokeh's data sources, so that what is chosen in one is chosen in all.
"""

from typing import Any

import numpy as np
import shapely
from bokeh.events import SelectionGeometry
from bokeh.models import ColumnDataSource, LassoSelectTool, WheelZoomTool
from bokeh.plotting import figure

from fseg_jax.outputs.colours import palette
from fseg_jax.viewer.markup import hexed
from fseg_jax.viewer.picture import CANVAS
from fseg_jax.viewer.projection import colours as map_colours
from fseg_jax.viewer.seeding import Seeding

SHOWN_AS = ("UMAP: off", "UMAP: mosaic", "UMAP: dots")
_GREY = (150, 155, 165, 255)
_VEIL = (255, 255, 255, 190)
_CLEAR = (0, 0, 0, 0)


class Patches:
    """A slide's patches in a tab's two figures: ``slide``, which is given, and ``scatter``, made here.

    ``um`` is the slide's (height, width) in µm. Coordinates are µm, y downwards negative.
    """

    def __init__(self, slide: Any, seeding: Seeding, um: tuple[float, float], how: str) -> None:
        self._seeding = seeding
        self.count = n = len(seeding.embedded.centers)
        y, x = (seeding.embedded.centers * seeding.mpp).T
        grey, nowhere = np.tile(np.array(_GREY, np.uint8), (n, 1)), np.full(n, np.nan, np.float32)
        self.source = ColumnDataSource(
            {"x": x, "y": -y, "u": nowhere, "v": nowhere, "shown": grey, "umap": grey.copy()}
        )
        self.source.selected.on_change("indices", lambda attribute, old, new: self._fade())
        # The grid of patches as a picture that covers the slide: some cells before the first patch, some
        # after the last.
        cell = seeding.step * seeding.mpp
        offset = (seeding.side - seeding.step) / 2 * seeding.mpp
        self._before = int(np.ceil(max(offset, 0) / cell))
        corner = offset - self._before * cell
        needed = [int(np.ceil((size - corner) / cell)) for size in um]
        self._shape = tuple(np.maximum(needed, seeding.embedded.grid.max(0) + 1 + self._before).tolist())
        box: dict[str, Any] = {
            "x": corner,
            "y": -corner,
            "dw": self._shape[1] * cell,
            "dh": self._shape[0] * cell,
            "anchor": "top_left",
            "origin": "top_left",
        }
        blank = {"image": [np.zeros(self._shape, np.uint32)]}
        self._mosaic_source, self._veil_source = ColumnDataSource(blank), ColumnDataSource(dict(blank))
        self.mosaic = slide.image_rgba(
            image="image", source=self._mosaic_source, visible=how == SHOWN_AS[1], **box
        )
        self.dots = slide.circle(
            "x",
            "y",
            radius=0.36 * cell,
            source=self.source,
            fill_color="umap",
            line_color=None,
            nonselection_fill_alpha=0.06,
            visible=how == SHOWN_AS[2],
        )
        self._veil = slide.image_rgba(image="image", source=self._veil_source, visible=False, **box)
        # Patches reach over the slide's edge, and what lies around it hides that.
        (height, width), over = um, 2 * seeding.side * seeding.mpp
        slide.quad(
            left=[-over, width, -over, -over],
            right=[0, width + over, width + over, width + over],
            bottom=[-height - over, -height - over, 0, -height - over],
            top=[over, over, over, -height],
            color=hexed(CANVAS),
            line_color=None,
        )
        self.scatter = self._map()

    def _map(self) -> Any:
        lasso, wheel = LassoSelectTool(continuous=False), WheelZoomTool()
        scatter = figure(
            width=338,
            height=196,
            tools=[lasso, wheel],
            active_drag=lasso,
            active_scroll=wheel,
            toolbar_location=None,
            min_border=0,
            outline_line_color="#dcdfe6",
            output_backend="webgl",
        )
        scatter.axis.visible = False
        scatter.grid.visible = False
        scatter.scatter(
            "u",
            "v",
            source=self.source,
            size=float(np.clip(240 / np.sqrt(self.count), 2.5, 7)),
            color="shown",
            line_color=None,
            alpha=0.85,
            nonselection_alpha=0.06,
            nonselection_color="shown",
            nonselection_line_color=None,
        )
        return scatter

    def show_as(self, how: str) -> None:
        """Draw the map's colours over the slide as one of ``SHOWN_AS``."""
        self.mosaic.visible, self.dots.visible = how == SHOWN_AS[1], how == SHOWN_AS[2]

    def place(self, Y: np.ndarray) -> None:
        """Lay the patches out by their map, (n, 3)."""
        rgba = _opaque(map_colours(Y))
        data = dict(self.source.data)
        data.update(u=Y[:, 0], v=Y[:, 1], umap=rgba, shown=rgba)
        self.source.data = data
        self._mosaic_source.data = {"image": [self._cells(rgba, _CLEAR)]}

    def colour(self, by_result: bool) -> None:
        """Give the map's points the colours of their classes, where there are any, or those of the map."""
        result = self._seeding.result
        if not by_result or result is None:
            self.source.data["shown"] = self.source.data["umap"]
        else:
            self.source.data["shown"] = _opaque(palette(result.soft.shape[1])[result.labels])

    @property
    def chosen(self) -> int:
        """How many patches are chosen."""
        return len(self.source.selected.indices)

    def choose(self, event: SelectionGeometry) -> None:
        """Choose the patches whose centres a lasso on the slide encloses."""
        if not event.final or event.geometry.get("type") != "poly" or len(event.geometry["x"]) < 3:
            return
        outline = shapely.Polygon(np.stack([event.geometry["x"], event.geometry["y"]], 1))
        inside = shapely.contains_xy(
            shapely.make_valid(outline), self.source.data["x"], self.source.data["y"]
        )
        self.source.selected.indices = np.flatnonzero(inside).tolist()

    def choose_none(self) -> None:
        self.source.selected.indices = []

    def _fade(self) -> None:
        """Veil on the slide what is not chosen, as the map fades it."""
        self._veil.visible = bool(self.chosen)
        if self.chosen:
            values = np.tile(np.array(_VEIL, np.uint8), (self.count, 1))
            values[np.asarray(self.source.selected.indices, int)] = _CLEAR
            self._veil_source.data = {"image": [self._cells(values, _VEIL)]}

    def _cells(self, values: np.ndarray, background: tuple[int, int, int, int]) -> np.ndarray:
        """RGBA of patches, uint8 (n, 4), as a picture of the grid, which Bokeh takes as uint32."""
        out = np.empty((*self._shape, 4), np.uint8)
        out[:] = background
        row, column = self._seeding.embedded.grid.T + self._before
        out[row, column] = values
        return out.view(np.uint32)[..., 0]


def _opaque(rgb: np.ndarray) -> np.ndarray:
    return np.concatenate([rgb, np.full((len(rgb), 1), 255, np.uint8)], 1)
