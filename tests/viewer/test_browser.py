"""The page in a real browser, over a real slide, served by the program itself."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from fseg_jax import open_slide, segment_slide
from fseg_jax.encoders.classical import classical
from fseg_jax.pipeline.embed import PatchSettings, embed_slide
from fseg_jax.pipeline.plan import Settings
from fseg_jax.pipeline.seed_file import read_seeds

pytestmark = pytest.mark.long

NAME, MPP = "CMU-1-Small-Region", 0.499
DERMIS, EPIDERMIS, KERATIN = ((979, 2379), (1492, 2099)), ((1271, 2215), (1236, 1003)), ((1390, 1560),)
PATIENCE = 120_000  # ms: machines are busy


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Start Chromium."""
    api = pytest.importorskip("playwright.sync_api")
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if binary is None:
        pytest.skip("no Chromium here")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=binary, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def outputs(data, tmp_path_factory) -> Path:
    """Embed, segment and project a real slide."""
    out = tmp_path_factory.mktemp("real") / "out"
    with open_slide(data / "slides" / f"{NAME}.svs") as slide:
        embed_slide(slide, out, classical(), PatchSettings(patch=128))
        segment_slide(slide, out, classical(), settings=Settings(k=6))
    pytest.importorskip("umap")
    subprocess.run([sys.executable, "-m", "fseg_jax.viewer.projection", str(out), NAME], check=True)
    return out


class Program:
    """``fseg view`` running over a folder."""

    def __init__(self, out: Path) -> None:
        program = [sys.executable, "-m", "fseg_jax", "view", str(out)]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment)
        self.url = self.process.stdout.readline().strip()

    def end(self, signal_number: int) -> int:
        """Send a signal; return the exit status."""
        self.process.send_signal(signal_number)
        return self.process.wait(60)


@pytest.fixture
def program(outputs, tmp_path) -> Iterator[Callable[[], Program]]:
    """Return a function that starts the program over a copy of the outputs; kill those left at the end."""
    shutil.copytree(outputs, tmp_path / "out")
    running: list[Program] = []

    def start() -> Program:
        running.append(Program(tmp_path / "out"))
        return running[-1]

    yield start
    for instance in running:
        if instance.process.poll() is None:
            instance.process.kill()
            instance.process.wait()


class Tab:
    """A tab with the page, and what a person does in it."""

    def __init__(self, context, url: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._record_message)
        self.page.on("response", self._record_response)
        self.page.goto(url)
        self.wait_until_loaded()

    def _record_message(self, message) -> None:
        """Record errors of the browser, such as violations of the page's policy."""
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.errors.append(message.text)

    def _record_response(self, response) -> None:
        if response.status >= 400:
            self.errors.append(f"{response.status} {response.url}")

    def wait_until_loaded(self) -> None:
        """Wait until the page's script runs and the embeddings are loaded."""
        self.page.wait_for_function("() => window.fseg !== undefined", timeout=PATIENCE)
        self.until("() => !model('status').text.includes('loading')")

    def run(self, code: str, argument: object = None):
        """Run a function of JavaScript in the page; return its result."""
        return self.page.evaluate(self._with_models(code), argument)

    def until(self, code: str) -> None:
        """Wait until a function of JavaScript returns true."""
        self.page.wait_for_function(self._with_models(code), timeout=PATIENCE)

    @staticmethod
    def _with_models(code: str) -> str:
        """Define the functions that code may use: ``model(name)``, ``frame(name)`` and others."""
        return f"""(argument) => {{
            const model = (name) => Bokeh.documents[0].get_model_by_name(name)
            const frame = (name) => {{
                const view = Bokeh.index.find_one(model(name))
                const outer = view.el.getBoundingClientRect(), inner = view.frame.bbox
                return [outer.left + inner.left, outer.top + inner.top, inner.width, inner.height]
            }}
            const glyphs = (type) => model('slide').renderers.filter((r) => r.glyph?.type === type)
            const column = (r, name) => {{
                const data = r.data_source.data
                return data.get ? data.get(name) : data[name]
            }}
            const mask = () => column(glyphs('Image')[0], 'image')[0]
            const seeds = () => column(glyphs('Scatter')[0], 'x').length
            return ({code})(argument)
        }}"""

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a level-0 pixel on the screen."""
        left, top, width, height, x0, x1, y0, y1 = self.run(
            "() => [...frame('slide'), model('slide').x_range.start, model('slide').x_range.end,"
            " model('slide').y_range.start, model('slide').y_range.end]"
        )
        return (
            left + (x * MPP - x0) / (x1 - x0) * width,
            top + (y1 + y * MPP) / (y1 - y0) * height,
        )

    def click(self, x: float, y: float) -> None:
        """Click on a level-0 pixel, and wait until the seed is there."""
        n = self.run("() => seeds()")
        self.page.mouse.click(*self.at(x, y))
        self.until(f"() => seeds() === {n + 1}")

    def key(self, key: str) -> None:
        """Press a key."""
        self.page.keyboard.press(key)

    def choose(self, key: str) -> None:
        """Choose a class by its key, and wait until the page shows it."""
        self.key(key)
        rows = "model('classes').text.split(\"class='row\").findIndex((row) => row.startsWith(' on'))"
        self.until(f"() => {rows} === {key}")

    def drag(self, *points: tuple[float, float]) -> None:
        """Drag the mouse along points of the screen."""
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*point, steps=4)
        self.page.mouse.up()

    def view(self) -> list[float]:
        """Return the slide's left and right edge on the plot, µm."""
        return self.run("() => [model('slide').x_range.start, model('slide').x_range.end]")

    def list_mask_values(self) -> list[int]:
        """Return the distinct values of the mask."""
        return self.run("() => [...new Set(Array.from(mask()))].sort()")

    def count_pixels(self, j: int) -> int:
        """Count the mask's pixels of a value."""
        return self.run(f"() => Array.from(mask()).filter((v) => v === {j}).length")

    def picture(self) -> np.ndarray:
        """Take a screenshot of the slide, RGB."""
        left, top, width, height = self.run("() => frame('slide')")
        clip = {"x": left, "y": top, "width": width, "height": height}
        return np.asarray(Image.open(BytesIO(self.page.screenshot(clip=clip))).convert("RGB")).astype(int)


@pytest.fixture
def context(browser) -> Iterator:
    """Open a window."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    yield context
    context.close()


def read_features(out: Path) -> list[dict]:
    """Read the features of the seeds file."""
    return json.loads((out / f"{NAME}.seeds.geojson").read_text())["features"]


def test_a_session(program, context, tmp_path):
    out = tmp_path / "out"
    first = program()
    tab = Tab(context, first.url)
    page = tab.page
    # The slide is there: stained tissue and glass, not an empty canvas.
    page.wait_for_timeout(2000)
    shown = tab.picture()
    assert shown.std() > 25 and (shown[..., 0] - shown[..., 1] > 40).mean() > 0.05
    ratio = tab.run(
        "() => { const [, , w, h] = frame('slide'); const s = model('slide');"
        " return (s.x_range.end - s.x_range.start) / w / ((s.y_range.end - s.y_range.start) / h) }"
    )
    assert ratio == pytest.approx(1, abs=1e-3)

    # Pan, by key and by mouse; zoom.
    start = tab.view()
    tab.key("ArrowRight")
    assert tab.view()[0] > start[0] and np.diff(tab.view())[0] == pytest.approx(np.diff(start)[0])
    x, y = tab.at(1100, 1500)
    tab.drag((x, y), (x + 80, y + 10))
    tab.until(f"() => model('slide').x_range.start < {start[0] + 0.12 * np.diff(start)[0] - 30}")
    # A hand that rests before it drags.
    before = tab.view()
    page.mouse.move(x, y)
    page.mouse.down()
    page.wait_for_timeout(600)
    page.mouse.move(x - 60, y, steps=4)
    page.mouse.up()
    tab.until(f"() => model('slide').x_range.start > {before[0] + 30}")
    page.mouse.move(x, y)
    page.mouse.wheel(0, -240)
    tab.until(f"() => model('slide').x_range.end - model('slide').x_range.start < {0.9 * np.diff(start)[0]}")
    tab.key("f")
    tab.until(f"() => Math.abs(model('slide').x_range.start - {start[0]}) < 1")

    # Seeds of two classes, then of a third.
    tab.choose("1")
    for point in DERMIS:
        tab.click(*point)
    tab.choose("2")
    for point in EPIDERMIS:
        tab.click(*point)
    tab.until("() => [1, 2].every((j) => mask().includes(j))")
    two = tab.count_pixels(2)
    tab.page.get_by_text("+ Class").click()
    tab.until("() => model('classes').text.includes('class 3')")
    for point in KERATIN:  # the new class is the chosen one
        tab.click(*point)
    tab.until("() => mask().includes(3)")
    assert tab.list_mask_values() == [0, 1, 2, 3] and tab.count_pixels(2) != two
    assert tab.run("() => /<b>[01]\\.\\d\\d<.b>/.test(model('score').text)")
    assert tab.run("() => (model('strip').text.match(/<img/g) ?? []).length") >= 8
    points, given, names, _ = read_seeds(out / f"{NAME}.seeds.geojson")
    assert names == ("negative", "positive", "class 3")
    assert np.abs(points - [*DERMIS, *EPIDERMIS, *KERATIN]).max() < 8 and given.tolist() == [0, 0, 1, 1, 2]
    box = page.locator("input[placeholder='name of the class']")
    box.fill("keratin")
    box.press("Enter")
    tab.until("() => model('classes').text.includes('keratin')")
    box.evaluate("(element) => element.blur()")

    # Undo and redo, by keys; a brush stroke is one step.
    tab.key("b")
    x, y = tab.at(1150, 1300)
    tab.drag((x, y), (x, y + 40), (x, y + 80))
    tab.until("() => seeds() > 6")
    tab.key("z")
    tab.until("() => seeds() === 5")
    tab.key("z")
    tab.until("() => model('classes').text.includes('class 3')")
    tab.key("Shift+Z")
    tab.until("() => model('classes').text.includes('keratin')")
    tab.key("y")
    tab.until("() => seeds() > 6")
    tab.key("z")
    tab.until("() => seeds() === 5")

    # Erase one, and take it back.
    tab.key("e")
    page.mouse.click(*tab.at(*KERATIN[0]))
    tab.until("() => seeds() === 4")
    tab.key("z")
    tab.until("() => seeds() === 5")

    # Lasso: in the map, then on the slide; each fades the other.
    tab.until("() => Number.isFinite(column(model('scatter').renderers[0], 'u')[0])")
    tab.key("l")
    left, top, width, height = tab.run("() => frame('scatter')")
    corners = ((0.02, 0.02), (0.6, 0.02), (0.6, 0.98), (0.02, 0.98), (0.02, 0.05))
    before = tab.picture()
    tab.drag(*((left + fx * width, top + fy * height) for fx, fy in corners))
    tab.until("() => model('chosen').text.includes('chosen')")
    chosen = tab.run("() => model('scatter').renderers[0].data_source.selected.indices.length")
    assert 0 < chosen < 717
    tab.until("() => glyphs('ImageRGBA')[1].visible")
    page.wait_for_timeout(1500)
    assert (tab.picture().mean(-1) - before.mean(-1) > 30).mean() > 0.01  # what is not chosen fades
    tab.key("Escape")
    tab.until("() => model('scatter').renderers[0].data_source.selected.indices.length === 0")
    tab.drag(*(tab.at(*p) for p in ((900, 800), (1500, 800), (1500, 1500), (900, 1500), (900, 820))))
    tab.until("() => model('scatter').renderers[0].data_source.selected.indices.length > 20")
    tab.key("Escape")

    # A class's colour shows it and hides it.
    before = tab.picture()
    page.locator(".row i").nth(1).click()
    tab.until("() => model('classes').text.includes('row off')")
    page.wait_for_timeout(1500)
    changed = (np.abs(tab.picture() - before).max(-1) > 20).mean()
    assert changed > 0.01
    page.locator(".row i").nth(1).click()
    tab.until("() => !model('classes').text.includes('row off')")

    # Layers: the clusters, one of them off; and the map over the slide.
    page.get_by_text("F-SEG clusters").click()
    with page.expect_response(lambda r: "/labels/" in r.url and r.url.endswith("hide=2")):
        page.locator(".cluster").nth(1).click()
    tab.run("() => { model('map_as').value = 'UMAP: mosaic' }")

    # Exports.
    for label, suffix in (
        ("QuPath", ".sic.geojson"),
        ("Mask", ".sic.ome.zarr"),
        ("AnnData", ".sic.h5ad"),
        ("Seeds", ".seeds.geojson"),
    ):
        with page.expect_download(timeout=PATIENCE) as download:
            page.get_by_role("button", name=label, exact=True).click()
        assert (out / f"{NAME}{suffix}").exists()
        got = Path(download.value.path()).read_bytes()
        if suffix.endswith("zarr"):
            assert got[:2] == b"PK"
        else:
            assert got == (out / f"{NAME}{suffix}").read_bytes()
    outlines = json.loads((out / f"{NAME}.sic.geojson").read_text())["features"]
    assert {f["properties"]["name"] for f in outlines} == {"negative", "positive", "keratin"}

    # A file of seeds is loaded, twice, and undone; one that is none is one line.
    saved = (out / f"{NAME}.seeds.geojson").read_bytes()
    tab.key("e")
    page.mouse.click(*tab.at(*DERMIS[0]))
    tab.until("() => seeds() === 4")
    for _ in range(2):
        sent = {"name": "seeds.geojson", "mimeType": "application/json", "buffer": saved}
        page.locator("input[type=file]").set_input_files(sent)
        tab.until("() => seeds() === 5")
        tab.key("z")
        tab.until("() => seeds() === 4")
    page.locator("input[type=file]").set_input_files({**sent, "buffer": b"{"})
    tab.until("() => model('status').text.includes('seeds.geojson: not valid JSON')")
    tab.key("z")
    tab.until("() => seeds() === 5")

    # All is found again: on reloading, and when the program is started anew.
    tab.key("m")
    page.mouse.move(*tab.at(1271, 2215))
    page.mouse.wheel(0, -200)
    page.wait_for_timeout(1500)
    left_at = tab.view()

    def all_there(tab: Tab) -> None:
        tab.until("() => seeds() === 5 && mask().includes(3)")
        assert tab.run("() => model('classes').text.includes('keratin')")
        np.testing.assert_allclose(tab.view(), left_at, atol=1)
        state = tab.run(
            "() => [model('layer_on').active.length, model('map_as').value, model('slide').renderers"
            ".filter((r) => r.tile_source).map((r) => r.tile_source.url).join()]"
        )
        assert state[:2] == [1, "UMAP: mosaic"] and state[2].endswith("hide=2")

    page.reload()
    tab.wait_until_loaded()
    all_there(tab)
    assert tab.errors == []
    assert first.end(signal.SIGTERM) == 0
    second = program()
    all_there(Tab(context, second.url))
    hosts = {urlsplit(url).hostname for url in tab.requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"} and any("/tile/" in url for url in tab.requests)


def test_keys_change_opacities_show_help_and_seed_what_the_lasso_holds(program, context):
    tab = Tab(context, program().url)
    before = tab.run("() => [model('result_alpha').value, model('layer_alpha').value]")
    for key in ("]", "]", "{"):
        tab.key(key)
    after = tab.run("() => [model('result_alpha').value, model('layer_alpha').value]")
    assert after == [pytest.approx(before[0] + 0.2), pytest.approx(before[1] - 0.1)]
    tab.key("?")
    assert tab.page.locator("#help").is_visible()
    tab.key("l")  # not heard while help is open
    tab.key("Escape")
    assert not tab.page.locator("#help").is_visible() and tab.run("() => model('modes').active") == 0
    tab.key("l")
    x, y = DERMIS[0]
    tab.drag(*(tab.at(x + dx, y + dy) for dx, dy in ((-200, -200), (200, -200), (200, 200), (-200, 200))))
    tab.until("() => !model('assign').disabled")
    tab.key("a")
    tab.until("() => seeds() > 4 && model('assign').disabled")
    for width in (1280, 820):
        tab.page.set_viewport_size({"width": width, "height": 800})
        assert tab.run("() => document.documentElement.scrollWidth") <= width
        assert tab.run("() => frame('slide')[2] > 400 && frame('slide')[3] > 200")
    assert tab.errors == []


def test_the_page_runs_no_script_that_is_not_its_own(program, context, tmp_path):
    """Scripts injected as text of elements or as a file of the folder do not run."""
    (tmp_path / "out" / "more.js").write_text("window.foreign = 1")
    tab = Tab(context, program().url)
    assert tab.errors == []
    for attribute, value in (("textContent", "window.foreign = 2"), ("src", "/files/more.js")):
        tab.page.evaluate(
            "([name, value]) => { const s = document.createElement('script'); s[name] = value;"
            " document.body.append(s) }",
            [attribute, value],
        )
    tab.page.evaluate(
        "() => { const d = document.createElement('div'); d.innerHTML ="
        ' \'<img src=/none onerror="window.foreign = 3"><p onclick="window.foreign = 4">x</p>\';'
        " document.body.append(d); d.querySelector('p').click() }"
    )
    tab.page.evaluate(
        "() => { const f = document.createElement('iframe'); f.src = '/'; document.body.append(f) }"
    )
    tab.page.wait_for_timeout(1500)
    assert tab.run("() => window.foreign") is None
    assert sum("Content Security Policy" in error or "Refused" in error for error in tab.errors) >= 4


def test_two_tabs_and_a_kill(program, context, browser, tmp_path):
    """Each tab shows the changes of the other, and what it showed survives SIGKILL."""
    out = tmp_path / "out"
    running = program()
    one, two = Tab(context, running.url), Tab(context, running.url)
    for i, (x, y) in enumerate((*DERMIS, *EPIDERMIS)):
        tab, other = (one, two) if i % 2 else (two, one)
        tab.page.bring_to_front()
        tab.choose("1" if i < 2 else "2")
        tab.click(x, y)
        other.until(f"() => seeds() === {i + 1}")
    two.key("z")
    one.until("() => seeds() === 3")
    one.page.bring_to_front()
    one.choose("2")
    one.click(*EPIDERMIS[1])
    two.until("() => seeds() === 4 && mask().includes(2)")
    names = [f["properties"]["classification"]["name"] for f in read_features(out)]
    assert names == ["negative", "negative", "positive", "positive"]
    for points in (((1200, 1100), (1210, 1300), (1180, 1500)), ((1100, 1200), (1110, 1400), (1080, 1600))):
        n = one.run("() => seeds()")
        for place in [one.at(*point) for point in points]:
            one.page.mouse.click(*place)  # as fast as may be, and none of them lost
        one.until(f"() => seeds() >= {n + 1}")
        if n == 4:
            one.until("() => seeds() === 7")
    shown = one.run("() => seeds()")
    running.end(signal.SIGKILL)
    assert len(read_features(out)) >= shown
    again = Tab(context, program().url)
    again.until(f"() => seeds() === {len(read_features(out))} && mask().includes(2)")

    stranger = browser.new_context().new_page()
    address = urlsplit(again.page.url)
    assert stranger.goto(f"http://{address.netloc}/").status == 403
    stranger.context.close()


def test_a_slide_that_was_moved_is_shown_small(program, context, tmp_path):
    out = tmp_path / "out"
    for path in (out / f"{NAME}.embeddings.json", out / f"{NAME}.embeddings.zarr" / "zarr.json"):
        path.write_text(path.read_text().replace(f"{NAME}.svs", "gone.svs"))
    (out / f"{NAME}.umap.npz").unlink(missing_ok=True)
    tab = Tab(context, program().url)
    tab.until("() => model('status').text.includes('--slides FOLDER')")
    time.sleep(2)
    assert tab.picture().std() > 25


def test_a_slide_that_is_only_segmented(program, context, tmp_path):
    for path in (tmp_path / "out").glob(f"{NAME}.embeddings.*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    tab = Tab(context, program().url)
    assert tab.run("() => model('layer_on').active.length") == 1
    start = tab.view()
    for key in ("b", "l", "3", "z", "Escape", "ArrowRight"):
        tab.key(key)
    assert tab.view()[0] > start[0]
    with tab.page.expect_response(lambda r: "/labels/" in r.url and r.url.endswith("hide=1,2,3,4,5,6")):
        tab.page.get_by_text("none", exact=True).click()
    assert tab.errors == []
