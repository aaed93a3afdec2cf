"""Tabs without a browser: buttons, messages, and the state in which the page opens."""

import asyncio
import json

import numpy as np
import pytest
from bokeh.document import Document
from bokeh.events import ButtonClick, Tap

from fseg_jax.pipeline.clicks import SeedSettings
from fseg_jax.viewer import markup
from fseg_jax.viewer.annotation import Annotation, read_annotation
from fseg_jax.viewer.clustering import Result
from fseg_jax.viewer.page import Page
from fseg_jax.viewer.session import SlideSession

STROMA, CRYPT = np.array([[300.0, 60.0]]), np.array([[100.0, 150.0]])


class Tab:
    """A tab of an open slide, and what a person does in it."""

    def __init__(self, session):
        self.document = Document()
        self.page = Page(self.document, session, ["tissue"])

    def model(self, name):
        """Return a model of the page."""
        return self.document.get_model_by_name(name)

    def press(self, name):
        """Press a button."""
        self.model(name)._trigger_event(ButtonClick(self.model(name)))

    def send(self, *message):
        """Send a message as ``page.js`` does."""
        self.model("command").value = json.dumps([0.5, *message])

    def click(self, x, y):
        """Click on a point of the slide, µm."""
        self.model("slide")._trigger_event(Tap(self.model("slide"), x=x, y=-y, sx=0, sy=0))

    def redraw(self):
        """Draw what has changed; return the index of the active class."""
        self.page._refresh()
        rows = self.model("classes").text.split("class='row")[1:]
        return next(i for i, row in enumerate(rows) if row.startswith(" on"))


def run_tabs(out, script, tabs=1):
    """Run a function on an open slide and some tabs of it."""

    async def run():
        slide = SlideSession(out, "tissue", None, SeedSettings())
        try:
            return script(slide, *(Tab(slide) for _ in range(tabs)))
        finally:
            slide.close()

    return asyncio.run(run())


def test_the_score_is_called_agreement_with_the_clicks():
    """Nothing on the page says F1 where no click is held out, but where it says so."""
    result = Result(
        Annotation(("negative", "positive"), ()),
        labels=np.zeros(4, np.int32),
        soft=np.full((4, 2), 0.5, np.float32),
        score=0.875,
        mask=np.zeros((2, 2), np.uint8),
        shares=np.array([1.0, 0.0]),
        seconds=0.1,
    )
    shown = markup.render_score(result, 11, [0.5, 0.875])
    assert "<b>0.88</b><small>agreement with your 11 clicks</small>" in shown
    assert "F1 of the clicks themselves" in shown and "none is held out" in shown
    assert "agreement with your 1 click<" in markup.render_score(result, 1, [])
    rows = markup.render_classes(result.annotation, result, 0, set())
    assert ">100%</span>" in rows and "share of the tissue that was embedded" in rows  # of four patches
    many = result._replace(labels=np.zeros(1000, np.int32), shares=np.array([0.4567, 0.5433]))
    assert ">45.7%</span>" in markup.render_classes(result.annotation, many, 0, set())
    nothing = markup.render_score(None, 0, [])
    assert "agreement with your clicks" in nothing and "F1" not in nothing


def test_a_new_class_is_the_chosen_one(out):
    def script(slide, tab):
        assert tab.redraw() == 1
        tab.press("more")
        assert tab.redraw() == 2 and tab.model("class_name").value == "class 3"
        tab.model("class_name").value = "glass"
        tab.click(300, 60)
        assert slide.seeding.annotation.classes == ("negative", "positive", "glass")
        assert slide.seeding.annotation.count_seeds() == [0, 0, 1] and slide.page_state["class"] == 2
        for _ in range(7):
            tab.press("more")
        assert tab.redraw() == 8 and "the most there can be" in tab.model("status").text
        assert len(slide.seeding.annotation.classes) == 9

    run_tabs(out, script)


def test_patches_in_the_lasso_become_seeds_of_the_class_in_one_step(out):
    def script(slide, tab):
        tab.redraw()
        assert tab.model("assign").disabled
        tab.press("assign")
        tab.redraw()
        assert "lasso" in tab.model("status").text and not slide.seeding.annotation.seeds
        tab.page._panel._projection.plots.source.selected.indices = [0, 2, 3]
        tab.redraw()
        assert not tab.model("assign").disabled
        tab.press("assign")
        tab.redraw()
        centers = slide.seeding.patches.embedded.centers[[0, 2, 3]]
        seeds = slide.seeding.annotation.seeds
        assert [(seed.y, seed.x) for seed in seeds] == [(y, x) for y, x in centers.tolist()]
        assert {seed.class_index for seed in seeds} == {1}
        assert tab.page._panel._projection.plots.selected_count == 0 and tab.model("assign").disabled
        slide.seeding.undo()
        assert not slide.seeding.annotation.seeds

    run_tabs(out, script)


def test_the_chosen_class_stays_the_same_one_in_every_tab(out):
    def script(slide, one, two):
        one.press("more")
        one.send("see", 1)
        assert two.redraw() == 1  # a class added elsewhere is not chosen here
        two.send("class", 2)
        one.send("class", 0)
        one.press("fewer")  # negative
        assert two.redraw() == 1 and two.model("class_name").value == "class 3"
        assert one.redraw() == 0 and one.model("class_name").value == "positive"
        assert one.model("classes").text.count("row on off") == 1  # it was not to be seen, and is not
        one.press("back")
        assert two.redraw() == 2 and two.model("class_name").value == "class 3"

    run_tabs(out, script, tabs=2)


def test_a_click_for_a_class_that_another_tab_has_just_removed_is_refused(out):
    def script(slide, one, two):
        for tab in (one, two):
            tab.press("more")
        one.redraw()
        one.send("class", 3)
        two.press("fewer")
        one.click(300, 60)
        assert slide.seeding.annotation.seeds == () and len(slide.seeding.annotation.classes) == 3
        one.redraw()
        assert "the class class 4 was removed just now" in one.model("status").text
        one.click(300, 60)
        assert (
            slide.seeding.annotation.count_seeds() == [0, 0, 1]
            and read_annotation(out / "tissue.seeds.geojson").seeds
        )

    run_tabs(out, script, tabs=2)


def test_a_name_that_no_file_can_hold_is_refused_on_the_page(out):
    def script(slide, tab):
        tab.model("class_name").value = "tumour\ud800"
        tab.redraw()
        assert "is no class&#x27;s name" in tab.model("status").text
        tab.model("status").text.encode()
        assert tab.model("class_name").value == "positive" == slide.seeding.annotation.classes[1]
        tab.click(300, 60)
        assert read_annotation(out / "tissue.seeds.geojson") == slide.seeding.annotation

    run_tabs(out, script)


@pytest.mark.parametrize(
    "message",
    [
        *("", "{", "3", '"ab"', "[]", "[1]", "null", "[" * 5000, "[1, [2]]", "[1, {}, 3]", '[1, "nothing"]'),
        *('[1, "view"]', '[1, "view", {"x": "a", "y": 1e999, "scale": -1}]', '[1, "class"]'),
        *(
            '[1, "class", -1]',
            '[1, "class", 1e30]',
            '[1, "class", "1"]',
            '[1, "class", {}]',
            '[1, "see", [1]]',
        ),
        *('[1, "see", 1000000000000000000000000000000]', '[1, "cluster"]', '[1, "cluster", {}, "x", -4]'),
    ],
)
def test_messages_that_make_no_sense_change_nothing(out, message):
    def script(slide, tab):
        before = dict(slide.page_state), tab.redraw(), slide.seeding.annotation
        tab.model("command").value = message
        assert (dict(slide.page_state) | {"hidden": []}, tab.redraw(), slide.seeding.annotation) == (
            before[0] | {"hidden": []},
            *before[1:],
        )
        assert slide.page_state.get("hidden", []) == []

    run_tabs(out, script)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[1]", "3", "null", "[" * 100_000, "\xff", '{"mode": 1e400, "class": "x"}'),
        '{"unseen": 3, "hidden": {"a": 1}, "view": [1, 2], "map_as": ["x"], "layer_alpha": "thick"}',
        '{"unseen": ["a", null], "hidden": [[1]], "view": {"x": NaN, "y": 1e308, "scale": 0}, "class": 1.5}',
        '{"view": {"x": 1, "y": 2}, "mode": [], "class": true, "coloured": {}, "result_on": "yes"}',
        '{"view": {"x": 1, "y": 2, "scale": 3, "z": 4}, "result_alpha": NaN, "map_alpha": 7}',
    ],
)
def test_how_the_page_was_left_is_believed_only_where_it_can_be(out, text):
    (out / "tissue.view.json").write_bytes(text.encode("latin-1"))

    def script(slide, tab):
        assert slide.page_state == {} and tab.redraw() == 1
        tab.document.to_json()

    run_tabs(out, script)


def test_exporting_seeds_before_there_are_any_is_refused_and_writes_nothing(out):
    async def run():
        slide = SlideSession(out, "tissue", None, SeedSettings())
        tab = Tab(slide)
        tab.press("seeds")
        await asyncio.sleep(0)
        tab.redraw()
        assert "no seeds yet: place some first" in tab.model("status").text
        assert not (out / "tissue.seeds.geojson").exists()
        tab.click(300, 60)
        (out / "tissue.seeds.geojson").unlink()  # somebody removed it
        tab.press("seeds")
        await asyncio.sleep(0)
        assert read_annotation(out / "tissue.seeds.geojson") == slide.seeding.annotation
        slide.close()

    asyncio.run(run())
