"""What a tab has for seeding: seeds on the slide, classes, the result, the map, thumbnails, exports.

It shows the slide's ``Seeding``, and does nothing to seeds but through it.
"""

import asyncio
import base64
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import numpy as np
from bokeh.document import Document
from bokeh.events import SelectionGeometry, Tap
from bokeh.models import (
    CheckboxGroup,
    ColumnDataSource,
    FileInput,
    FreehandDrawTool,
    LinearColorMapper,
    RadioButtonGroup,
    Select,
    TextInput,
)

from fseg_jax.errors import InputError
from fseg_jax.outputs.colours import palette
from fseg_jax.viewer import markup
from fseg_jax.viewer.annotation import Annotation
from fseg_jax.viewer.frame import Frame
from fseg_jax.viewer.patches import SHOWN_AS, Patches
from fseg_jax.viewer.seeding import Result, Seeding

MODES = ("Click", "Brush", "Erase", "Lasso")
_CLICK, _BRUSH, _ERASE, _LASSO = range(4)
_EXPORTS = {  # what the button says, and what it writes
    "geojson": ("QuPath", ".sic.geojson"),
    "mask": ("Mask", ".sic.ome.zarr"),
    "anndata": ("AnnData", ".sic.h5ad"),
    "seeds": ("Seeds", ".seeds.geojson"),
}
_FINGER = 12  # screen pixels within which a seed is hit
_THUMBNAILS = 8
_INK, _CLEAR = "#1c1e24", "#00000000"
_HELP = "click the slide to place a seed · 1–9: class · Z: undo"


class SeedPanel:
    """Seeding in one tab's frame; ``schedule`` has the page call ``refresh`` soon.

    ``tools`` are those of ``MODES``, the slide's.
    """

    def __init__(
        self, frame: Frame, seeding: Seeding, schedule: Callable[[], None], document: Document
    ) -> None:
        self._frame, self._seeding, self._session = frame, seeding, frame.session
        self._schedule, self._document = schedule, document
        self._seen = seeding.now  # what numbers of classes here are numbers of
        self._class: int = frame.left.get("class", 1)
        if self._class not in range(len(self._seen.classes)):
            self._class = 0
        self._unseen: set[int] = set(frame.left.get("unseen", [])) & {*range(len(self._seen.classes))}
        self._placed = False
        self._said = ""
        self._drawn: tuple[Annotation, Result | None, int] | None = None
        self._exports: set[asyncio.Task[None]] = set()
        self._back = frame.button("back", "↶ Undo", seeding.undo)
        self._forth = frame.button("forth", "↷ Redo", seeding.redo)
        self._build_result()
        self._build_map()
        self._build_seeds()
        self._build_classes()
        for name, (label, _) in _EXPORTS.items():
            frame.button(name, label, partial(self._export, name))
        load = frame.add(FileInput(accept=".geojson,.json", width=210), "load")
        load.on_change("filename", lambda attribute, old, new: self._loaded(load))
        self._strip = frame.text("strip")
        self.tools = [frame.pan, self._brush, self._brush, frame.lasso]

    # --------------------------------------------------------------------------------------- the slide's

    def _build_result(self) -> None:
        frame = self._frame
        height, width = self._session.picture.um
        self._mapper = LinearColorMapper(palette=[_CLEAR, "#000000"], low=0, high=2)
        self._mask = ColumnDataSource({"image": [np.zeros((1, 1), np.uint8)]})
        result = frame.slide.image(
            image="image",
            x=0,
            y=0,
            dw=width,
            dh=height,
            anchor="top_left",
            origin="top_left",
            source=self._mask,
            color_mapper=self._mapper,
            level="glyph",
        )
        frame.switch("result_on", "Result", result, True)
        frame.opacity("result_alpha", 0.45, (result.glyph, "global_alpha"))

    def _build_seeds(self) -> None:
        slide = self._frame.slide
        self._seeds = ColumnDataSource({"x": [], "y": [], "colour": []})
        for size, colour in ((17, _INK), (14.5, "white")):
            slide.scatter("x", "y", source=self._seeds, size=size, color=colour, level="annotation")
        slide.scatter("x", "y", source=self._seeds, size=10.5, color="colour", level="annotation")
        stroke = ColumnDataSource({"xs": [], "ys": []})
        self._line = slide.multi_line(
            "xs", "ys", source=stroke, line_width=7, line_alpha=0.8, line_cap="round"
        )
        self._line.level = "annotation"
        self._brush = FreehandDrawTool(renderers=[self._line], num_objects=1)
        slide.add_tools(self._brush)
        stroke.on_change("data", lambda attribute, old, new: self._stroked(stroke))
        slide.on_event(Tap, self._tapped)
        slide.on_event(SelectionGeometry, self._patches.choose)

    def _tapped(self, event: Tap) -> None:
        assert event.x is not None and event.y is not None
        point = np.array([[event.x, -event.y]]) / self._seeding.mpp
        if self._frame.modes.active == _LASSO:
            self._patches.choose_none()
        elif self._frame.modes.active == _ERASE:
            self._seeding.erase(point, self._finger())
        elif (of := self._chosen_class()) is not None:
            self._seeding.place(point, of)

    def _stroked(self, source: ColumnDataSource) -> None:
        if not len(source.data["xs"]):
            return
        x, y = (np.asarray(source.data[c][-1], float) for c in ("xs", "ys"))
        source.data = {"xs": [], "ys": []}
        path = np.stack([x, -y], 1) / self._seeding.mpp
        if not len(path) or not np.isfinite(path).all():
            return
        if self._frame.modes.active == _ERASE:
            self._seeding.erase(path, self._finger())
        elif (of := self._chosen_class()) is not None:
            self._seeding.stroke(path, of)

    def _finger(self) -> float:
        """How far, in level-0 pixels, a seed may be from where it is erased."""
        height, width = self._session.picture.um
        scale = (self._session.view.get("view") or {}).get("scale") or max(height, width) / 800
        return max(_FINGER * scale / self._seeding.mpp, 1)

    # ---------------------------------------------------------------------------------------- the panel's

    def _build_classes(self) -> None:
        frame, seeding = self._frame, self._seeding
        self._score, self._classes = frame.text("score"), frame.text("classes")
        self._name = frame.add(TextInput(width=208, placeholder="name of the class"), "class_name")
        self._name.on_change("value", lambda attribute, old, new: self._renamed(new))
        frame.button("more", "+ Class", self._add_class)
        self._fewer = frame.button("fewer", "− Class", self._remove_class)
        labels = ["Seeds keep their class", "Neighbours agree"]
        self._options = frame.add(CheckboxGroup(labels=labels, active=self._chosen, inline=True), "options")
        self._options.on_change(
            "active", lambda attribute, old, new: seeding.choose(hard=0 in new, smooth=1 in new)
        )

    @property
    def _chosen(self) -> list[int]:
        settings = self._seeding.settings
        return [i for i, v in enumerate((settings.hard, settings.smooth)) if v]

    def _chosen_class(self) -> int | None:
        """The chosen class's number; None, and a problem, where another tab has removed it just now."""
        of = self._seeding.now.place_of(self._class, self._seen)
        if of is None:
            self._seeding.refuse(f"the class {self._seen.classes[self._class]} was removed just now")
        return of

    def _choose_class(self, j: int) -> None:
        self._class, self._seen = j, self._seeding.now
        self._session.keep_view(**{"class": j})
        self.refresh()

    def _add_class(self) -> None:
        new = self._seeding.add_class()
        if new is not None:
            self._choose_class(new)

    def _remove_class(self) -> None:
        of = self._chosen_class()
        if of is not None:
            self._seeding.remove_class(of)

    def _renamed(self, name: str) -> None:
        if name == self._seen.classes[self._class]:
            return
        of = self._chosen_class()
        if of is not None:
            self._seeding.rename(of, name)

    def _build_map(self) -> None:
        frame, session = self._frame, self._session
        how = frame.left.get("map_as")
        how = how if how in SHOWN_AS else SHOWN_AS[0]
        self._patches = patches = Patches(frame.slide, self._seeding, session.picture.um, how)
        patches.source.selected.on_change("indices", lambda attribute, old, new: self._tell_chosen())
        choice = frame.add(Select(value=how, options=list(SHOWN_AS), width=130), "map_as")

        def shown_as(attribute: str, old: str, new: str) -> None:
            patches.show_as(new)
            session.keep_view(map_as=new)

        choice.on_change("value", shown_as)
        frame.opacity(
            "map_alpha", 0.75, (patches.mosaic.glyph, "global_alpha"), (patches.dots.glyph, "fill_alpha")
        )
        frame.add(patches.scatter, "scatter")
        self._by_result = frame.left.get("coloured") == 1
        coloured = RadioButtonGroup(labels=["UMAP", "Result"], active=int(self._by_result))

        def recoloured(attribute: str, old: int, new: int) -> None:
            self._by_result = new == 1
            session.keep_view(coloured=new)
            patches.colour(self._by_result)

        coloured.on_change("active", recoloured)
        frame.add(coloured, "coloured")
        self._tally = frame.text("chosen")

    # ------------------------------------------------------------------------------------------- messages

    def heed(self, what: str, *arguments: Any) -> None:
        """Do what the page's script sends, those of its messages that are about seeds."""
        classes = range(len(self._seen.classes))
        j = classes.index(arguments[0]) if arguments and arguments[0] in classes else None
        if what == "class" and j is not None:
            self._class = j
            self._session.keep_view(**{"class": j})
            self.refresh()
        elif what == "see" and j is not None:
            self._unseen ^= {j}
            self._session.keep_view(unseen=sorted(self._unseen))
            self._drawn = None
            self.refresh()
        elif what == "unselect":
            self._patches.choose_none()
        elif what == "undo":
            self._seeding.undo()
        elif what == "redo":
            self._seeding.redo()

    def _loaded(self, load: FileInput) -> None:
        if not load.filename:
            return
        try:
            data = base64.b64decode(str(load.value))
        except ValueError:
            data = b""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "seeds"  # the browser's name may be none that a file can have here
            path.write_bytes(data)
            self._seeding.load_file(path, str(load.filename))
        load.clear()  # so that the same file can be loaded again
        self._schedule()

    def _export(self, what: str) -> None:
        # Bokeh awaits no button's callback, and a tab that is waited for shows nothing.
        task = asyncio.get_running_loop().create_task(self._write(what))
        self._exports.add(task)
        task.add_done_callback(self._exports.discard)

    async def _write(self, what: str) -> None:
        seeding = self._seeding
        if what != "seeds" and await seeding.export(anndata=what == "anndata") is None:
            return
        file = f"{self._session.name}{_EXPORTS[what][1]}"
        if not seeding.now.seeds and not (self._session.folder / file).exists():
            seeding.refuse("no seeds yet: place some first")
            return
        try:
            seeding.kept()
        except InputError as error:
            seeding.refuse(str(error))
            return
        self._said = f"written: {self._session.folder / file}"
        self._document.add_next_tick_callback(lambda: self._frame.offer(file))
        self._schedule()

    # ------------------------------------------------------------------------------------------ what is new

    def refresh(self) -> None:
        """Show what has changed since the last time."""
        seeding = self._seeding
        now, result = seeding.now, seeding.result
        self._follow_classes(now)
        drawn = self._drawn
        placed = drawn is None or drawn[0] != now
        labelled = drawn is None or drawn[1] is not result
        if placed:
            colours = [markup.hexed(c) for c in palette(len(now.classes))]
            self._seeds.data = {
                "x": [s.x * seeding.mpp for s in now.seeds],
                "y": [-s.y * seeding.mpp for s in now.seeds],
                "colour": [colours[s.of] for s in now.seeds],
            }
        if labelled:
            self._show_result()
        if placed or labelled or (drawn and drawn[2] != self._class):
            self._classes.text = markup.classes(now, result, self._class, self._unseen)
            self._score.text = markup.score(result, len(now.seeds), seeding.scores)
            self._strip.text = markup.strips(seeding, self._patch_url, self._class, _THUMBNAILS)
            self._line.glyph.line_color = markup.hexed(palette(9)[self._class])
        self._drawn = (now, result, self._class)
        if self._name.value != now.classes[self._class]:  # another class, or a name that was refused
            self._name.value = now.classes[self._class]
        self._back.disabled, self._forth.disabled = not seeding.can_undo, not seeding.can_redo
        self._fewer.disabled = len(now.classes) == 2
        if self._options.active != self._chosen:
            self._options.active = self._chosen
        if self._session.map is not None and not self._placed:
            self._placed = True
            self._patches.place(self._session.map)
            self._patches.colour(self._by_result)
        self._tell_chosen()
        self._frame.say(*self._saying())

    def _follow_classes(self, now: Annotation) -> None:
        """Have the chosen class, and those not seen, be the same ones as before, wherever they are now."""
        if now.classes != self._seen.classes:
            of = now.place_of(self._class, self._seen)
            self._class = min(self._class, len(now.classes) - 1) if of is None else of
            places = (now.place_of(j, self._seen) for j in self._unseen)
            self._unseen = {j for j in places if j is not None}
            self._drawn = None
        self._seen = now

    def _saying(self) -> tuple[str, str]:
        seeding = self._seeding
        notice = seeding.problem or self._session.picture.notice
        if not seeding.ready:
            return "" if seeding.problem else "loading the embeddings …", notice
        if seeding.exporting:
            return "writing …", notice
        if seeding.result is None:
            return _HELP, notice
        said, self._said = self._said, ""
        return said or f"saved · clustered in {1e3 * seeding.result.seconds:.0f} ms", notice

    def _show_result(self) -> None:
        result = self._seeding.result
        if result is None:
            self._mask.data = {"image": [np.zeros((1, 1), np.uint8)]}
        else:
            colours = map(markup.hexed, palette(result.soft.shape[1]))
            shown = [_CLEAR, *(_CLEAR if j in self._unseen else c for j, c in enumerate(colours))]
            self._mapper.update(palette=shown, low=0, high=len(shown))
            self._mask.data = {"image": [result.mask]}
        if self._by_result:
            self._patches.colour(True)

    def _tell_chosen(self) -> None:
        patches = self._patches
        if self._session.map_progress:
            text = escape(self._session.map_progress) + " …"
        elif patches.chosen:
            text = f"{patches.chosen:,} of {patches.count:,} patches chosen · Esc: none"
        else:
            text = f"{patches.count:,} patches · lasso some, here or on the slide"
        self._tally.text = f"<small>{text}</small>"

    def _patch_url(self, i: int) -> str:
        return f"/patch/{quote(self._session.name, safe='')}/{i}?v={self._session.version}"
