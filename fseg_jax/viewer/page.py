"""The page: a slide to look at and to place seeds on, made of Bokeh's models.

A :class:`Page` is one tab. What it shows of the seeds it takes from the slide's ``Seeding``, which all tabs
share; where it looks, and which layers it shows, is its own, and what the last tab did is what the next one
opens with. Coordinates on the page are µm from the slide's top left corner, y downwards negative.
"""

import base64
import json
from collections.abc import Callable
from functools import cache, partial
from html import escape
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from bokeh.document import Document
from bokeh.events import RangesUpdate, SelectionGeometry, Tap
from bokeh.models import (
    Button,
    CheckboxGroup,
    ColumnDataSource,
    CustomJS,
    Div,
    FileInput,
    FreehandDrawTool,
    InlineStyleSheet,
    LassoSelectTool,
    LinearColorMapper,
    MetricLength,
    PanTool,
    RadioButtonGroup,
    Range1d,
    ScaleBar,
    Select,
    Slider,
    TextInput,
    TileRenderer,
    WheelZoomTool,
    WMTSTileSource,
)
from bokeh.plotting import figure

from fseg_jax.errors import InputError
from fseg_jax.outputs.colours import palette
from fseg_jax.viewer import markup
from fseg_jax.viewer.annotation import Annotation
from fseg_jax.viewer.opened import Opened
from fseg_jax.viewer.patches import SHOWN_AS, Patches
from fseg_jax.viewer.picture import CANVAS, TILE
from fseg_jax.viewer.seeding import Result, Seeding

if TYPE_CHECKING:
    from fseg_jax.viewer.server import Folder

_MODES = ("Click", "Brush", "Erase", "Lasso")
_CLICK, _BRUSH, _ERASE, _LASSO = range(4)
_EXPORTS = {  # what the button says, and what it writes
    "geojson": ("QuPath", ".sic.geojson"),
    "mask": ("Mask", ".sic.ome.zarr"),
    "anndata": ("AnnData", ".sic.h5ad"),
    "seeds": ("Seeds", ".seeds.geojson"),
}
_FINGER = 12  # screen pixels within which a seed is hit
_THUMBNAILS = 8
_HELP = "click the slide to place a seed · 1–9: class · Z: undo"
_KEYS = (
    "1–9: class · Z: undo · Y: redo · M, B, E, L: click, brush, erase, lasso · arrows, +, −: move, zoom · "
    "F: whole slide"
)


def show(document: Document, folder: "Folder", first: str) -> None:
    """Fill a tab's document with the page of the slide that its address names, or of the ``first``."""
    arguments = document.session_context.request.arguments if document.session_context else {}
    name = arguments.get("slide", [first.encode()])[0].decode()
    try:
        opened = folder.open(name)
    except InputError as error:
        document.add_root(Div(text=escape(str(error))))
        return
    page = Page(document, opened, folder.names)
    document.on_session_destroyed(lambda context: page.leave())


@cache
def _text(name: str) -> str:
    return resources.files("fseg_jax.viewer").joinpath(name).read_text(encoding="utf-8")


class Page:
    """One tab with a slide."""

    def __init__(self, document: Document, opened: Opened, names: list[str]) -> None:
        self._document, self._opened = document, opened
        self._seeding = opened.seeding
        self._sheet = InlineStyleSheet(css=_text("widgets.css"))
        self._left = dict(opened.view)
        self._class = 0
        self._scheduled = self._placed = False
        self._drawn: tuple[Annotation, Result | None, int] | None = None
        self._command = TextInput(name="command")
        self._command.on_change("value", lambda attribute, old, new: self._heed(new))
        self._download = TextInput(name="download")
        self._download.js_on_change("value", CustomJS(code="window.fseg.download(this.value)"))
        self._downloads = 0
        self._said = ""
        self._roots: list[Any] = [self._command, self._download]
        self._build_slide()
        self._build_header(names)
        self._build_layers()
        if self._seeding:
            self._build_seeding(self._seeding)
        self._ready()
        document.template = _text("page.html")
        document.template_variables.update(
            css=_text("page.css"),
            title=f"{opened.name} · fseg",
            seeding=bool(self._seeding),
            layer=bool(opened.layer),
        )
        document.title = f"{opened.name} · fseg"
        for root in self._roots:
            document.add_root(root)
        opened.listeners.add(self._schedule)
        self._refresh()

    def leave(self) -> None:
        self._opened.listeners.discard(self._schedule)

    def _add(self, model: Any, name: str) -> Any:
        model.name = name
        if "stylesheets" in model.properties() and not model.stylesheets:
            model.stylesheets = [self._sheet]
        self._roots.append(model)
        return model

    # ---------------------------------------------------------------------------------------------- slide

    def _build_slide(self) -> None:
        picture = self._opened.picture
        height, width = picture.um
        self._pan, self._lasso = PanTool(), LassoSelectTool(continuous=False, renderers=[])
        wheel = WheelZoomTool()
        canvas = "#{:02x}{:02x}{:02x}".format(*CANVAS)
        self._slide = figure(
            x_range=Range1d(0, width, syncable=False),
            y_range=Range1d(-height, 0, syncable=False),
            tools=[self._pan, wheel, self._lasso],
            active_scroll=wheel,
            toolbar_location=None,
            sizing_mode="stretch_both",
            background_fill_color=canvas,
            border_fill_color=canvas,
            outline_line_color=None,
            min_border=0,
            output_backend="webgl",
        )
        self._slide.axis.visible = False
        self._slide.grid.visible = False
        url = f"/tile/{quote(self._opened.name, safe='')}/{{Z}}/{{X}}/{{Y}}?v={self._opened.version}"
        self._tiles = [self._tile_layer(url)]
        bar = ScaleBar(
            range=self._slide.x_range,
            unit="µm",
            dimensional=MetricLength(),
            location="bottom_left",
            bar_length=0.14,
            bar_line_width=4,
            bar_line_color="#1c1e24",
            label_text_font="system-ui",
            label_text_font_size="13px",
            label_text_color="#1c1e24",
            label_standoff=4,
            background_fill_color="white",
            background_fill_alpha=0.85,
            border_line_color=None,
            padding=8,
            margin=12,
        )
        self._slide.add_layout(bar)
        self._add(self._slide, "slide")

    def _tile_layer(self, url: str, **options: Any) -> TileRenderer:
        picture = self._opened.picture
        source = WMTSTileSource(
            url=url,
            tile_size=TILE // 2,
            min_zoom=0,
            max_zoom=picture.deepest,
            initial_resolution=picture.span / (TILE // 2),
            x_origin_offset=0,
            y_origin_offset=picture.span,
            wrap_around=False,
        )
        return self._slide.add_tile(source, **options)

    def _build_header(self, names: list[str]) -> None:
        opened = self._opened
        if len(names) > 1:
            header = Select(value=opened.name, options=names, width=260)
            code = "window.location.search = '?slide=' + encodeURIComponent(this.value)"
            header.js_on_change("value", CustomJS(code=code))
        else:
            encoder = opened.made["encoder"]["name"]
            header = Div(text=markup.title(opened.name, encoder, opened.picture.width, opened.picture.height))
        self._add(header, "header")
        modes = list(_MODES) if self._seeding else ["Move"]
        active = self._left.get("mode", 0)
        self._modes = RadioButtonGroup(labels=modes, active=active if active in range(len(modes)) else 0)
        self._modes.on_change("active", lambda attribute, old, new: opened.keep_view(mode=new))
        self._add(self._modes, "modes")
        self._back = self._button("back", "↶ Undo", lambda: self._do("undo"), visible=bool(self._seeding))
        self._forth = self._button("forth", "↷ Redo", lambda: self._do("redo"), visible=bool(self._seeding))
        fit = self._button("fit", "Whole slide", None)
        fit.js_on_click(CustomJS(code="window.fseg.fit()"))
        self._status = self._add(Div(sizing_mode="stretch_width"), "status")

    def _button(self, name: str, label: str, action: Callable[[], Any] | None, **options: Any) -> Button:
        button = Button(label=label, **options)
        if action:
            button.on_click(action)
        return self._add(button, name)

    def _ready(self) -> None:
        """What the browser runs when all is there: keys, modes, the view to come back to."""
        picture = self._opened.picture
        height, width = picture.um
        tools = [self._pan]
        if self._seeding:
            tools = [self._pan, self._brush, self._brush, self._lasso]
        left = self._left.get("view")
        valid = isinstance(left, dict) and all(
            isinstance(left.get(k), int | float) for k in ("x", "y", "scale")
        )
        code = CustomJS(
            args={
                "slide": self._slide,
                "command": self._command,
                "modes": self._modes,
                "tools": tools,
                "tiles": self._tiles,
                "limits": {"width": width, "height": height, "finest": picture.mpp / 16},
                "left": left if valid else None,
            },
            code=_text("page.js"),
        )
        # Bokeh's own "ready" waits for layers that are not shown. The slide's size is known once it is drawn.
        self._slide.js_on_change("inner_width", code)
        self._slide.js_on_event(RangesUpdate, CustomJS(code="window.fseg.moved()"))

    # --------------------------------------------------------------------------------------------- layers

    def _build_layers(self) -> None:
        opened = self._opened
        layer = opened.layer
        if layer is None:
            return
        on = self._left.get("layer_on", not self._seeding)
        self._hidden = {j for j in self._left.get("hidden", []) if j in range(1, len(layer.labels.names) + 1)}
        alpha = _fraction(self._left.get("layer_alpha"), 0.5)
        tiles = self._tile_layer(
            self._label_url(), visible=on, alpha=alpha, render_parents=False, smoothing=False
        )
        self._tiles.append(tiles)
        switch = self._add(
            CheckboxGroup(labels=["F-SEG clusters"], active=[0] if on else [], width=130), "layer_on"
        )
        slider = self._add(_opacity(alpha), "layer_alpha")
        slider.js_link("value", tiles, "alpha")
        slider.on_change("value_throttled", lambda a, o, new: opened.keep_view(layer_alpha=new))

        def switched(attribute: str, old: Any, new: list[int]) -> None:
            tiles.visible = bool(new)
            opened.keep_view(layer_on=bool(new))

        switch.on_change("active", switched)
        self._clusters = self._add(Div(sizing_mode="stretch_width"), "clusters")
        self._show_clusters()

    def _label_url(self) -> str:
        hidden = ",".join(map(str, sorted(self._hidden)))
        name = quote(self._opened.name, safe="")
        return f"/labels/{name}/{{Z}}/{{X}}/{{Y}}?v={self._opened.version}&hide={hidden}"

    def _show_clusters(self) -> None:
        layer = self._opened.layer
        assert layer is not None
        self._clusters.text = markup.clusters(layer.labels, layer.shares(), self._hidden)

    def _switch(self, hidden: set[int]) -> None:
        self._hidden = hidden
        self._tiles[1].tile_source.url = self._label_url()
        self._show_clusters()
        self._opened.keep_view(hidden=sorted(hidden))

    # ---------------------------------------------------------------------------------------------- seeds

    def _build_seeding(self, seeding: Seeding) -> None:
        slide, opened = self._slide, self._opened
        height, width = opened.picture.um
        self._class = self._left.get("class", 1)
        if self._class not in range(len(seeding.now.classes)):
            self._class = 0
        on, alpha = self._left.get("result_on", True), _fraction(self._left.get("result_alpha"), 0.45)
        self._mapper = LinearColorMapper(palette=["#00000000", "#000000"], low=0, high=2)
        self._mask = ColumnDataSource({"image": [np.zeros((1, 1), np.uint8)]})
        self._result = slide.image(
            image="image",
            x=0,
            y=0,
            dw=width,
            dh=height,
            anchor="top_left",
            origin="top_left",
            source=self._mask,
            color_mapper=self._mapper,
            global_alpha=alpha,
            visible=on,
            level="glyph",
        )
        switch = self._add(CheckboxGroup(labels=["Result"], active=[0] if on else [], width=130), "result_on")
        slider = self._add(_opacity(alpha), "result_alpha")
        slider.js_link("value", self._result.glyph, "global_alpha")
        slider.on_change("value_throttled", lambda a, o, new: opened.keep_view(result_alpha=new))

        def switched(attribute: str, old: Any, new: list[int]) -> None:
            self._result.visible = bool(new)
            opened.keep_view(result_on=bool(new))

        switch.on_change("active", switched)
        self._build_map(seeding)
        self._seeds = ColumnDataSource({"x": [], "y": [], "colour": []})
        for size, colour in ((17, "#1c1e24"), (14.5, "white")):
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

        self._score = self._add(Div(sizing_mode="stretch_width"), "score")
        self._classes = self._add(Div(sizing_mode="stretch_width"), "classes")
        self._name = self._add(TextInput(width=208, placeholder="name of the class"), "class_name")
        self._name.on_change("value", lambda attribute, old, new: self._renamed(new))
        self._button("more", "+ Class", seeding.add_class)
        self._fewer = self._button("fewer", "− Class", lambda: seeding.remove_class(self._class))
        chosen = [i for i, v in enumerate((seeding.settings.hard, seeding.settings.smooth)) if v]
        labels = ["Seeds keep their class", "Neighbours agree"]
        self._options = self._add(CheckboxGroup(labels=labels, active=chosen, inline=True), "options")
        self._options.on_change(
            "active", lambda attribute, old, new: seeding.choose(hard=0 in new, smooth=1 in new)
        )
        for name, (label, _) in _EXPORTS.items():
            self._button(name, label, partial(self._export, name))
        load = self._add(FileInput(accept=".geojson,.json", title="Load seeds from a file"), "load")
        load.on_change("filename", lambda attribute, old, new: self._loaded(load))
        self._strip = self._add(Div(sizing_mode="stretch_width"), "strip")

    def _tapped(self, event: Tap) -> None:
        assert self._seeding and event.x is not None and event.y is not None
        mpp = self._seeding.mpp
        point = np.array([[event.x / mpp, -event.y / mpp]])
        if self._modes.active == _LASSO:
            self._patches.choose_none()
        elif self._modes.active == _ERASE:
            self._seeding.erase(point, self._finger())
        else:
            self._seeding.place(point, self._class)

    def _stroked(self, source: ColumnDataSource) -> None:
        assert self._seeding
        if not len(source.data["xs"]):
            return
        x, y = (np.asarray(source.data[c][-1], float) for c in ("xs", "ys"))
        source.data = {"xs": [], "ys": []}
        path = np.stack([x, -y], 1) / self._seeding.mpp
        if not len(path) or not np.isfinite(path).all():
            return
        if self._modes.active == _ERASE:
            self._seeding.erase(path, self._finger())
        else:
            self._seeding.stroke(path, self._class)

    def _finger(self) -> float:
        """How far, in level-0 pixels, a seed may be from where it is erased."""
        assert self._seeding
        height, width = self._opened.picture.um
        scale = (self._opened.view.get("view") or {}).get("scale") or max(height, width) / 800
        return max(_FINGER * scale / self._seeding.mpp, 1)

    def _renamed(self, name: str) -> None:
        assert self._seeding
        if name != self._seeding.now.classes[self._class]:
            self._seeding.rename(self._class, name)

    def _loaded(self, load: FileInput) -> None:
        assert self._seeding
        if not load.filename:
            return
        with TemporaryDirectory() as folder:
            path = Path(folder) / Path(str(load.filename)).name
            path.write_bytes(base64.b64decode(str(load.value)))
            self._seeding.load_file(path)
            self._seeding.problem = self._seeding.problem.replace(f"{folder}/", "")
        self._schedule()

    async def _export(self, what: str) -> None:
        assert self._seeding
        seeding, name = self._seeding, self._opened.name
        if what != "seeds" and await seeding.export(anndata=what == "anndata") is None:
            return
        file = f"{name}{_EXPORTS[what][1]}"
        if not (self._opened.folder / file).exists():
            seeding.problem = "no seeds yet: place some first"
            self._schedule()
            return
        self._said = f"written: {self._opened.folder / file}"
        self._downloads += 1  # the same file twice is two downloads
        self._download.value = f"/files/{quote(file)}?{self._downloads}"
        self._schedule()

    # ------------------------------------------------------------------------------------------------ map

    def _build_map(self, seeding: Seeding) -> None:
        opened = self._opened
        how, alpha = self._left.get("map_as"), _fraction(self._left.get("map_alpha"), 0.75)
        how = how if how in SHOWN_AS else SHOWN_AS[0]
        self._patches = patches = Patches(self._slide, seeding, opened.picture.um, how, alpha)
        patches.source.selected.on_change("indices", lambda attribute, old, new: self._tell_chosen())
        choice = self._add(Select(value=how, options=list(SHOWN_AS), width=130), "map_as")

        def shown_as(attribute: str, old: str, new: str) -> None:
            patches.show_as(new)
            opened.keep_view(map_as=new)

        choice.on_change("value", shown_as)
        slider = self._add(_opacity(alpha), "map_alpha")
        slider.js_link("value", patches.mosaic.glyph, "global_alpha")
        slider.js_link("value", patches.dots.glyph, "fill_alpha")
        slider.on_change("value_throttled", lambda a, o, new: opened.keep_view(map_alpha=new))
        self._add(patches.scatter, "scatter")
        self._by_result = self._left.get("coloured") == 1
        coloured = RadioButtonGroup(labels=["UMAP", "Result"], active=int(self._by_result))

        def recoloured(attribute: str, old: int, new: int) -> None:
            self._by_result = new == 1
            opened.keep_view(coloured=new)
            patches.colour(self._by_result)

        coloured.on_change("active", recoloured)
        self._add(coloured, "coloured")
        self._chosen = self._add(Div(sizing_mode="stretch_width"), "chosen")

    def _tell_chosen(self) -> None:
        patches = self._patches
        if self._opened.map_progress:
            text = escape(self._opened.map_progress) + " …"
        elif patches.chosen:
            text = f"{patches.chosen:,} of {patches.count:,} patches chosen · Esc: none"
        else:
            text = f"{patches.count:,} patches · lasso some, here or on the slide"
        self._chosen.text = f"<small>{text}</small>"

    # --------------------------------------------------------------------------------------------- changes

    def _heed(self, message: str) -> None:
        """Do what the page's script sends: [a number, what, arguments …]."""
        _, what, *arguments = json.loads(message)
        if what == "view":
            self._opened.keep_view(view=arguments[0])
        elif what == "class" and self._seeding:
            if arguments[0] in range(len(self._seeding.now.classes)):
                self._class = arguments[0]
                self._opened.keep_view(**{"class": self._class})
                self._refresh()
        elif what == "cluster" and self._opened.layer:
            self._switch(self._hidden ^ {int(arguments[0])})
        elif what in ("all", "none") and self._opened.layer:
            k = len(self._opened.layer.labels.names)
            self._switch(set() if what == "all" else set(range(1, k + 1)))
        elif what == "unselect" and self._seeding:
            self._patches.choose_none()
        elif what in ("undo", "redo"):
            self._do(what)

    def _do(self, what: str) -> None:
        if self._seeding:
            (self._seeding.undo if what == "undo" else self._seeding.redo)()

    def _schedule(self) -> None:
        """Redraw soon, once, however much changes until then."""
        if not self._scheduled:
            self._scheduled = True
            self._document.add_next_tick_callback(self._refresh)

    def _refresh(self) -> None:
        self._scheduled = False
        seeding = self._seeding
        if seeding is None:
            self._tell_status("", self._opened.picture.notice)
            return
        now, result = seeding.now, seeding.result
        self._class = min(self._class, len(now.classes) - 1)
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
            self._show_result(seeding)
        if placed or labelled or (drawn and drawn[2] != self._class):
            self._classes.text = markup.classes(now, result, self._class)
            self._score.text = markup.score(result, len(now.seeds), seeding.scores)
            self._strip.text = markup.strips(seeding, self._patch_url, self._class, _THUMBNAILS)
            self._line.glyph.line_color = markup.hexed(palette(9)[self._class])
        self._drawn = (now, result, self._class)
        if self._name.value != now.classes[self._class]:  # another class, or a name that was refused
            self._name.value = now.classes[self._class]
        self._back.disabled, self._forth.disabled = not seeding.can_undo, not seeding.can_redo
        self._fewer.disabled = len(now.classes) == 2
        chosen = [i for i, v in enumerate((seeding.settings.hard, seeding.settings.smooth)) if v]
        if self._options.active != chosen:
            self._options.active = chosen
        if self._opened.map is not None and not self._placed:
            self._placed = True
            self._patches.place(self._opened.map)
            self._patches.colour(self._by_result)
        self._tell_chosen()
        self._tell_status(*self._saying(seeding))

    def _saying(self, seeding: Seeding) -> tuple[str, str]:
        notice = seeding.problem or self._opened.picture.notice
        if not seeding.ready:
            return "loading the embeddings …", notice
        if seeding.exporting:
            return "writing …", notice
        if seeding.result is None:
            return _HELP, notice
        said, self._said = self._said, ""
        if said:
            return said, notice
        return f"saved · clustered in {1e3 * seeding.result.seconds:.0f} ms", notice

    def _patch_url(self, i: int) -> str:
        return f"/patch/{quote(self._opened.name, safe='')}/{i}?v={self._opened.version}"

    def _tell_status(self, text: str, problem: str) -> None:
        self._status.text = markup.status(text, problem, _KEYS)

    def _show_result(self, seeding: Seeding) -> None:
        result = seeding.result
        if result is None:
            self._mask.data = {"image": [np.zeros((1, 1), np.uint8)]}
        else:
            shown = ["#00000000", *map(markup.hexed, palette(result.soft.shape[1]))]
            self._mapper.update(palette=shown, low=0, high=len(shown))
            self._mask.data = {"image": [result.mask]}
        if self._by_result:
            self._patches.colour(True)


def _opacity(value: float) -> Slider:
    return Slider(start=0, end=1, step=0.01, value=value, show_value=False, tooltips=False, width=180)


def _fraction(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else otherwise
