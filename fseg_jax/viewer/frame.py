"""A tab's frame: the slide with its tile layers, the header above it, and the widgets that other parts add.

What is added under a name stands where ``page.html`` places that name. Coordinates are µm from the slide's
top left corner, y downwards negative.
"""

from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

from bokeh.document import Document
from bokeh.events import RangesUpdate
from bokeh.models import (
    Button,
    CheckboxGroup,
    CustomJS,
    Div,
    InlineStyleSheet,
    LassoSelectTool,
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

from fseg_jax.viewer import markup
from fseg_jax.viewer.picture import CANVAS, TILE
from fseg_jax.viewer.session import SlideSession

_KEYS = (
    "1–9: class · Z: undo · Y: redo · M, B, E, L: click, brush, erase, lasso · arrows, +, −: move, zoom · "
    "F: whole slide"
)


@cache
def text_of(name: str) -> str:
    """A file of this package, as text."""
    return resources.files("fseg_jax.viewer").joinpath(name).read_text(encoding="utf-8")


class Frame:
    """The ``slide`` in a tab, and ``modes``, what dragging and clicking on it do.

    ``pan`` and ``lasso`` are the slide's tools for the modes; ``left`` is how the page was left. ``heed`` is
    given what the page's script sends, JSON. When all parts are added, ``finish`` shows the page.
    """

    def __init__(
        self,
        document: Document,
        session: SlideSession,
        names: list[str],
        modes: tuple[str, ...],
        heed: Callable[[str], None],
    ) -> None:
        self._document, self.session = document, session
        self.left = dict(session.view)
        self._sheet = InlineStyleSheet(css=text_of("widgets.css"))
        self._command, self._download = TextInput(name="command"), TextInput(name="download")
        self._command.on_change("value", lambda attribute, old, new: heed(new))
        self._download.js_on_change("value", CustomJS(code="window.fseg.download(this.value)"))
        self._downloads = 0
        self._roots: list[Any] = [self._command, self._download]
        self._build_slide()
        self._build_header(names, modes)

    def add(self, model: Any, name: str) -> Any:
        """Place a model where the page has that name."""
        model.name = name
        if "stylesheets" in model.properties() and not model.stylesheets:
            model.stylesheets = [self._sheet]
        self._roots.append(model)
        return model

    def text(self, name: str) -> Div:
        return self.add(Div(sizing_mode="stretch_width"), name)

    def button(self, name: str, label: str, action: Callable[[], Any] | None, **options: Any) -> Button:
        button = Button(label=label, **options)
        if action:
            button.on_click(action)
        return self.add(button, name)

    def switch(self, name: str, label: str, layer: Any, on: bool) -> None:
        """A box that shows and hides a layer of the slide, as it was left, or as ``on`` says."""
        layer.visible = self.left.get(name, on)
        box = self.add(CheckboxGroup(labels=[label], active=[0] if layer.visible else [], width=130), name)

        def switched(attribute: str, old: Any, new: list[int]) -> None:
            layer.visible = bool(new)
            self.session.keep_view(**{name: layer.visible})

        box.on_change("active", switched)

    def opacity(self, name: str, otherwise: float, *targets: tuple[Any, str]) -> None:
        """A slider for properties that are opacities, as it was left, or ``otherwise``."""
        value = float(self.left.get(name, otherwise))
        slider = Slider(start=0, end=1, step=0.01, value=value, show_value=False, tooltips=False, width=180)
        for model, attribute in targets:
            setattr(model, attribute, value)
            slider.js_link("value", model, attribute)
        slider.on_change("value_throttled", lambda a, old, new: self.session.keep_view(**{name: new}))
        self.add(slider, name)

    def tile_layer(self, url: str, **options: Any) -> TileRenderer:
        """A layer of tiles, rendered at that address, over the slide."""
        picture = self.session.picture
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
        layer = self.slide.add_tile(source, **options)
        self._tiles.append(layer)
        return layer

    def tile_url(self, kind: str, more: str = "") -> str:
        name = quote(self.session.name, safe="")
        return f"/{kind}/{name}/{{Z}}/{{X}}/{{Y}}?v={self.session.version}{more}"

    def say(self, text: str, problem: str) -> None:
        """Say something in the header; a problem goes before."""
        self._status.text = markup.status(text, problem, _KEYS)

    def offer(self, file: str) -> None:
        """Have the browser download a file of the outputs' folder."""
        self._downloads += 1  # the same file twice is two downloads
        self._download.value = f"/files/{quote(file)}?{self._downloads}"

    def _build_slide(self) -> None:
        height, width = self.session.picture.um
        self.pan, self.lasso = PanTool(), LassoSelectTool(continuous=False, renderers=[])
        wheel = WheelZoomTool()
        canvas = markup.hexed(CANVAS)
        self.slide = figure(
            x_range=Range1d(0, width, syncable=False),
            y_range=Range1d(-height, 0, syncable=False),
            tools=[self.pan, wheel, self.lasso],
            active_scroll=wheel,
            toolbar_location=None,
            sizing_mode="stretch_both",
            background_fill_color=canvas,
            border_fill_color=canvas,
            outline_line_color=None,
            min_border=0,
            output_backend="webgl",
        )
        self.slide.axis.visible = False
        self.slide.grid.visible = False
        self._tiles: list[TileRenderer] = []
        self.tile_layer(self.tile_url("tile"))
        bar = ScaleBar(
            range=self.slide.x_range,
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
        self.slide.add_layout(bar)
        self.add(self.slide, "slide")

    def _build_header(self, names: list[str], modes: tuple[str, ...]) -> None:
        session = self.session
        if len(names) > 1:
            header = Select(value=session.name, options=names, width=260)
            code = "window.location.search = '?slide=' + encodeURIComponent(this.value)"
            header.js_on_change("value", CustomJS(code=code))
        else:
            picture = session.picture
            header = Div(text=markup.title(session.name, session.encoder, picture.width, picture.height))
        self.add(header, "header")
        active = self.left.get("mode", 0)
        self.modes = RadioButtonGroup(labels=list(modes), active=active if active in range(len(modes)) else 0)
        self.modes.on_change("active", lambda attribute, old, new: session.keep_view(mode=new))
        self.add(self.modes, "modes")
        fit = self.button("fit", "Whole slide", None)
        fit.js_on_click(CustomJS(code="window.fseg.fit()"))
        self._status = self.text("status")

    def finish(self, tools: list[Any], **parts: bool) -> None:
        """Fill the document. ``tools`` are those of the modes; ``parts`` says which the page has."""
        picture, session = self.session.picture, self.session
        height, width = picture.um
        script = CustomJS(
            args={
                "slide": self.slide,
                "command": self._command,
                "modes": self.modes,
                "tools": tools,
                "tiles": self._tiles,
                "limits": {"width": width, "height": height, "finest": picture.mpp / 16},
                "left": self.left.get("view"),
            },
            code=text_of("page.js"),
        )
        # Bokeh's own "ready" waits for layers that are not shown. The slide's size is known once it is drawn.
        self.slide.js_on_change("inner_width", script)
        self.slide.js_on_event(RangesUpdate, CustomJS(code="window.fseg.moved()"))
        self._document.title = f"{session.name} · fseg"
        self._document.template_variables.update(parts)
        for root in self._roots:
            self._document.add_root(root)
