"""Seeds and the segmentation drawn on the slide of a tab, and the tools that place and erase seeds."""

from collections.abc import Callable
from typing import Any

import numpy as np
from bokeh.events import SelectionGeometry, Tap
from bokeh.models import ColumnDataSource, FreehandDrawTool, LinearColorMapper

from fseg_jax.outputs.colours import make_palette
from fseg_jax.viewer.annotation import Annotation
from fseg_jax.viewer.clustering import Result
from fseg_jax.viewer.frame import Frame
from fseg_jax.viewer.markup import format_colour
from fseg_jax.viewer.patch_plots import PatchPlots
from fseg_jax.viewer.seeding import Seeding

MODES = ("Click", "Brush", "Erase", "Lasso")
_ERASE, _LASSO = MODES.index("Erase"), MODES.index("Lasso")
_ERASE_RADIUS = 12  # screen pixels
_INK, _CLEAR = "#1c1e24", "#00000000"


class ResultLayer:
    """The mask of the newest result over the slide."""

    def __init__(self, frame: Frame) -> None:
        """Add an empty mask, its switch and its opacity to a frame."""
        height, width = frame.session.picture.size_um
        self._mapper = LinearColorMapper(palette=[_CLEAR, "#000000"], low=0, high=2)
        self._source = ColumnDataSource({"image": [np.zeros((1, 1), np.uint8)]})
        mask = frame.slide.image(
            image="image",
            x=0,
            y=0,
            dw=width,
            dh=height,
            anchor="top_left",
            origin="top_left",
            source=self._source,
            color_mapper=self._mapper,
            level="glyph",
        )
        frame.add_switch("result_on", "Result", mask, True)
        frame.add_opacity_slider("result_alpha", 0.45, (mask.glyph, "global_alpha"))

    def show(self, result: Result | None, hidden: set[int]) -> None:
        """Draw the mask of a result, without the hidden classes."""
        if result is None:
            self._source.data = {"image": [np.zeros((1, 1), np.uint8)]}
            return
        colours = map(format_colour, make_palette(result.soft.shape[1]))
        visible = [_CLEAR, *(_CLEAR if j in hidden else colour for j, colour in enumerate(colours))]
        self._mapper.update(palette=visible, low=0, high=len(visible))
        self._source.data = {"image": [result.mask]}


class SeedLayer:
    """The seeds on the slide, and the tools that place and erase them.

    Attributes:
        tools: The tool of each of ``MODES``.
    """

    def __init__(
        self, frame: Frame, seeding: Seeding, plots: PatchPlots, find_active: Callable[[], int | None]
    ) -> None:
        """Add seeds and tools to a frame.

        Args:
            frame: The tab's frame.
            seeding: The slide's seeding.
            plots: The patches that the lasso selects.
            find_active: Finds the index of the active class; None if it is gone.
        """
        self._frame, self._seeding, self._plots, self._find_active = frame, seeding, plots, find_active
        self._mpp = seeding.patches.mpp
        slide = frame.slide
        self._source = ColumnDataSource({"x": [], "y": [], "colour": []})
        for size, colour in ((17, _INK), (14.5, "white")):
            slide.scatter("x", "y", source=self._source, size=size, color=colour, level="annotation")
        slide.scatter("x", "y", source=self._source, size=10.5, color="colour", level="annotation")
        stroke = ColumnDataSource({"xs": [], "ys": []})
        self._stroke = slide.multi_line(
            "xs", "ys", source=stroke, line_width=7, line_alpha=0.8, line_cap="round"
        )
        self._stroke.level = "annotation"
        brush = FreehandDrawTool(renderers=[self._stroke], num_objects=1)
        slide.add_tools(brush)
        self.tools: list[Any] = [frame.pan, brush, brush, frame.lasso]
        stroke.on_change("data", lambda attribute, old, new: self._handle_stroke(stroke))
        slide.on_event(Tap, self._handle_tap)
        slide.on_event(SelectionGeometry, plots.select)

    def show(self, annotation: Annotation) -> None:
        """Draw the seeds."""
        colours = [format_colour(colour) for colour in make_palette(len(annotation.classes))]
        self._source.data = {
            "x": [seed.x * self._mpp for seed in annotation.seeds],
            "y": [-seed.y * self._mpp for seed in annotation.seeds],
            "colour": [colours[seed.class_index] for seed in annotation.seeds],
        }

    def set_brush_colour(self, j: int) -> None:
        """Give the brush the colour of class j."""
        self._stroke.glyph.line_color = format_colour(make_palette(9)[j])

    def _handle_tap(self, event: Tap) -> None:
        """Place or erase a seed, or clear the selection."""
        assert event.x is not None and event.y is not None
        point = np.array([[event.x, -event.y]]) / self._mpp
        if self._frame.modes.active == _LASSO:
            self._plots.select_none()
        elif self._frame.modes.active == _ERASE:
            self._seeding.erase(point, self._compute_erase_radius())
        elif (j := self._find_active()) is not None:
            self._seeding.place(point, j)

    def _handle_stroke(self, source: ColumnDataSource) -> None:
        """Place or erase seeds along the last stroke, and remove its line."""
        if not len(source.data["xs"]):
            return
        x, y = (np.asarray(source.data[name][-1], float) for name in ("xs", "ys"))
        source.data = {"xs": [], "ys": []}
        path = np.stack([x, -y], 1) / self._mpp
        if not len(path) or not np.isfinite(path).all():
            return
        if self._frame.modes.active == _ERASE:
            self._seeding.erase(path, self._compute_erase_radius())
        elif (j := self._find_active()) is not None:
            self._seeding.place_stroke(path, j)

    def _compute_erase_radius(self) -> float:
        """Convert the erase radius to level-0 pixels, at least one."""
        session = self._frame.session
        height, width = session.picture.size_um
        scale = (session.page_state.get("view") or {}).get("scale") or max(height, width) / 800
        return max(float(_ERASE_RADIUS * scale / self._mpp), 1.0)
