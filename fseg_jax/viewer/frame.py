"""The frame of a tab: the slide with its tile layers, the header, and the widgets that other parts add.

``page.html`` places each widget by its name. Plot coordinates are µm from the slide's top left corner, and y
is negative below it.
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
    "1–9: class · Z: undo · Y: redo · M, B, E, L: click, brush, erase, lasso · A: seed the chosen patches · "
    "[, ]: opacity · arrows, +, −: move, zoom · F: whole slide · ?: all keys"
)


@cache
def read_asset(name: str) -> str:
    """Read a text file of this package."""
    return resources.files("fseg_jax.viewer").joinpath(name).read_text(encoding="utf-8")


class Frame:
    """The slide and header of a tab; other parts add to it, then ``finish`` fills the document.

    Attributes:
        session: The open slide.
        page_state: The state the page was left in.
        slide: Bokeh's figure of the slide.
        modes: Buttons that choose what clicks and drags on the slide do.
        pan: The tool that drags the slide.
        lasso: The tool that selects patches on the slide.
    """

    def __init__(
        self,
        document: Document,
        session: SlideSession,
        names: list[str],
        modes: tuple[str, ...],
        receive: Callable[[str], None],
    ) -> None:
        """Build the slide and the header.

        Args:
            document: The tab's document.
            session: The open slide.
            names: Names of the slides to choose from.
            modes: Labels of the modes.
            receive: Called with each message of ``page.js``, JSON.
        """
        self._document, self.session = document, session
        self.page_state = dict(session.page_state)
        self._style_sheet = InlineStyleSheet(css=read_asset("widgets.css"))
        self._command, self._download = TextInput(name="command"), TextInput(name="download")
        self._command.on_change("value", lambda attribute, old, new: receive(new))
        self._download.js_on_change("value", CustomJS(code="window.fseg.download(this.value)"))
        self._downloads = 0
        self._roots: list[Any] = [self._command, self._download]
        self._build_slide()
        self._build_header(names, modes)

    def add(self, model: Any, name: str) -> Any:
        """Add a model under a name of ``page.html``."""
        model.name = name
        if "stylesheets" in model.properties() and not model.stylesheets:
            model.stylesheets = [self._style_sheet]
        self._roots.append(model)
        return model

    def add_text(self, name: str) -> Div:
        """Add an empty text."""
        return self.add(Div(sizing_mode="stretch_width"), name)

    def add_button(self, name: str, label: str, action: Callable[[], Any] | None, **options: Any) -> Button:
        """Add a button."""
        button = Button(label=label, **options)
        if action:
            button.on_click(action)
        return self.add(button, name)

    def add_switch(self, name: str, label: str, layer: Any, default: bool) -> None:
        """Add a check box that shows and hides a layer of the slide.

        Args:
            name: Its name in ``page.html`` and in the page's state.
            label: Its label.
            layer: A renderer of Bokeh.
            default: Whether the layer is visible if the state does not say.
        """
        layer.visible = self.page_state.get(name, default)
        box = self.add(CheckboxGroup(labels=[label], active=[0] if layer.visible else [], width=130), name)

        def set_visible(attribute: str, old: Any, new: list[int]) -> None:
            layer.visible = bool(new)
            self.session.update_page_state(**{name: layer.visible})

        box.on_change("active", set_visible)

    def add_opacity_slider(self, name: str, default: float, *targets: tuple[Any, str]) -> None:
        """Add a slider for opacities.

        Args:
            name: Its name in ``page.html`` and in the page's state.
            default: The opacity if the state has none.
            targets: Models and the names of their opacities.
        """
        value = float(self.page_state.get(name, default))
        slider = Slider(start=0, end=1, step=0.01, value=value, show_value=False, tooltips=False, width=180)
        for model, attribute in targets:
            setattr(model, attribute, value)
            slider.js_link("value", model, attribute)
        slider.on_change("value_throttled", lambda a, old, new: self.session.update_page_state(**{name: new}))
        self.add(slider, name)

    def add_tile_layer(self, url: str, **options: Any) -> TileRenderer:
        """Add a layer of tiles over the slide; ``url`` has Bokeh's placeholders {Z}, {X} and {Y}."""
        picture = self.session.picture
        source = WMTSTileSource(
            url=url,
            tile_size=TILE // 2,
            min_zoom=0,
            max_zoom=picture.max_zoom,
            initial_resolution=picture.span / (TILE // 2),
            x_origin_offset=0,
            y_origin_offset=picture.span,
            wrap_around=False,
        )
        layer = self.slide.add_tile(source, **options)
        self._tiles.append(layer)
        return layer

    def format_tile_url(self, kind: str, query: str = "") -> str:
        """Format the address of tiles of a kind, with more of a query if given."""
        name = quote(self.session.name, safe="")
        return f"/{kind}/{name}/{{Z}}/{{X}}/{{Y}}?v={self.session.version}{query}"

    def show_status(self, text: str, problem: str) -> None:
        """Show a problem, or else a text, in the header."""
        self._status.text = markup.render_status(text, problem, _KEYS)

    def download(self, file: str) -> None:
        """Have the browser download a file of the outputs' folder."""
        self._downloads += 1  # makes the value change when the same file is downloaded again
        self._download.value = f"/files/{quote(file)}?{self._downloads}"

    def _build_slide(self) -> None:
        height, width = self.session.picture.size_um
        self.pan, self.lasso = PanTool(), LassoSelectTool(continuous=False, renderers=[])
        wheel = WheelZoomTool()
        canvas = markup.format_colour(CANVAS)
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
        self.add_tile_layer(self.format_tile_url("tile"))
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
            header = Div(
                text=markup.render_title(session.name, session.encoder, picture.width, picture.height)
            )
        self.add(header, "header")
        active = self.page_state.get("mode", 0)
        self.modes = RadioButtonGroup(labels=list(modes), active=active if active in range(len(modes)) else 0)
        self.modes.on_change("active", lambda attribute, old, new: session.update_page_state(mode=new))
        self.add(self.modes, "modes")
        fit = self.add_button("fit", "Whole slide", None)
        fit.js_on_click(CustomJS(code="window.fseg.fit()"))
        self._status = self.add_text("status")

    def finish(self, tools: list[Any], **parts: bool) -> None:
        """Fill the document.

        Args:
            tools: The tool of each mode.
            parts: Whether the page has each part of ``page.html``: ``seeding``, ``layer``.
        """
        picture, session = self.session.picture, self.session
        height, width = picture.size_um
        script = CustomJS(
            args={
                "slide": self.slide,
                "command": self._command,
                "modes": self.modes,
                "tools": tools,
                "tiles": self._tiles,
                "limits": {"width": width, "height": height, "finest": picture.mpp / 16},
                "savedView": self.page_state.get("view"),
            },
            code=read_asset("page.js"),
        )
        # Bokeh's "document ready" event waits for hidden layers too. So the script runs when the slide is
        # drawn, and its size is known.
        self.slide.js_on_change("inner_width", script)
        self.slide.js_on_event(RangesUpdate, CustomJS(code="window.fseg.followRanges()"))
        self._document.title = f"{session.name} · fseg"
        self._document.template_variables.update(parts)
        for root in self._roots:
            self._document.add_root(root)
