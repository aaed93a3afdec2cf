"""Seeding in a tab: classes, score, and patches of most and least certainty; it draws what has changed."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from bokeh.document import Document
from bokeh.models import CheckboxGroup, TextInput

from fseg_jax.viewer import markup
from fseg_jax.viewer.annotation import FEWEST_CLASSES, Annotation
from fseg_jax.viewer.clustering import Result
from fseg_jax.viewer.frame import Frame
from fseg_jax.viewer.projection_panel import ProjectionPanel
from fseg_jax.viewer.seed_files import SeedFiles
from fseg_jax.viewer.seed_layers import ResultLayer, SeedLayer
from fseg_jax.viewer.seeding import Seeding

_STRIP_LENGTH = 8  # pictures of patches
_HELP = "click the slide to place a seed · 1–9: class · Z: undo"


class SeedPanel:
    """The seeding of a slide in one tab. All changes of seeds go through ``Seeding``.

    Attributes:
        tools: The slide's tool of each mode.
    """

    def __init__(
        self, frame: Frame, seeding: Seeding, schedule_refresh: Callable[[], None], document: Document
    ) -> None:
        """Add the panel to a frame.

        Args:
            frame: The tab's frame.
            seeding: The slide's seeding.
            schedule_refresh: Has ``refresh`` called soon.
            document: The tab's document.
        """
        self._frame, self._seeding, self._session = frame, seeding, frame.session
        self._schedule_refresh = schedule_refresh
        # The annotation that the class indices of this tab refer to: another tab may have changed it since.
        self._annotation = seeding.annotation
        classes = range(len(self._annotation.classes))
        self._active: int = frame.page_state.get("class", 1)
        if self._active not in classes:
            self._active = 0
        self._hidden: set[int] = set(frame.page_state.get("unseen", [])) & {*classes}
        self._message = ""  # shown once
        self._drawn: tuple[Annotation, Result | None, int] | None = None
        self._undo = frame.add_button("back", "↶ Undo", seeding.undo)
        self._redo = frame.add_button("forth", "↷ Redo", seeding.redo)
        self._result_layer = ResultLayer(frame)
        self._projection = ProjectionPanel(frame, seeding, self._seed_selected)
        self._seed_layer = SeedLayer(frame, seeding, self._projection.plots, self._find_active)
        self.tools = self._seed_layer.tools
        self._build_classes()
        SeedFiles(frame, seeding, document, self._announce)
        self._strips = frame.add_text("strip")

    def _build_classes(self) -> None:
        frame, seeding = self._frame, self._seeding
        self._score, self._classes = frame.add_text("score"), frame.add_text("classes")
        self._name = frame.add(TextInput(width=208, placeholder="name of the class"), "class_name")
        self._name.on_change("value", lambda attribute, old, new: self._rename_class(new))
        frame.add_button("more", "+ Class", self._add_class)
        self._remove = frame.add_button("fewer", "− Class", self._remove_class)
        labels = ["Seeds keep their class", "Neighbours agree"]
        options = CheckboxGroup(labels=labels, active=self._get_options(), inline=True)
        self._options = frame.add(options, "options")
        self._options.on_change(
            "active", lambda attribute, old, new: seeding.set_options(hard=0 in new, smooth=1 in new)
        )

    def execute(self, command: str, *arguments: Any) -> None:
        """Execute a command of ``page.js`` about seeds; ignore any other."""
        classes = range(len(self._annotation.classes))
        j = classes.index(arguments[0]) if arguments and arguments[0] in classes else None
        if command == "class" and j is not None:
            self._active = j
            self._session.update_page_state(**{"class": j})
            self.refresh()
        elif command == "see" and j is not None:
            self._hidden ^= {j}
            self._session.update_page_state(unseen=sorted(self._hidden))
            self._drawn = None
            self.refresh()
        elif command == "assign":
            self._seed_selected()
        elif command == "unselect":
            self._projection.plots.select_none()
        elif command == "undo":
            self._seeding.undo()
        elif command == "redo":
            self._seeding.redo()

    # ---------------------------------------------------------------------------------------------- classes

    def _find_active(self) -> int | None:
        """Find the active class in the current annotation; refuse and return None if it was removed."""
        j = self._seeding.annotation.find_class(self._active, self._annotation)
        if j is None:
            self._seeding.refuse(f"the class {self._annotation.classes[self._active]} was removed just now")
        return j

    def _seed_selected(self) -> None:
        """Make the selected patches seeds of the active class, as one step."""
        plots = self._projection.plots
        if not plots.selected_count:
            self._seeding.refuse("choose patches with the lasso first")
        elif (j := self._find_active()) is not None and self._seeding.place(plots.selected_points, j):
            plots.select_none()

    def _add_class(self) -> None:
        """Add a class and make it the active one."""
        j = self._seeding.add_class()
        if j is not None:
            self._active, self._annotation = j, self._seeding.annotation
            self._session.update_page_state(**{"class": j})
            self.refresh()

    def _remove_class(self) -> None:
        j = self._find_active()
        if j is not None:
            self._seeding.remove_class(j)

    def _rename_class(self, name: str) -> None:
        if name == self._annotation.classes[self._active]:
            return
        j = self._find_active()
        if j is not None:
            self._seeding.rename_class(j, name)

    def _get_options(self) -> list[int]:
        """Return the indices of the checked options."""
        settings = self._seeding.settings
        return [i for i, checked in enumerate((settings.hard, settings.smooth)) if checked]

    # ---------------------------------------------------------------------------------------------- drawing

    def refresh(self) -> None:
        """Draw what has changed since the last time."""
        seeding = self._seeding
        annotation, result = seeding.annotation, seeding.result
        self._follow_classes(annotation)
        is_new_annotation = self._drawn is None or self._drawn[0] != annotation
        is_new_result = self._drawn is None or self._drawn[1] is not result
        is_new_class = self._drawn is None or self._drawn[2] != self._active
        if is_new_annotation:
            self._seed_layer.show(annotation)
        if is_new_result:
            self._result_layer.show(result, self._hidden)
            self._projection.show_result()
        if is_new_annotation or is_new_result or is_new_class:
            self._classes.text = markup.render_classes(annotation, result, self._active, self._hidden)
            self._score.text = markup.render_score(result, len(annotation.seeds), seeding.scores)
            self._strips.text = markup.render_strips(
                seeding, self._format_patch_url, self._active, _STRIP_LENGTH
            )
            self._seed_layer.set_brush_colour(self._active)
        self._drawn = (annotation, result, self._active)
        if self._name.value != annotation.classes[self._active]:  # another class, or a refused name
            self._name.value = annotation.classes[self._active]
        self._undo.disabled, self._redo.disabled = not seeding.can_undo, not seeding.can_redo
        self._remove.disabled = len(annotation.classes) == FEWEST_CLASSES
        options = self._get_options()
        if self._options.active != options:
            self._options.active = options
        self._projection.refresh()
        self._show_status()

    def _follow_classes(self, annotation: Annotation) -> None:
        """Keep the same classes active and hidden in a new annotation, at their new indices."""
        if annotation.classes != self._annotation.classes:
            active = annotation.find_class(self._active, self._annotation)
            self._active = min(self._active, len(annotation.classes) - 1) if active is None else active
            indices = (annotation.find_class(j, self._annotation) for j in self._hidden)
            self._hidden = {j for j in indices if j is not None}
            self._drawn = None
        self._annotation = annotation

    def _announce(self, message: str) -> None:
        """Show a message at the next refresh, once."""
        self._message = message
        self._schedule_refresh()

    def _show_status(self) -> None:
        seeding = self._seeding
        if not seeding.ready:
            text = "" if seeding.problem else "loading the embeddings …"
        elif seeding.exporting:
            text = "writing …"
        elif seeding.result is None:
            text = _HELP
        else:
            text = self._message or f"saved · clustered in {1e3 * seeding.result.seconds:.0f} ms"
            self._message = ""
        self._frame.show_status(text, seeding.problem or self._session.picture.notice)

    def _format_patch_url(self, i: int) -> str:
        return f"/patch/{quote(self._session.name, safe='')}/{i}?v={self._session.version}"
