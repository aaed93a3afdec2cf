"""The projection in a tab: its scatter plot, its colours over the slide, and the selection of patches."""

from collections.abc import Callable
from html import escape

from bokeh.models import RadioButtonGroup, Select

from fseg_jax.viewer.frame import Frame
from fseg_jax.viewer.patch_plots import MAP_STYLES, PatchPlots
from fseg_jax.viewer.seeding import Seeding


class ProjectionPanel:
    """The controls of a tab's projection.

    Attributes:
        plots: The patches on the slide and in the scatter plot.
    """

    def __init__(self, frame: Frame, seeding: Seeding, assign: Callable[[], None]) -> None:
        """Add the panel to a frame.

        Args:
            frame: The tab's frame.
            seeding: The slide's seeding.
            assign: Makes the chosen patches seeds of the active class.
        """
        self._session = session = frame.session
        self._is_placed = False
        style = frame.page_state.get("map_as")
        style = style if style in MAP_STYLES else MAP_STYLES[0]
        self.plots = plots = PatchPlots(frame.slide, seeding, session.picture.size_um, style)
        plots.source.selected.on_change("indices", lambda attribute, old, new: self._show_counts())
        styles = frame.add(Select(value=style, options=list(MAP_STYLES), width=130), "map_as")
        styles.on_change("value", lambda attribute, old, new: self._set_style(new))
        frame.add_opacity_slider(
            "map_alpha", 0.75, (plots.mosaic.glyph, "global_alpha"), (plots.dots.glyph, "fill_alpha")
        )
        frame.add(plots.scatter, "scatter")
        self._by_result = frame.page_state.get("coloured") == 1
        colouring = RadioButtonGroup(labels=["UMAP", "Result"], active=int(self._by_result))
        colouring.on_change("active", lambda attribute, old, new: self._set_colouring(new))
        frame.add(colouring, "coloured")
        self._counts = frame.add_text("chosen")
        self._assign = frame.add_button("assign", "Seed the chosen", assign, disabled=True)

    def refresh(self) -> None:
        """Draw the projection once it is computed, and show the counts of patches."""
        if self._session.projection is not None and not self._is_placed:
            self._is_placed = True
            self.plots.set_projection(self._session.projection)
            self.plots.colour_scatter(self._by_result)
        self._show_counts()

    def show_result(self) -> None:
        """Colour the scatter plot by a new result, if it shows results."""
        if self._by_result:
            self.plots.colour_scatter(True)

    def _set_style(self, style: str) -> None:
        self.plots.set_style(style)
        self._session.update_page_state(map_as=style)

    def _set_colouring(self, index: int) -> None:
        self._by_result = index == 1
        self._session.update_page_state(coloured=index)
        self.plots.colour_scatter(self._by_result)

    def _show_counts(self) -> None:
        plots = self.plots
        if self._session.projection_status:
            text = escape(self._session.projection_status) + " …"
        elif plots.selected_count:
            text = f"{plots.selected_count:,} of {plots.count:,} patches chosen · Esc: none"
        else:
            text = f"{plots.count:,} patches · lasso some, here or on the slide"
        self._counts.text = f"<small>{text}</small>"
        self._assign.disabled = not plots.selected_count
