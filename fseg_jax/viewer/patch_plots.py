"""Patches drawn over the slide, as a mosaic or dots, and in the scatter plot of their projection.

All share one data source of Bokeh, so that patches selected in one plot are selected in both.
"""

from typing import Any

import numpy as np
import shapely
from bokeh.events import SelectionGeometry
from bokeh.models import ColumnDataSource, LassoSelectTool, WheelZoomTool
from bokeh.plotting import figure
from jaxtyping import Float, UInt8, UInt32

from fseg_jax.outputs.colours import make_palette
from fseg_jax.viewer.markup import format_colour
from fseg_jax.viewer.picture import CANVAS, add_alpha
from fseg_jax.viewer.projection import colour_points
from fseg_jax.viewer.seeding import Seeding

MAP_STYLES = ("UMAP: off", "UMAP: mosaic", "UMAP: dots")
_, _MOSAIC, _DOTS = MAP_STYLES
_GREY = (150, 155, 165, 255)
_VEIL = (255, 255, 255, 190)
_CLEAR = (0, 0, 0, 0)


class PatchPlots:
    """A slide's patches in two figures: the slide and the scatter plot of their projection.

    Attributes:
        count: Number of patches.
        source: Bokeh's data of the patches, with the selection.
        mosaic: The renderer that fills grid cells of the slide with the projection's colours.
        dots: The renderer that draws dots of these colours on the slide.
        scatter: The figure of the scatter plot.
    """

    def __init__(self, slide: Any, seeding: Seeding, size_um: tuple[float, float], style: str) -> None:
        """Draw the patches.

        Args:
            slide: The figure of the slide.
            seeding: The slide's seeding.
            size_um: Height and width of the slide, µm.
            style: One of ``MAP_STYLES``.
        """
        self._seeding = seeding
        patches = seeding.patches
        self._grid = patches.embedded.grid
        self.count = n = len(patches)
        y, x = patches.locate_centers().T
        grey, nowhere = np.tile(np.array(_GREY, np.uint8), (n, 1)), np.full(n, np.nan, np.float32)
        self.source = ColumnDataSource(
            {"x": x, "y": -y, "u": nowhere, "v": nowhere, "shown": grey, "umap": grey.copy()}
        )
        self.source.selected.on_change("indices", lambda attribute, old, new: self._veil_unselected())
        # The mosaic and the veil are pictures with a pixel for each grid cell. They cover the whole slide, so
        # they have cells before the first patch and after the last.
        cell = patches.step * patches.mpp
        offset = (patches.side - patches.step) / 2 * patches.mpp
        self._cells_before = int(np.ceil(max(offset, 0) / cell))
        corner = offset - self._cells_before * cell
        needed = [int(np.ceil((size - corner) / cell)) for size in size_um]
        self._shape = tuple(np.maximum(needed, self._grid.max(0) + 1 + self._cells_before).tolist())
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
            image="image", source=self._mosaic_source, visible=style == _MOSAIC, **box
        )
        self.dots = slide.circle(
            "x",
            "y",
            radius=0.36 * cell,
            source=self.source,
            fill_color="umap",
            line_color=None,
            nonselection_fill_alpha=0.06,
            visible=style == _DOTS,
        )
        self._veil = slide.image_rgba(image="image", source=self._veil_source, visible=False, **box)
        # Patches extend beyond the slide's edges: a frame in the canvas's colour covers that.
        (height, width), over = size_um, 2 * patches.side * patches.mpp
        slide.quad(
            left=[-over, width, -over, -over],
            right=[0, width + over, width + over, width + over],
            bottom=[-height - over, -height - over, 0, -height - over],
            top=[over, over, over, -height],
            color=format_colour(CANVAS),
            line_color=None,
        )
        self.scatter = self._build_scatter()

    def _build_scatter(self) -> Any:
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

    def set_style(self, style: str) -> None:
        """Draw the projection's colours over the slide in one of ``MAP_STYLES``."""
        self.mosaic.visible, self.dots.visible = style == _MOSAIC, style == _DOTS

    def set_projection(self, Y: Float[np.ndarray, "n 3"]) -> None:
        """Set the position and colour of each patch."""
        rgba = add_alpha(colour_points(Y))
        data = dict(self.source.data)
        data.update(u=Y[:, 0], v=Y[:, 1], umap=rgba, shown=rgba)
        self.source.data = data
        self._mosaic_source.data = {"image": [self._paint_cells(rgba, _CLEAR)]}

    def colour_scatter(self, by_result: bool) -> None:
        """Colour the scatter plot by class, if asked for and there is a result, or else by projection."""
        result = self._seeding.result
        if not by_result or result is None:
            self.source.data["shown"] = self.source.data["umap"]
        else:
            self.source.data["shown"] = add_alpha(make_palette(result.soft.shape[1])[result.labels])

    @property
    def selected_count(self) -> int:
        """Number of selected patches."""
        return len(self.source.selected.indices)

    @property
    def selected_points(self) -> Float[np.ndarray, "m 2"]:
        """Centres of the selected patches, (x, y) in level-0 pixels."""
        centers = self._seeding.patches.embedded.centers[np.asarray(self.source.selected.indices, int)]
        return np.asarray(centers, float)[:, ::-1]

    def select(self, event: SelectionGeometry) -> None:
        """Select the patches whose centres a lasso on the slide encloses."""
        if not event.final or event.geometry.get("type") != "poly" or len(event.geometry["x"]) < 3:
            return
        outline = shapely.Polygon(np.stack([event.geometry["x"], event.geometry["y"]], 1))
        inside = shapely.contains_xy(
            shapely.make_valid(outline), self.source.data["x"], self.source.data["y"]
        )
        self.source.selected.indices = np.flatnonzero(inside).tolist()

    def select_none(self) -> None:
        """Clear the selection."""
        self.source.selected.indices = []

    def _veil_unselected(self) -> None:
        """Veil the patches on the slide that are not selected; the scatter plot fades them by itself."""
        self._veil.visible = bool(self.selected_count)
        if self.selected_count:
            rgba = np.tile(np.array(_VEIL, np.uint8), (self.count, 1))
            rgba[np.asarray(self.source.selected.indices, int)] = _CLEAR
            self._veil_source.data = {"image": [self._paint_cells(rgba, _VEIL)]}

    def _paint_cells(
        self, rgba: UInt8[np.ndarray, "n 4"], background: tuple[int, int, int, int]
    ) -> UInt32[np.ndarray, "h w"]:
        """Paint patches as pixels of the grid; Bokeh takes RGBA as uint32."""
        out = np.empty((*self._shape, 4), np.uint8)
        out[:] = background
        row, column = self._grid.T + self._cells_before
        out[row, column] = rgba
        return out.view(np.uint32)[..., 0]
